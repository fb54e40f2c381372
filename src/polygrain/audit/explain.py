"""The verdicts of an audit as text: one line for outputs that changed for the same reason, seeds of a run together."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import PurePosixPath
from typing import get_args

from polygrain.audit.verdicts import Audit, Cause, Change, Judged, Kind
from polygrain.provenance.lock import LOCK

_KINDS: tuple[Kind, ...] = get_args(Kind)
_LONGEST = 60  # characters of a value that a line quotes
_NAMED = 3  # of a kind that a line names
SEED = re.compile(r"seed\d+")


def entry_lines(entry: Judged) -> Iterator[str]:
    """What to print of one commit: a head, counts, a line for every group of changes, the contradictions."""
    commit = entry.state.commit
    yield f"{commit.short} {commit.date} {commit.subject}"
    counts = [(entry.unchanged, "unchanged"), *((len(entry.of(kind)), kind) for kind in _KINDS)]
    yield "    " + (", ".join(f"{number} {kind}" for number, kind in counts if number) or f"{LOCK} lists no output")
    by_output = {change.output: change for change in entry.changes}
    lines = []
    for change in entry.changes:
        reason, stage = (SEED.sub("seed*", text) for text in ("; ".join(reasons(change, by_output)), change.stage))
        lines.append((_KINDS.index(change.kind), reason, stage, change.output))
    for (kind, reason, _), group in groupby(sorted(lines), lambda line: line[:3]):
        if _KINDS[kind] != "new":
            name = "UNEXPLAINED" if _KINDS[kind] == "unexplained" else _KINDS[kind]
            yield f"    {name} {braced([output for *_, output in group])}" + (f": {reason}" if reason else "")
    for finding in entry.findings:
        yield f"    {finding.kind.upper()} {finding.line}"


def closing_lines(result: Audit) -> Iterator[str]:
    """The verdict on the whole history."""
    if result.shallow:
        first = result.states[0].commit.short
        yield f"shallow clone: nothing before {first} was audited; fetch it with `git fetch --unshallow`"
    yield f"{len(result.states)} commits, {len(result.entries)} of them changed {LOCK} or a published copy"
    if result.unexplained:
        held = [change.output for change in result.unexplained if result.held(change)]
        still = f"HEAD still holds {braced(held)}" if held else "HEAD holds none of them any more"
        yield f"{_number(len(result.unexplained), 'output')} changed and unexplained; {still}"
    if result.findings:
        yield _number(len(result.findings), "contradiction")
    if result.holds:
        yield "every change is explained"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("s" if count != 1 else "")


def braced(paths: Iterable[str]) -> str:
    """Paths in few words: `runs/a/seed{0,1}/results/{knn.json,linear.json}`."""
    files: dict[str, list[str]] = {}
    for path in sorted(paths):
        files.setdefault(str(PurePosixPath(path).parent), []).append(PurePosixPath(path).name)
    seeds: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for folder, names in files.items():
        found = SEED.search(folder)
        seeds.setdefault((SEED.sub("seed*", folder), tuple(names)), []).append(found[0][4:] if found else "")
    return " ".join(f"{folder.replace('*', _set(own), 1)}/{_set(names)}" for (folder, names), own in seeds.items())


def _set(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{{{','.join(names)}}}"


def reasons(change: Change, changes: Mapping[str, Change]) -> list[str]:
    """Why an output changed, in words. `changes` are those of the same commit, by output."""
    if change.kind in ("removed", "new"):
        return []
    if change.kind == "merged":
        return [f"taken from the side of {change.earlier.short}"] if change.earlier else []
    if change.kind == "unexplained" and change.earlier:
        return [f"{change.earlier.short} recorded other bytes from the same inputs"]
    said = ["inputs and bytes are again those of " + change.earlier.short] if change.earlier else []
    words = causes_in_words(change.causes, changes)
    return [*said, *(_relative(word, change.output) for word in words)] or ["none of its inputs changed"]


def _relative(word: str, output: str) -> str:
    """Leave out the folder of a file that lies beside or above the output, such as a run's own."""
    for folder in PurePosixPath(output).parents[:-2]:
        word = word.removeprefix(f"{folder}/")
    return word


def causes_in_words(causes: Sequence[Cause], changes: Mapping[str, Change]) -> list[str]:
    """Command, parameters and files of its own first, then what comes from other stages; long lists are cut."""
    refuted = [f"{_cause(cause)}, REFUTED: {cause.refuted}" for cause in causes if cause.refuted]
    good = [cause for cause in causes if not cause.refuted]
    unexplained = [path for path, change in changes.items() if change.kind == "unexplained"]
    upstream = sorted((cause for cause in good if cause.upstream), key=lambda cause: cause.file not in unexplained)
    words = [_cause(cause) + (" (itself UNEXPLAINED)" if cause.file in unexplained else "") for cause in upstream]
    parameters = [cause for cause in good if cause.kind == "parameter"]
    parameters.sort(key=lambda cause: cause.before is None or cause.after is None)  # first what had a value before
    files = [_cause(cause) for cause in good if cause.kind != "parameter" and not cause.upstream]
    named = _cut([*map(_cause, parameters)], " parameters")
    return [*_cut(refuted), *_cut(files), *named, *_cut(words, " upstream outputs")]


def _cut(words: Sequence[str], noun: str = "") -> list[str]:
    unique = list(dict.fromkeys(words))
    more = len(unique) - _NAMED
    return unique if more <= 1 else [*unique[:_NAMED], f"{more} more{noun}"]


def _cause(cause: Cause) -> str:
    if cause.kind == "command":
        return f"command {_quoted(cause.before)} -> {_quoted(cause.after)}"
    if cause.kind == "parameter":
        before, after = cause.before or "absent", cause.after or "absent"
        return f"{cause.key} {before} -> {after}" if max(len(before), len(after)) <= _LONGEST else cause.key
    if cause.before is None or cause.after is None:
        return f"{cause.file} {'added' if cause.before is None else 'dropped'}"
    named = cause.sources[:_NAMED]
    more = f" and {len(cause.sources) - _NAMED} more" if len(cause.sources) > _NAMED else ""
    return f"{cause.file} ({', '.join(named)}{more})" if named else cause.file


def _quoted(text: str | None) -> str:
    text = repr(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
