"""Whether each job's outputs in a checkout are valid, by content hashes only, never by times, git or caches.

An output counts when one of two witnesses vouches for it. `dvc.lock` does when its stage has the job's command,
parameters, code, environment and data, and the outputs in place have its hashes. The job's own record does when it
describes the outputs in place and every input in place. Inputs that other jobs made must have been judged good first,
so a verdict rests on the whole ancestry; but on the ancestors' content, not on their history: a data set that was
packed here to the recorded bytes stands for the recorded one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Literal

from polygrain.provenance.differences import Claim, differences
from polygrain.provenance.dvcfiles import LOCK, Locked
from polygrain.provenance.hashes import Hashes
from polygrain.provenance.pipeline import Job, by_job, inputs_of
from polygrain.provenance.proof import objection_to_inputs, objection_to_outputs


@dataclass(frozen=True)
class Finding:
    """One job's verdict.

    `claims` are the MD5s of its outputs, in place or not, empty when stale; `lacking` are the outputs that are not in
    place with these bytes.
    """

    state: Literal["in place", "built here", "absent", "stale"]
    reason: str
    claims: Mapping[Path, str]
    lacking: tuple[Path, ...]


def judge(jobs: Sequence[Job], root: Path, locks: Sequence[Mapping[str, Locked]], hashes: Hashes) -> dict[str, Finding]:
    """Judge every job, inputs before what is made from them. `jobs` must hold the ancestors of each of them.

    `locks`: the stages of dvc.lock, and, in a merge, of the other branch's; any of them may vouch for a job.

    *in place*: dvc.lock vouches for the outputs in place. *built here*: only the job's record does. *absent*: dvc.lock
    vouches for outputs of which some are not in place. *stale*: nothing vouches for what this job would make now.
    Raises UserError when a job's config is missing.
    """
    locks = [by_job(lock, jobs) for lock in locks]
    made = {path: job for job in jobs for path in job.outputs}
    findings: dict[str, Finding] = {}
    for job in in_order(jobs):
        upstream = {path: made[path].name for path in inputs_of(job) if path in made}
        findings[job.name] = _judge(job, root, [lock.get(job.name) for lock in locks], upstream, findings, hashes)
    return findings


def in_order(jobs: Sequence[Job]) -> list[Job]:
    """The jobs with each one after those that make its inputs."""
    made = {path: job.name for job in jobs for path in job.outputs}
    graph = {job.name: {made[path] for path in job.dependencies if path in made} for job in jobs}
    named = {job.name: job for job in jobs}
    return [named[name] for name in TopologicalSorter(graph).static_order()]


def _judge(
    job: Job,
    root: Path,
    stages: Sequence[Locked | None],
    upstream: Mapping[Path, str],
    findings: Mapping[str, Finding],
    hashes: Hashes,
) -> Finding:
    claims = {path: Claim(name, findings[name].claims.get(path)) for path, name in upstream.items()}
    unknown = [f"made from {path}, which is stale" for path, claim in claims.items() if claim.md5 is None]
    objections = [[found.what for found in differences(job, root, stage, claims, hashes)] for stage in stages]
    reasons = objections[0] + unknown
    fitting = next((stage for stage, against in zip(stages, objections, strict=True) if not against + unknown), None)
    recorded = {path: fitting.outputs[path.as_posix()] for path in job.outputs} if fitting else {}
    lacking = tuple(path for path, md5 in recorded.items() if hashes.md5(path) != md5)
    if recorded and not lacking:
        return Finding("in place", "", recorded, ())
    settled = all(claims[path].md5 and path not in findings[name].lacking for path, name in upstream.items())
    if settled and not objection_to_outputs(job, root, hashes) and not objection_to_inputs(job, root, hashes):
        reason = f"other bytes than {LOCK} holds of equal inputs" if recorded else ""
        return Finding("built here", reason, {path: hashes.md5(path) or "" for path in job.outputs}, ())
    if recorded:
        return Finding("absent", "", recorded, lacking)
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return Finding("stale", reasons[0] + more, {}, job.outputs)
