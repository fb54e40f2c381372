"""A small project of its own in which runs are rebuilt: code and params copied, data read where it lies."""

import fcntl
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from polygrain.cli.claims import job_of
from polygrain.config.inputs import write_inputs
from polygrain.config.project import Project
from polygrain.config.runs import Run
from polygrain.config.stages import Stage, run_stages
from polygrain.provenance.checklock import find_problems
from polygrain.provenance.dvcfiles import LOCK, PIPELINE, md5_file, read_lock
from polygrain.provenance.errors import UserError

FOLDER = Path("build/determinism")
COPIED = ("Snakefile", "requirements.lock", "params", "src/polygrain", "workflow/schemas", str(LOCK), str(PIPELINE))

Claims = Mapping[Path, str]
"""Output, relative to a project's root -> MD5 of its bytes, DVC's name for them."""


@contextmanager
def folder_of(project: Project) -> Iterator[Path]:
    """The folder for scratch projects, empty; what an earlier call left there is removed, what this one leaves stays.

    Raises UserError when another process uses it.
    """
    folder = project.root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another `polygrain determinism` is at work here; wait for it") from None
        shutil.rmtree(folder)
        folder.mkdir()
        yield folder


def scratch_project(project: Project, root: Path) -> Project:
    """Copy what decides a run's bits to `root`, so that an edit meanwhile touches nothing, and link the data."""
    for name in COPIED:
        source, copy = project.root / name, root / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy2(source, copy)
    (root / "data").symlink_to(project.root / "data")
    return Project(root)


@dataclass(frozen=True)
class Reference:
    """What a run's outputs must be. `reason` says why it is not what dvc.lock holds; empty when it is."""

    claims: Claims
    reason: str


def stages_of(scratch: Project, run: Run) -> Sequence[Stage]:
    """The stages of a run with their inputs written into the scratch project. Raises UserError without the data."""
    stages = run_stages(scratch, run)
    for stage in stages:
        write_inputs(scratch, stage)
    data = [path for stage in stages for path in stage.inputs if path.parts[0] == "data"]
    missing = [path for path in data if not (scratch.root / path).is_file()]
    if missing:
        raise UserError(f"{missing[0]}: not there yet; build it with `snakemake --cores all {missing[0]}`")
    return stages


def recorded(scratch: Project, stages: Sequence[Stage]) -> Reference:
    """The claims of dvc.lock on a run, or the reason why it has none on this code, these params and these data."""
    locked = read_lock(scratch.root)
    jobs = [job_of(stage) for stage in stages]
    names = {job.name for job in jobs}
    for problem in find_problems(jobs, scratch.root, {}):
        if problem.stage in names:
            return Reference({}, problem.line.partition(": ")[2].rpartition("; ")[0])
    if not names <= set(locked):
        return Reference({}, f"not in {LOCK}")
    return Reference({path: locked[job.name].outputs[path.as_posix()] for job in jobs for path in job.outputs}, "")


def hashes(root: Path, stages: Sequence[Stage]) -> Claims:
    """MD5 of the outputs that are there."""
    paths = [path for stage in stages for path in stage.outputs]
    return {path: md5_file(root / path) for path in paths if (root / path).is_file()}
