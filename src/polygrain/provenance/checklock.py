"""Does the checkout still stand behind its claims? Answered from hashes alone: no training, no data.

Two kinds of problems. *Stale*: code, config or environment moved on since `dvc.lock` was written; that is
honest as long as the published table says so in its first line. *Broken*: the lock contradicts itself, or a
file is not what the lock says; no mark excuses that.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from polygrain.provenance.dvcfiles import LOCK, PIPELINE, Locked, md5_bytes, md5_file, read_lock
from polygrain.provenance.files import write_bytes
from polygrain.provenance.pipeline import Job, check_published, dvc_yaml, inputs_of, parameters

STALE = b"> **Stale:**"
_AGAIN = "rebuild and run `polygrain record`"
_LONGEST = 200  # characters of two values that a line may quote


@dataclass(frozen=True)
class Problem:
    """One difference between checkout and lock; `stage` is None when it concerns no single job."""

    line: str
    stage: str | None
    stale: bool


@dataclass(frozen=True)
class Verdict:
    """`holds`: nothing to say. `marked stale`: outdated, and every table concerned says so. `fails`: else."""

    state: Literal["holds", "marked stale", "fails"]
    lines: tuple[str, ...]


def check_lock(jobs: Sequence[Job], root: Path, published: Mapping[Path, Path]) -> list[str]:
    """Return one line per difference between the checkout and `dvc.lock`; empty when the claim holds.

    The arguments are those of `record`. Stale marks do not count here: see `verdict`. Raises UserError when a
    config is missing or `dvc.lock` is broken.
    """
    return [problem.line for problem in find_problems(jobs, root, published)]


def verdict(jobs: Sequence[Job], root: Path, published: Mapping[Path, Path]) -> Verdict:
    """Judge `check_lock`'s findings by the marks on the published Markdown tables.

    A stale problem is accepted when every table that descends from its job is marked (every table at all,
    when none descends from it). A mark without a reason fails as well: a published sentence has to be true.
    """
    problems = find_problems(jobs, root, published)
    tables = _ancestry_of_tables(jobs, published)
    marked = {table for table in tables if is_marked_stale(root / table)}
    reasons = _reasons(problems, tables)
    failures = [problem.line for problem in problems if not problem.stale or not tables]
    unmarked = [table for table, lines in reasons.items() if lines and table not in marked]
    failures += [line for table in unmarked for line in reasons[table] if line not in failures]
    failures += [f"{table}: does not say that it is stale; {_AGAIN}, or mark it" for table in unmarked]
    groundless = sorted(table for table in marked if not reasons[table])
    failures += [f"{table}: marked stale without a reason; run `polygrain record`" for table in groundless]
    if failures:
        return Verdict("fails", tuple(dict.fromkeys(failures)))
    return Verdict("marked stale" if problems else "holds", tuple(problem.line for problem in problems))


def mark_tables(jobs: Sequence[Job], root: Path, published: Mapping[Path, Path]) -> list[Path]:
    """Mark each published Markdown table that is stale, unmark the others; return the marked ones."""
    problems = find_problems(jobs, root, published)
    reasons = _reasons(problems, _ancestry_of_tables(jobs, published))
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
        reason = f" the checkout has moved on since these numbers were made; {count}: {problems[0]}\n\n"
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


def find_problems(jobs: Sequence[Job], root: Path, published: Mapping[Path, Path]) -> list[Problem]:
    """Return the differences behind `check_lock`, with their kind and job."""
    check_published(jobs, published)
    locked = read_lock(root)
    if not locked:
        return [Problem(f"{LOCK}: missing or empty; {_AGAIN}", None, stale=True)]
    pipeline = root / PIPELINE
    problems = []
    if not pipeline.is_file() or pipeline.read_text() != dvc_yaml(jobs, root):
        problems.append(Problem(f"{PIPELINE}: differs from the generated text; {_AGAIN}", None, stale=True))
    for name in sorted(set(locked) - {job.name for job in jobs}):
        problems.append(Problem(f"{name}: in {LOCK}, but no job any more; {_AGAIN}", None, stale=True))
    made = {path: job for job in jobs for path in job.outputs}
    for job in sorted(jobs, key=lambda job: job.name):
        problems += _check_stage(job, root, locked, made)
    problems += _check_published(root, locked, made, published)
    return problems


def _check_stage(job: Job, root: Path, locked: Mapping[str, Locked], made: Mapping[Path, Job]) -> Iterator[Problem]:
    stage = locked.get(job.name)
    if stage is None:
        yield Problem(f"{job.name}: not in {LOCK}; {_AGAIN}", job.name, stale=True)
        return
    if stage.command != job.command:
        line = f"{job.name}: its command was {stage.command!r}, now it is {job.command!r}; {_AGAIN}"
        yield Problem(line, job.name, stale=True)
    yield from _check_parameters(job, root, stage)
    yield from _check_dependencies(job, root, locked, made)
    yield from _check_outputs(job, root, stage)


def _check_parameters(job: Job, root: Path, stage: Locked) -> Iterator[Problem]:
    then = stage.parameters.get(job.config.as_posix(), {})
    now = parameters(root / job.config)
    for key in sorted({*then, *now}):
        before, after = (_printed(values, key) for values in (then, now))
        if before != after:
            change = f"was {before}, now it is {after}" if len(before + after) < _LONGEST else "changed"
            line = f"{job.name}: {key} in {job.config} {change}; {_AGAIN}"
            yield Problem(line, job.name, stale=True)


def _printed(values: Mapping[str, Any], key: str) -> str:
    """Print a value with its type visible, so that 1, 1.0 and "1" differ."""
    return json.dumps(values[key], sort_keys=True, default=repr) if key in values else "absent"


def _check_dependencies(
    job: Job, root: Path, locked: Mapping[str, Locked], made: Mapping[Path, Job]
) -> Iterator[Problem]:
    then = locked[job.name].dependencies
    for path in inputs_of(job):
        if path.as_posix() not in then:
            yield Problem(f"{job.name}: depends on {path}, {LOCK} does not know; {_AGAIN}", job.name, stale=True)
        else:
            yield from _check_dependency(job, path, then[path.as_posix()], root, locked, made)
    for name in sorted(set(then) - {path.as_posix() for path in inputs_of(job)}):
        line = f"{job.name}: depended on {name} by {LOCK}, now it does not; {_AGAIN}"
        yield Problem(line, job.name, stale=True)


def _check_dependency(
    job: Job, path: Path, md5: str, root: Path, locked: Mapping[str, Locked], made: Mapping[Path, Job]
) -> Iterator[Problem]:
    """Compare an upstream output within the lock, any other file with its bytes in the checkout."""
    if path in made:
        upstream = locked.get(made[path].name)
        if upstream and upstream.outputs.get(path.as_posix(), md5) != md5:
            line = f"{job.name}: used another {path} than {made[path].name} made, by {LOCK}; {_AGAIN}"
            yield Problem(line, job.name, stale=False)
    elif not (root / path).is_file():
        yield Problem(f"{job.name}: {path} is missing, so it proves nothing; put it back", job.name, stale=False)
    elif md5_file(root / path) != md5:
        yield Problem(f"{job.name}: {path} changed since {LOCK} was written; {_AGAIN}", job.name, stale=True)


def _check_outputs(job: Job, root: Path, stage: Locked) -> Iterator[Problem]:
    names = {path.as_posix() for path in job.outputs}
    for name in sorted(names ^ set(stage.outputs)):
        line = f"{job.name}: {name} is an output only {'now' if name in names else f'in {LOCK}'}; {_AGAIN}"
        yield Problem(line, job.name, stale=True)
    for name in sorted(names & set(stage.outputs)):
        path = root / name
        if path.is_file() and md5_file(path) != stage.outputs[name]:
            line = f"{name}: edited by hand or rebuilt since it was recorded; {_AGAIN}, or run `dvc checkout`"
            yield Problem(line, job.name, stale=False)


def _check_published(
    root: Path, locked: Mapping[str, Locked], made: Mapping[Path, Job], published: Mapping[Path, Path]
) -> Iterator[Problem]:
    for source, copy in sorted(published.items()):
        name = made[source].name
        md5 = locked[name].outputs.get(source.as_posix()) if name in locked else None
        if not (root / copy).is_file():
            yield Problem(f"{copy}: missing; {_AGAIN}", name, stale=False)
        elif md5 and md5_bytes(without_mark((root / copy).read_bytes())) != md5:
            yield Problem(f"{copy}: is not the {source} of {LOCK}; {_AGAIN}", name, stale=False)


def _ancestry_of_tables(jobs: Sequence[Job], published: Mapping[Path, Path]) -> dict[Path, set[str]]:
    """For each published Markdown file the names of all jobs that it was made by."""
    made = {path: job for job in jobs for path in job.outputs}
    tables: dict[Path, set[str]] = {}
    for source, copy in sorted(published.items()):
        if copy.suffix == ".md":
            ancestors: set[str] = set()
            waiting = [made[source]]
            while waiting:
                job = waiting.pop()
                if job.name not in ancestors:
                    ancestors.add(job.name)
                    waiting += [made[path] for path in job.dependencies if path in made]
            tables[copy] = ancestors
    return tables


def _reasons(problems: Sequence[Problem], tables: Mapping[Path, set[str]]) -> dict[Path, list[str]]:
    """For each table the stale problems that it has to own up to."""
    owned = set().union(*tables.values())
    return {
        table: [
            problem.line
            for problem in problems
            if problem.stale and (problem.stage in ancestors or problem.stage not in owned)
        ]
        for table, ancestors in tables.items()
    }
