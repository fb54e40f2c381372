"""Whether the checkout would still build what `dvc.lock` records. Only hashes are compared: no training, no data.

Two kinds of problems. *Stale*: code, configuration or environment changed since `dvc.lock` was written; that is
accepted if the first line of the published table says so. *Broken*: the lock contradicts itself, or a file is not what
the lock says; that is never accepted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from polygrain.provenance.differences import AGAIN, Claim, differences
from polygrain.provenance.files import write_bytes
from polygrain.provenance.hashes import Hashes, md5_bytes
from polygrain.provenance.judge import objection_to_inputs, objection_to_outputs
from polygrain.provenance.lock import LOCK, Lock, Locked, read_lock
from polygrain.provenance.pipeline import PIPELINE, dvc_yaml, parameters
from polygrain.provenance.stage import Stage, ancestry, makers

STALE = b"> **Stale:**"
Facts = Callable[[Stage], str]
"""What differs between the environment of a stage's own record and that of its published one, in words."""


@dataclass(frozen=True)
class Problem:
    """One difference between checkout and lock; `stage` is None when it concerns no single stage."""

    line: str
    stage: str | None
    stale: bool


@dataclass(frozen=True)
class Standing:
    """`holds`: no problem. `marked stale`: outdated, and every table concerned says so. `fails`: all other cases."""

    state: Literal["holds", "marked stale", "fails"]
    lines: tuple[str, ...]


def verdict(
    stages: Sequence[Stage],
    root: Path,
    published: Mapping[Path, Path],
    facts: Facts = lambda _: "",
    beside: Sequence[Stage] = (),
) -> Standing:
    """Judge the problems that `find_problems` finds by the marks on the published Markdown tables.

    A stale problem is accepted when every table that descends from its stage is marked (every table,
    when none descends from it). A mark without a reason fails as well.
    """
    problems = find_problems(stages, root, published, facts, beside)
    tables = _ancestry_of_tables(stages, published)
    marked = {table for table in tables if is_marked_stale(root / table)}
    reasons = _reasons(problems, tables)
    failures = [problem.line for problem in problems if not problem.stale or not tables]
    unmarked = [table for table, lines in reasons.items() if lines and table not in marked]
    failures += [line for table in unmarked for line in reasons[table] if line not in failures]
    failures += [f"{table}: does not say that it is stale; {AGAIN}, or mark it" for table in unmarked]
    groundless = sorted(table for table in marked if not reasons[table])
    failures += [f"{table}: marked stale without a reason; run `polygrain record`" for table in groundless]
    if failures:
        return Standing("fails", tuple(dict.fromkeys(failures)))
    return Standing("marked stale" if problems else "holds", tuple(problem.line for problem in problems))


def mark_tables(
    stages: Sequence[Stage], root: Path, published: Mapping[Path, Path], beside: Sequence[Stage] = ()
) -> list[Path]:
    """Mark each published Markdown table that is stale, unmark the others; return the marked ones."""
    problems = find_problems(stages, root, published, beside=beside)
    reasons = _reasons(problems, _ancestry_of_tables(stages, published))
    present = {table: lines for table, lines in reasons.items() if (root / table).is_file()}
    for table, lines in present.items():
        mark_stale(root / table, lines)
    return [table for table, lines in present.items() if lines]


def mark_stale(published_markdown: Path, problems: Sequence[str]) -> None:
    """Put a line that says "stale" and why on top of a table, in place of an older one.

    Without problems an older line is only removed. Everything below it stays as it is.
    """
    content = published_markdown.read_bytes()
    marked = without_mark(content)
    if problems:
        count = "1 difference" if len(problems) == 1 else f"{len(problems)} differences, the first"
        reason = f" code or params changed since these numbers were made; {count}: {problems[0]}\n\n"
        marked = STALE + reason.encode() + marked
    if marked != content:
        write_bytes(published_markdown, marked)


def is_marked_stale(published_markdown: Path) -> bool:
    """Whether the file starts with a stale line."""
    return published_markdown.is_file() and published_markdown.read_bytes().startswith(STALE)


def without_mark(content: bytes) -> bytes:
    """A published table without the line that says that it is stale."""
    if not content.startswith(STALE):
        return content
    return content.partition(b"\n")[2].removeprefix(b"\n")


def find_problems(
    stages: Sequence[Stage],
    root: Path,
    published: Mapping[Path, Path],
    facts: Facts = lambda _: "",
    beside: Sequence[Stage] = (),
) -> list[Problem]:
    """Every difference between the checkout and `dvc.lock`; none when the claim holds.

    The first three arguments are those of `record`; `facts` is called where a job made other bytes here; the lock may
    hold stages `beside` those that are judged. Stale marks do not count here: see `verdict`. Raises UserError when a
    configuration is missing or `dvc.lock` is broken.
    """
    lock = read_lock(root)
    if not lock.stages:
        return [Problem(f"{LOCK}: missing or empty; {AGAIN}", None, stale=True)]
    pipeline, together = root / PIPELINE, list({stage.name: stage for stage in (*stages, *beside)}.values())
    problems = []
    if not pipeline.is_file() or pipeline.read_text(encoding="utf-8") != dvc_yaml(together, root):
        problems.append(Problem(f"{PIPELINE}: differs from the generated text; {AGAIN}", None, stale=True))
    known = {locked.name for stage in together if (locked := lock.find(stage))}
    for name in sorted(set(lock.stages) - known):
        problems.append(Problem(f"{name}: in {LOCK}, but no job any more; {AGAIN}", None, stale=True))
    made, hashes = makers(stages), Hashes(root)
    for stage in sorted(stages, key=lambda stage: stage.name):
        problems += _check_stage(stage, root, lock, made, hashes, facts)
    problems += _check_published(root, lock, made, published)
    return problems


def _check_stage(
    stage: Stage, root: Path, lock: Lock, made: Mapping[Path, Stage], hashes: Hashes, facts: Facts
) -> Iterator[Problem]:
    # an upstream output is compared within the lock: a clone without data can be checked
    upstream = {path: Claim(made[path].name, lock.md5(path)) for path in stage.dependencies if path in made}
    locked = lock.find(stage)
    for found in differences(stage, root, locked, upstream, hashes):
        yield Problem(f"{stage.name}: {found.what}; {found.remedy}", stage.name, found.stale)
    if locked is None:
        return
    for output in sorted(stage.outputs):
        if hashes.md5(output) not in (None, locked.outputs.get(str(output))):
            why = f"{_reason(stage, root, locked, hashes, facts)}, or run `polygrain restore`"
            yield Problem(f"{output}: {why}", stage.name, stale=False)


def _reason(stage: Stage, root: Path, locked: Locked, hashes: Hashes, facts: Facts) -> str:
    """Why an output has other bytes than the lock holds, as far as the job's own record proves it; what to do."""
    if objection_to_outputs(stage, root, hashes) or objection_to_inputs(stage, root, hashes):
        return f"edited by hand or rebuilt since it was recorded; {AGAIN}"
    read = [str(path) for path in stage.dependencies if hashes.md5(path) != locked.dependencies.get(str(path))]
    if read or parameters(root / stage.config_path) != locked.parameters.get(str(stage.config_path), {}):
        return f"rebuilt from another {read[0] if read else stage.config_path} than recorded; {AGAIN}"
    audit = f"look for the cause with `polygrain audit --rebuild {stage.outputs[0]}`"
    return f"its job made other bytes here than {LOCK} holds of the same inputs{facts(stage)}; {audit}"


def _check_published(
    root: Path, lock: Lock, made: Mapping[Path, Stage], published: Mapping[Path, Path]
) -> Iterator[Problem]:
    for source, copy in sorted(published.items()):
        md5 = lock.md5(source)
        if not (root / copy).is_file():
            yield Problem(f"{copy}: missing; {AGAIN}", made[source].name, stale=False)
        elif md5 and md5_bytes(without_mark((root / copy).read_bytes())) != md5:
            yield Problem(f"{copy}: is not the {source} of {LOCK}; {AGAIN}", made[source].name, stale=False)


def _ancestry_of_tables(stages: Sequence[Stage], published: Mapping[Path, Path]) -> dict[Path, set[str]]:
    """For each published Markdown file the names of all stages that it was made by."""
    made = makers(stages)
    return {
        copy: {stage.name for stage in ancestry(made[source], made)}
        for source, copy in sorted(published.items())
        if copy.suffix == ".md"
    }


def _reasons(problems: Sequence[Problem], tables: Mapping[Path, set[str]]) -> dict[Path, list[str]]:
    """For each table the stale problems that its mark must name."""
    owned = set().union(*tables.values())
    return {
        table: [
            problem.line
            for problem in problems
            if problem.stale and (problem.stage in ancestors or problem.stage not in owned)
        ]
        for table, ancestors in tables.items()
    }
