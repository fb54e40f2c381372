"""Does the checkout still stand behind its claims? Answered from hashes alone: no training, no data.

Two kinds of problems. *Stale*: code, config or environment moved on since `dvc.lock` was written; that is
honest as long as the published table says so in its first line. *Broken*: the lock contradicts itself, or a
file is not what the lock says; no mark excuses that.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from polygrain.provenance.differences import AGAIN, Claim, differences
from polygrain.provenance.dvcfiles import LOCK, PIPELINE, Locked, md5_bytes, read_lock
from polygrain.provenance.files import write_bytes
from polygrain.provenance.hashes import Hashes
from polygrain.provenance.pipeline import Job, by_job, check_published, dvc_yaml, inputs_of

STALE = b"> **Stale:**"


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
    failures += [f"{table}: does not say that it is stale; {AGAIN}, or mark it" for table in unmarked]
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
    locked = by_job(read_lock(root), jobs)
    if not locked:
        return [Problem(f"{LOCK}: missing or empty; {AGAIN}", None, stale=True)]
    pipeline = root / PIPELINE
    problems = []
    if not pipeline.is_file() or pipeline.read_text() != dvc_yaml(jobs, root):
        problems.append(Problem(f"{PIPELINE}: differs from the generated text; {AGAIN}", None, stale=True))
    for name in sorted(set(locked) - {job.name for job in jobs}):
        problems.append(Problem(f"{name}: in {LOCK}, but no job any more; {AGAIN}", None, stale=True))
    made = {path: job for job in jobs for path in job.outputs}
    hashes = Hashes(root)
    for job in sorted(jobs, key=lambda job: job.name):
        problems += _check_stage(job, root, locked, made, hashes)
    problems += _check_published(root, locked, made, published)
    return problems


def _check_stage(
    job: Job, root: Path, locked: Mapping[str, Locked], made: Mapping[Path, Job], hashes: Hashes
) -> Iterator[Problem]:
    upstream = {path: _claim(path, locked, made[path]) for path in inputs_of(job) if path in made}
    for found in differences(job, root, locked.get(job.name), upstream, hashes):
        yield Problem(f"{job.name}: {found.what}; {found.remedy}", job.name, found.stale)
    outputs = locked[job.name].outputs if job.name in locked else {}
    for output in sorted(job.outputs):
        md5 = outputs.get(output.as_posix())
        if md5 and hashes.md5(output) not in (None, md5):
            line = f"{output}: edited by hand or rebuilt since it was recorded; {AGAIN}, or run `polygrain restore`"
            yield Problem(line, job.name, stale=False)


def _claim(path: Path, locked: Mapping[str, Locked], maker: Job) -> Claim:
    """An upstream output is compared within the lock: a clone without data can be checked."""
    return Claim(maker.name, locked[maker.name].outputs.get(path.as_posix()) if maker.name in locked else None)


def _check_published(
    root: Path, locked: Mapping[str, Locked], made: Mapping[Path, Job], published: Mapping[Path, Path]
) -> Iterator[Problem]:
    for source, copy in sorted(published.items()):
        name = made[source].name
        md5 = locked[name].outputs.get(source.as_posix()) if name in locked else None
        if not (root / copy).is_file():
            yield Problem(f"{copy}: missing; {AGAIN}", name, stale=False)
        elif md5 and md5_bytes(without_mark((root / copy).read_bytes())) != md5:
            yield Problem(f"{copy}: is not the {source} of {LOCK}; {AGAIN}", name, stale=False)


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
