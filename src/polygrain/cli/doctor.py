"""What blocks a build: something missing, a stale lock or a running job; and the command that clears it.

Also which packed data sets differ from what their source holds now.
"""

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from polygrain.cli.needs import missing
from polygrain.config.listing import is_listed, source_changes
from polygrain.config.project import Project
from polygrain.config.resolved import datasets_in
from polygrain.config.stages import stage_of


def examine(project: Project, *, unlock: bool) -> int:
    """Print findings with their remedies; with `unlock` remove a lock that no live process holds.

    Returns 1 if one is held, or if the machine or the user lacks what a build needs.
    """
    lacking = missing(project.root)
    for line in lacking:
        print(line)
    if lacking:
        return 1
    for line in _changed_sources(project):
        print(line)
    live = _live(project.root)
    lock = _snakemake_lock(project.root)
    for line in live:
        print(line)
    if live:
        return 1 if unlock and lock else 0
    if not lock:
        print("nothing stands in the way of a build")
    elif unlock:
        subprocess.run([sys.executable, "-m", "snakemake", "--unlock", "--cores", "1"], cwd=project.root, check=True)
        print("removed the lock of a stopped workflow")
    else:
        print("a stopped workflow left its lock; remove it with: snakemake --unlock")
        print("then continue with: snakemake --cores all --rerun-incomplete reports/table1.pdf")
    return 0


def _changed_sources(project: Project) -> Iterator[str]:
    """Packed data sets whose source is not what was packed any more."""
    for path in sorted(project.root.glob("data/*/manifest.json")):
        name = path.parent.name
        if name in datasets_in(project, "encoded"):
            stage = stage_of(project, "prepare", f"data/{name}")
            if is_listed(stage) and (what := source_changes(project.root, stage)):
                yield f"{stage.directory}: its source has changed since it was packed, {what}; snakemake packs it anew"


def obstacles(root: Path) -> list[str]:
    """What blocks a change of outputs now: live workflows and jobs, or a lock; one line with its remedy each."""
    gone = "a stopped workflow left its lock; remove it with `polygrain doctor --unlock`"
    return _live(root) or ([gone] if _snakemake_lock(root) else [])


def _live(root: Path) -> list[str]:
    lines = [f"snakemake is running here as process {number}{_wait(number)}" for number in _workflows(root)]
    return lines + [f"{run}: process {number} is working on it{_wait(number)}" for run, number in _running(root)]


def _wait(number: str) -> str:
    return f"; wait for it, or stop it with: kill {number}"


def _snakemake_lock(root: Path) -> bool:
    return any((root / ".snakemake" / "locks").glob("*.lock"))


def _workflows(root: Path) -> Iterator[str]:
    """Ids of live snakemake processes whose working directory is this project."""
    for process in psutil.process_iter(["cmdline", "cwd"]):  # None for what may not be asked
        arguments = process.info["cmdline"] or ()
        named = any(Path(argument).name == "snakemake" for argument in arguments[:3])
        if named and process.info["cwd"] == str(root) and "--unlock" not in arguments:
            yield str(process.pid)


def _running(root: Path) -> Iterator[tuple[str, str]]:
    """Runs whose lock a live process holds: (run directory, process id)."""
    for path in sorted(root.glob("runs/*/*/*/*/*/scratch/lock")):
        with path.open("r", encoding="utf-8") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                yield str(path.parents[1].relative_to(root)), stream.read().strip()
