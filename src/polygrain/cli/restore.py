"""`polygrain restore`: recorded outputs back into a checkout, and a table of what became of each."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from polygrain.cli.claims import jobs_of
from polygrain.cli.doctor import obstacles
from polygrain.config.project import Project
from polygrain.provenance.errors import UserError
from polygrain.provenance.pipeline import Job, to_run
from polygrain.provenance.restore import Restored, restore

GOOD = ("restored", "in place", "built here")


def restore_targets(project: Project, targets: Sequence[str]) -> int:
    """Restore the tables, runs or single files named, with everything that they are made from; print the verdicts.

    Returns 0, also when something is left to train. Raises UserError for a target that does not exist.
    """
    jobs = jobs_of(project, targets)
    found = restore(jobs, project.root, lambda: _refuse_if_busy(project))
    print("\n".join(report(jobs, found, [Path(target) for target in targets])))
    return 0


def _refuse_if_busy(project: Project) -> None:
    lines = obstacles(project.root)
    if lines:
        raise UserError(f"{lines[0]}; then restore again")


def report(jobs: Sequence[Job], found: Mapping[str, Restored], targets: Sequence[Path]) -> list[str]:
    """Counts per verdict, a line for each target and for each job that is not simply back, and what runs next."""
    wanted = [job.name for job in jobs if set(targets) & set(job.outputs)]
    special = [job for job in jobs if job.name in wanted or found[job.name].verdict not in ("restored", "in place")]
    width = max(len(job.name) for job in special) if special else 0
    lines = [f"{job.name:{width}}  {_verdict(found[job.name])}" for job in special]
    counts = Counter(found[job.name].verdict for job in jobs)
    lines.append(
        ", ".join(f"{counts[verdict]} {verdict}" for verdict in (*GOOD, "stale", "missing") if counts[verdict])
    )
    return [*lines, _next(jobs, found, wanted)]


def _verdict(result: Restored) -> str:
    md5 = next(iter(result.md5.values()), "")
    shown = f"{result.verdict:10}  {md5[:8]:8}  {result.reason}"
    return shown.rstrip()


def _next(jobs: Sequence[Job], found: Mapping[str, Restored], wanted: Sequence[str]) -> str:
    """What Snakemake will run for the targets."""
    absent = {path for job in jobs for path in job.outputs if not _present(found[job.name], path)}
    running = to_run(jobs, absent, wanted)
    trainings = sum(name.startswith("pretrain-") for name in running)
    if not running:
        return "nothing to do: everything is in place"
    rest = f"{len(running)} jobs" if len(running) > 1 else "1 job"
    if not trainings:
        return f"nothing to train: snakemake runs {rest}, no training"
    return f"snakemake runs {trainings} training{'s' if trainings > 1 else ''} ({rest} in all)"


def _present(result: Restored, path: Path) -> bool:
    return result.verdict in GOOD or (result.verdict == "missing" and path not in result.lacking)
