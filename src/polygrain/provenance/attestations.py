"""Attestations: a run that was made by older code counts as made by the present code, because both gave equal bytes.

They are in one committed file, one per line; no rule reads or writes it. An attestation names the code hashes and the
environment that a run was recorded with (`old`) and those that were compared with it (`new`); nothing else may differ.
Attestations can form a chain: `new` of one is `old` of the next.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from polygrain.provenance.errors import UserError
from polygrain.provenance.files import json_line, write_if_changed

FILE = Path("reports/published/attestations.jsonl")


@dataclass(frozen=True)
class Inputs:
    """MD5 of the two files that decide a stage's outputs beside its configuration and data."""

    code: str
    environment: str


@dataclass(frozen=True)
class Attestation:
    """The stage of these outputs gives the same bytes from the code `new` as from the code `old`."""

    outputs: Mapping[str, str]
    """Path -> MD5 of what the stage was recorded with."""
    old: Inputs
    new: Inputs
    commit: str
    """Of the old code."""
    evidence: Mapping[str, Any]
    """What was run, how far, and which changed lines were exempt."""


def read_attestations(root: Path) -> tuple[Attestation, ...]:
    """All attestations, none without a file. Raises UserError for a broken file."""
    path = root / FILE
    if not path.is_file():
        return ()
    status = path.stat()
    return _read(path, status.st_mtime_ns, status.st_size)


@cache
def _read(path: Path, mtime_ns: int, size: int) -> tuple[Attestation, ...]:
    """Read once per process and state of the file; the last two arguments are the key of that state."""
    return parse_attestations(path.read_text(encoding="utf-8"), str(path))


def parse_attestations(text: str, place: str) -> tuple[Attestation, ...]:
    """The attestations of a file's text. Raises UserError, in which `place` names the file, for a broken one."""
    return tuple(_parse(line, f"{place}:{number}") for number, line in enumerate(text.splitlines(), 1))


def _parse(line: str, place: str) -> Attestation:
    try:
        said = json.loads(line)
        return Attestation(**{**said, "old": Inputs(**said["old"]), "new": Inputs(**said["new"])})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{place}: not an attestation ({error}); restore the file from git") from None


def write_attestations(root: Path, attestations: Iterable[Attestation]) -> None:
    """Replace the file by these; without any the file is removed."""
    lines = sorted(json_line(asdict(attestation)) for attestation in attestations)
    if lines:
        write_if_changed(root / FILE, "".join(lines))
    else:
        (root / FILE).unlink(missing_ok=True)


def chain(attestations: Sequence[Attestation], outputs: Mapping[str, str], old: Inputs, new: Inputs) -> bool:
    """Whether attestations lead from `old` to `new`, which differ, for a stage with these outputs."""
    steps = [(item.old, item.new) for item in attestations if item.outputs == outputs]
    return any(new in further for further in _follow(old, steps))


def behind(attestations: Sequence[Attestation], output: str, present: Inputs) -> int:
    """How many attestations a stage's outputs rest on, when `present` is what they count as made from."""
    steps = [(item.new, item.old) for item in attestations if output in item.outputs]
    return len(list(_follow(present, steps)))


def _follow(start: Inputs, steps: Sequence[tuple[Inputs, Inputs]]) -> Iterator[set[Inputs]]:
    """What the steps lead to from `start`: the inputs one step away, then those two steps away, and so on."""
    reached = {start}
    while further := {end for begin, end in steps if begin in reached} - reached:
        yield further
        reached |= further


def attested(
    attestations: Sequence[Attestation], outputs: Mapping[str, str], then: Mapping[str, str], now: Mapping[str, str]
) -> frozenset[str]:
    """The code hashes and environments among two sets of dependencies (path -> MD5) whose difference is attested.

    `outputs` are those of the stage (path -> MD5). Empty where nothing differs or the difference is not attested.
    """
    old, new = inputs_in(then), inputs_in(now)
    if old is None or new is None or old == new or not chain(attestations, outputs, old, new):
        return frozenset()
    return frozenset(path for path in (*then, *now) if is_code(path) or is_environment(path))


def inputs_in(dependencies: Mapping[str, str]) -> Inputs | None:
    """The code hashes and the environment among the dependencies of a stage; None without one of each."""
    code = [md5 for path, md5 in dependencies.items() if is_code(path)]
    environment = [md5 for path, md5 in dependencies.items() if is_environment(path)]
    return Inputs(code[0], environment[0]) if code and environment else None


def is_code(path: str) -> bool:
    """Whether a dependency holds a stage's code hashes."""
    return "code" in (Path(path).stem, Path(path).parent.name)


def is_environment(path: str) -> bool:
    """Whether a dependency is an environment: one file for all runs once, one per stage now."""
    return "environment" in (Path(path).stem, Path(path).parent.name)
