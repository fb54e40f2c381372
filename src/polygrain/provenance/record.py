"""Putting a finished build on record: `dvc.yaml`, `dvc.lock` and the published copies, in one step.

Runs after Snakemake, never inside a job. Nothing re-runs after it: DVC replaces each output by a link or a
copy with a new modification time, and the old one is put back. Git is left alone: committing is up to people.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from polygrain.provenance.dvcfiles import LOCK, PIPELINE, dump_yaml, load_yaml
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import atomic_path, read_json, sha256_file, write_if_changed
from polygrain.provenance.pipeline import Job, check_published, dvc_yaml, inputs_of


def record(jobs: Sequence[Job], root: Path, published: Mapping[Path, Path]) -> None:
    """Record the outputs of `jobs` in DVC and copy the published files.

    `published` maps an output to its copy; all paths are relative to `root`. Every output must still be what
    its job made, from inputs that are still in place. Afterwards `dvc.lock` lists exactly these jobs. Raises
    UserError naming the file that does not fit, or what DVC said; ValueError for a copy of no job's output.
    """
    check_published(jobs, published)
    pipeline = dvc_yaml(jobs, root)
    hashes: dict[Path, str] = {}
    for job in jobs:
        _check_outputs(job, root, hashes)
    for job in jobs:
        _check_inputs(job, root, hashes)
    write_if_changed(root / PIPELINE, pipeline)
    with _modification_times([root / path for job in jobs for path in job.outputs]):
        _commit(root)
    _tidy_lock(jobs, root)
    for source, copy in sorted(published.items()):
        _publish(root / source, root / copy)


def _check_outputs(job: Job, root: Path, hashes: dict[Path, str]) -> None:
    """Compare a job's outputs with its record; `hashes` remembers what was read already."""
    for output in job.outputs:
        if not (root / output).is_file():
            raise UserError(f"{output}: not built, or no plain file; run `snakemake --cores all {output}`")
    first = job.outputs[0]
    if not (root / job.sidecar).is_file():
        raise UserError(f"{first}: its record {job.sidecar} is missing; {_rebuild(first)}")
    said = read_json(root / job.sidecar)
    for output in job.outputs:
        if _current(output, root, hashes) != _said(said, "outputs", output):
            raise UserError(f"{output}: edited by hand since it was made; {_rebuild(output)}")


def _check_inputs(job: Job, root: Path, hashes: dict[Path, str]) -> None:
    """Compare a job's config and inputs with its record: the files in place may be newer than the outputs."""
    said = read_json(root / job.sidecar)
    first = job.outputs[0]
    for part, path in [("config", job.config), *(("inputs", path) for path in inputs_of(job))]:
        if _current(path, root, hashes) != _said(said, part, path):
            raise UserError(f"{first}: was made from another {path}; {_rebuild(first)}")


def _rebuild(path: Path) -> str:
    return f"rebuild it with `snakemake --cores all --force {path}`"


def _current(path: Path, root: Path, hashes: dict[Path, str]) -> str:
    if path not in hashes:
        hashes[path] = sha256_file(root / path)
    return hashes[path]


def _said(said: dict[str, Any], part: str, path: Path) -> str | None:
    """Look up the SHA-256 that a job's record gives for a file; None when it does not know the file."""
    entry = (said.get(part) or {}).get(path.as_posix())
    return entry["sha256"] if entry else None


@contextmanager
def _modification_times(paths: Sequence[Path]) -> Iterator[None]:
    """Put back the modification times of `paths` after the body, also when it raises.

    For a link into DVC's cache both times count to Snakemake: the link's own, and, for an input, also that of
    the cached file, which outputs with equal bytes share. So a cached file is set back to its oldest link.
    """
    before = {path: path.lstat().st_mtime_ns for path in paths}
    try:
        yield
    finally:
        for path, modified in before.items():
            if not os.path.lexists(path):
                continue
            os.utime(path, ns=(modified, modified), follow_symlinks=False)
            if path.is_symlink() and path.exists() and path.stat().st_mtime_ns > modified:
                with suppress(PermissionError):  # a cache shared with other people
                    os.utime(path, ns=(modified, modified))


def _commit(root: Path) -> None:
    """Run one `dvc commit` over all stages of `dvc.yaml` (stage by stage it takes quadratic time)."""
    command = [sys.executable, "-m", "dvc", "commit", "--force", str(PIPELINE)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = next((line for line in said if line.startswith("ERROR")), said[-1] if said else "no message")
        raise UserError(f"{root / LOCK}: dvc commit failed ({reason}); correct that and record again")


def _tidy_lock(jobs: Sequence[Job], root: Path) -> None:
    """Drop stages that are no longer jobs, and sort the rest, in DVC's own style."""
    content = load_yaml(root / LOCK)
    stages = {job.name: content["stages"][job.name] for job in sorted(jobs, key=lambda job: job.name)}
    write_if_changed(root / LOCK, dump_yaml({**content, "stages": stages}))


def _publish(source: Path, copy: Path) -> None:
    if copy.is_file() and copy.read_bytes() == source.read_bytes():
        return
    with atomic_path(copy) as temporary:
        shutil.copyfile(source, temporary)
