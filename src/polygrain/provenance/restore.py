"""Bring recorded outputs back into a checkout, with proof, so that Snakemake runs only what is stale.

After a plain `dvc pull`, file times decide what Snakemake runs. So it may train everything again, or, without its own
metadata of the last run, accept outputs of parameters that were edited since. Here content hashes decide (`judge`).
Outputs that neither `dvc.lock` nor a record confirms are deleted. The others are stamped with Snakemake's own
`--touch`, which sets the times and writes the metadata.

Every byte is hashed here and compared with `dvc.lock`. DVC's own status is not used: DVC trusts its cache, and `dvc
status` calls a checkout clean even if a cached object was damaged. Command, parameters, dependencies and outputs are
each compared with the lock.
"""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from polygrain.provenance.bring import bring
from polygrain.provenance.dvccommand import settings
from polygrain.provenance.errors import UserError
from polygrain.provenance.hashes import Hashes
from polygrain.provenance.judge import Finding, judge, objection_to_outputs
from polygrain.provenance.lock import LOCK, Lock, read_locks
from polygrain.provenance.stage import Stage, in_order

# no hooks: `onsuccess` would run here as well; no lock: any lock then belongs to another process
TOUCH = (
    *("--touch", "--forceall", "--rerun-incomplete", "--no-hooks", "--nolock"),
    *("--profile", "none", "--workflow-profile", "none", "--cores", "1", "--quiet", "all"),
)

Outcome = Literal["restored", "in place", "built here", "stale", "missing"]


@dataclass(frozen=True)
class Restored:
    """The outcome for one stage's outputs.

    `md5`: of each confirmed output, in place or not. `lacking`: those not in place. `removed`: those that were deleted
    because their bytes were not confirmed.
    """

    outcome: Outcome
    reason: str
    md5: Mapping[Path, str]
    lacking: tuple[Path, ...]
    removed: tuple[Path, ...]


def restore(stages: Sequence[Stage], root: Path, check_free: Callable[[], None]) -> dict[str, Restored]:
    """Bring back the outputs of `stages` that `dvc.lock` confirms; return an outcome per stage name.

    Outputs that only the record of this tree's own run confirms stay; all others are deleted. `stages` must hold the
    ancestors of each of them, with their staleness files up to date. `check_free` raises when another process works in
    this tree; it is called before anything changes and again before anything is stamped.
    Raises UserError without a lock, for one with merge conflicts, and for what DVC or Snakemake refuse.
    """
    locks = read_locks(root)
    if not any(lock.stages for lock in locks):
        raise UserError(f"{root / LOCK}: missing or empty, so there is nothing to restore; build with snakemake")
    check_free()
    with _alone(root):
        return _restore(stages, root, locks, check_free)


def _restore(
    stages: Sequence[Stage], root: Path, locks: Sequence[Lock], check_free: Callable[[], None]
) -> dict[str, Restored]:
    remote = settings(root).get("core.remote")
    hashes = Hashes(root)
    hashes.read_ahead(path for stage in stages for path in stage.outputs)
    first = judge(stages, root, locks, hashes)
    why: dict[Path, str] = {}
    removed: set[Path] = set()
    last = first
    while True:
        # files that arrive can complete a record, which then confirms more outputs
        while lacking := {
            path: found.claims[path]
            for found in last.values()
            if found.claims
            for path in found.lacking
            if path not in why
        }:
            why |= dict.fromkeys(lacking, "") | bring(lacking, root, remote, hashes)
            last = judge(stages, root, locks, hashes)
        check_free()
        for stage in stages:
            removed |= _remove(root, last[stage.name].lacking)
            if first[stage.name].lacking and objection_to_outputs(stage, root, hashes):
                # its record describes other bytes than those in place
                (root / stage.sidecar).unlink(missing_ok=True)
        _stamp(stages, root, last)
        stamped, last = last, judge(stages, root, locks, hashes)
        if last == stamped:  # else params or code changed during restore; judge again
            break
    return {stage.name: _result(stage, first[stage.name], last[stage.name], why, removed) for stage in stages}


def stamp(stages: Sequence[Stage], root: Path) -> dict[str, Finding]:
    """Give confirmed outputs in place the present time, for Snakemake; bring and remove nothing.

    Arguments and errors are those of `restore`; returns the finding of each stage.
    """
    with _alone(root):
        findings = judge(stages, root, read_locks(root), Hashes(root))
        _stamp(stages, root, findings)
    return findings


def _result(stage: Stage, first: Finding, last: Finding, why: Mapping[Path, str], removed: Set[Path]) -> Restored:
    outcome: Outcome
    match last.state:
        case "in place":
            outcome, reason = "in place" if first.state == "in place" else "restored", ""
        case "absent":
            outcome, reason = "missing", why[last.lacking[0]]
        case state:
            outcome, reason = state, last.reason
    return Restored(
        outcome, reason, last.claims, last.lacking, tuple(path for path in stage.outputs if path in removed)
    )


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the operating system's lock against a second restore; it is gone with this process, however that ends."""
    path = root / ".dvc/tmp/polygrain-restore.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{root}: another polygrain restore works here; wait for it") from None
        yield


def _remove(root: Path, outputs: Sequence[Path]) -> set[Path]:
    """Delete those of the outputs that are there; return them."""
    removed = {path for path in outputs if os.path.lexists(root / path)}
    for path in removed:
        try:
            (root / path).unlink()
        except OSError as error:
            raise UserError(f"{path}: cannot be removed ({error.strerror}); do that and restore again") from None
    return removed


def _stamp(stages: Sequence[Stage], root: Path, findings: Mapping[str, Finding]) -> None:
    """Give confirmed outputs the present time, for Snakemake, and no others.

    All ancestors of such an output are confirmed as well, so `--forceall` reaches no other. An output whose time was
    in order keeps it: other tables share data sets with this one and must not look outdated.
    """
    proven = {stage.name: [path for path in stage.outputs if (root / path).is_file()] for stage in stages}
    proven = {name: paths for name, paths in proven.items() if paths and findings[name].claims}
    if not proven:
        return
    before = {path: (root / path).lstat().st_mtime_ns for paths in proven.values() for path in paths}
    targets = [str(paths[0]) for paths in proven.values()]
    command = [sys.executable, "-m", "snakemake", *TOUCH, "--", *targets]
    done = subprocess.run(command, cwd=root, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise UserError(
            f"{root}: snakemake --touch failed ({said[-1] if said else 'no message'}); correct that and restore again"
        )
    for stage in in_order(stages):
        _keep_times(stage, root, proven.get(stage.name, []), before)


def _keep_times(stage: Stage, root: Path, outputs: Sequence[Path], before: Mapping[Path, int]) -> None:
    """Put back the times of a stage's outputs if none of its inputs is newer."""
    inputs = [root / path for path in (stage.config_path, *stage.dependencies) if (root / path).is_file()]
    # for a link into DVC's cache both times count
    newest = max(max(path.lstat().st_mtime_ns, path.stat().st_mtime_ns) for path in inputs)
    if outputs and min(before[path] for path in outputs) >= newest:
        for path in outputs:
            os.utime(root / path, ns=(before[path], before[path]), follow_symlinks=False)
