"""Whether each stage's outputs in a checkout are valid, by content hashes only, never by times, git or caches.

An output is valid if `dvc.lock` or its own record confirms it. `dvc.lock` confirms it if its stage has the same
command, parameters, code, environment and data, and the outputs in place have its hashes. The stage's own record
confirms it if it describes the outputs in place and every input in place. Inputs that other stages made must be valid
first, so a verdict depends on all ancestors. Of the ancestors only the content counts, not how it was made: a data set
that was packed here and has the recorded bytes counts as the recorded one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from polygrain.provenance.differences import Claim, differences
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import read_json
from polygrain.provenance.hashes import Hashes
from polygrain.provenance.lock import LOCK, Lock
from polygrain.provenance.stage import Stage, in_order, makers


@dataclass(frozen=True)
class Finding:
    """One stage's verdict.

    `claims` are the MD5s of its outputs, in place or not, empty when stale; `lacking` are the outputs that are not in
    place with these bytes.
    """

    state: Literal["in place", "built here", "absent", "stale"]
    reason: str
    claims: Mapping[Path, str]
    lacking: tuple[Path, ...]


def judge(stages: Sequence[Stage], root: Path, locks: Sequence[Lock], hashes: Hashes) -> dict[str, Finding]:
    """Judge every stage, inputs before what is made from them. `stages` must hold the ancestors of each of them.

    `locks`: dvc.lock, and, in a merge, the other branch's; any of them may confirm a stage.

    *in place*: dvc.lock confirms the outputs in place. *built here*: only the stage's record does. *absent*: dvc.lock
    confirms the outputs, but some are not in place. *stale*: nothing confirms what this stage would make now. Raises
    UserError when a stage's configuration is missing.
    """
    made = makers(stages)
    findings: dict[str, Finding] = {}
    for stage in in_order(stages):
        upstream = {path: made[path].name for path in stage.dependencies if path in made}
        findings[stage.name] = _judge(stage, root, locks, upstream, findings, hashes)
    return findings


def _judge(
    stage: Stage,
    root: Path,
    locks: Sequence[Lock],
    upstream: Mapping[Path, str],
    findings: Mapping[str, Finding],
    hashes: Hashes,
) -> Finding:
    claims = {path: Claim(name, findings[name].claims.get(path)) for path, name in upstream.items()}
    unknown = [f"made from {path}, which is stale" for path, claim in claims.items() if claim.md5 is None]
    found = [lock.find(stage) for lock in locks]
    objections = [[each.what for each in differences(stage, root, locked, claims, hashes)] for locked in found]
    reasons = objections[0] + unknown
    fitting = next((locked for locked, against in zip(found, objections, strict=True) if not against + unknown), None)
    recorded = {path: fitting.outputs[path.as_posix()] for path in stage.outputs} if fitting else {}
    lacking = tuple(path for path, md5 in recorded.items() if hashes.md5(path) != md5)
    if recorded and not lacking:
        return Finding("in place", "", recorded, ())
    settled = all(claims[path].md5 and path not in findings[name].lacking for path, name in upstream.items())
    if settled and not objection_to_outputs(stage, root, hashes) and not objection_to_inputs(stage, root, hashes):
        reason = f"other bytes than {LOCK} holds of equal inputs" if recorded else ""
        return Finding("built here", reason, {path: hashes.md5(path) or "" for path in stage.outputs}, ())
    if recorded:
        return Finding("absent", "", recorded, lacking)
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return Finding("stale", reasons[0] + more, {}, stage.outputs)


def objection_to_outputs(stage: Stage, root: Path, hashes: Hashes) -> str | None:
    """Say why a stage's record does not describe the outputs in place; None when it does."""
    first = stage.outputs[0]
    said = _record(stage, root)
    if said is None:
        return f"{first}: its record {stage.sidecar} is missing; {_rebuild(first)}"
    for output in stage.outputs:
        if hashes.sha256(output) is None or hashes.sha256(output) != _said(said, "outputs", output):
            return f"{output}: edited by hand since it was made; {_rebuild(output)}"
    return None


def objection_to_inputs(stage: Stage, root: Path, hashes: Hashes) -> str | None:
    """Say which configuration or input in place is not what the stage read, by its record; None when all are."""
    first = stage.outputs[0]
    said = _record(stage, root) or {}
    for part, path in [("config", stage.config_path), *(("inputs", path) for path in stage.dependencies)]:
        now = hashes.sha256(path)
        if now is None:
            return f"{path}: not found; {_rebuild(first)}"
        if now != _said(said, part, path):
            return f"{first}: was made from another {path}; {_rebuild(first)}"
    return None


def _rebuild(path: Path) -> str:
    return f"rebuild it with `snakemake --cores all --force {path}`"


def _record(stage: Stage, root: Path) -> Mapping[str, Any] | None:
    """A stage's record; None when there is none, or none that can be read: both prove nothing."""
    try:
        said = read_json(root / stage.sidecar)
    except UserError:
        return None
    return said if isinstance(said, Mapping) else None


def _said(said: Mapping[str, Any], part: str, path: Path) -> str | None:
    """Look up the SHA-256 that a record gives for a file; None when it does not list the file."""
    entry = (said.get(part) or {}).get(path.as_posix())
    return entry["sha256"] if entry else None
