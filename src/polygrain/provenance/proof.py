"""Do the outputs in place stem from the inputs in place? A job's record answers for the tree that ran it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polygrain.provenance.errors import UserError
from polygrain.provenance.files import read_json
from polygrain.provenance.hashes import Hashes
from polygrain.provenance.pipeline import Job, inputs_of


def objection_to_outputs(job: Job, root: Path, hashes: Hashes) -> str | None:
    """Say why a job's record does not describe the outputs in place; None when it does."""
    first = job.outputs[0]
    said = _read(job, root)
    if said is None:
        return f"{first}: its record {job.sidecar} is missing; {_rebuild(first)}"
    for output in job.outputs:
        if hashes.sha256(output) is None or hashes.sha256(output) != _said(said, "outputs", output):
            return f"{output}: edited by hand since it was made; {_rebuild(output)}"
    return None


def objection_to_inputs(job: Job, root: Path, hashes: Hashes) -> str | None:
    """Say which config or input in place is not what the job read, by its record; None when all are."""
    first = job.outputs[0]
    said = _read(job, root) or {}
    for part, path in [("config", job.config), *(("inputs", path) for path in inputs_of(job))]:
        now = hashes.sha256(path)
        if now is None:
            return f"{path}: not found; {_rebuild(first)}"
        if now != _said(said, part, path):
            return f"{first}: was made from another {path}; {_rebuild(first)}"
    return None


def _rebuild(path: Path) -> str:
    return f"rebuild it with `snakemake --cores all --force {path}`"


def _read(job: Job, root: Path) -> Mapping[str, Any] | None:
    """A job's record; None when there is none, or none that can be read: both prove nothing."""
    if not (root / job.sidecar).is_file():
        return None
    try:
        said = read_json(root / job.sidecar)
    except UserError:
        return None
    return said if isinstance(said, Mapping) else None


def _said(said: Mapping[str, Any], part: str, path: Path) -> str | None:
    """Look up the SHA-256 that a job's record gives for a file; None when it does not know the file."""
    entry = (said.get(part) or {}).get(path.as_posix())
    return entry["sha256"] if entry else None
