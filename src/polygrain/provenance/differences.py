"""In what a stage of `dvc.lock` differs from the job as the checkout would run it now.

`check-lock` and `restore` ask the same question of every stage: is what is on record the output of exactly this
command, these parameters, this code, environment and data?
"""

import json
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from polygrain.provenance.attestations import attested, read_attestations
from polygrain.provenance.dvcfiles import LOCK, Locked
from polygrain.provenance.hashes import Hashes
from polygrain.provenance.pipeline import Job, inputs_of, parameters

AGAIN = "rebuild and run `polygrain record`"
_LONGEST = 200  # characters of two values that a line may quote


@dataclass(frozen=True)
class Difference:
    """One difference. `stale`: the checkout moved on, which is honest; else the lock or the checkout is broken."""

    what: str
    stale: bool = True
    remedy: str = AGAIN


@dataclass(frozen=True)
class Claim:
    """The MD5 of another job's output as the asker knows it; None when nothing is known."""

    job: str
    md5: str | None


def differences(
    job: Job, root: Path, stage: Locked | None, upstream: Mapping[Path, Claim], hashes: Hashes
) -> Iterator[Difference]:
    """Compare a job with its stage in the lock: command, parameters, dependencies, names of outputs.

    `upstream` holds the claim for each dependency that is another job's output (one that is not known is passed over);
    any other dependency is compared with its bytes in the checkout. Code and environment whose difference is attested
    are passed over. The outputs' bytes are the caller's to check.
    Raises UserError when the job's config is missing.
    """
    if stage is None:
        yield Difference(f"not in {LOCK}")
        return
    if stage.command != job.command:
        yield Difference(f"its command was {stage.command!r}, now it is {job.command!r}")
    yield from _parameters(job, root, stage, hashes)
    now = {path.as_posix(): hashes.md5(path) or "" for path in inputs_of(job) if path not in upstream}
    passed = attested(read_attestations(root), stage.outputs, stage.dependencies, now)
    yield from _dependencies(job, stage, upstream, hashes, passed)
    names = {path.as_posix() for path in job.outputs}
    for name in sorted(names ^ set(stage.outputs)):
        yield Difference(f"{name} is an output only {'now' if name in names else f'in {LOCK}'}")


@cache
def _parsed(path: Path, md5: str | None) -> Mapping[str, Any]:
    """The parameters of a file with this content: parsing YAML takes longer than all else, and some ask twice."""
    return parameters(path)


def _parameters(job: Job, root: Path, stage: Locked, hashes: Hashes) -> Iterator[Difference]:
    then = stage.parameters.get(job.config.as_posix(), {})
    now = _parsed(root / job.config, hashes.md5(job.config))
    for key in sorted({*then, *now}):
        before, after = (_printed(values, key) for values in (then, now))
        if before != after:
            change = f"was {before}, now it is {after}" if len(before + after) < _LONGEST else "changed"
            yield Difference(f"{key} in {job.config} {change}")


def _printed(values: Mapping[str, Any], key: str) -> str:
    """Print a value with its type visible, so that 1, 1.0 and "1" differ."""
    return json.dumps(values[key], sort_keys=True, default=repr) if key in values else "absent"


def _dependencies(
    job: Job, stage: Locked, upstream: Mapping[Path, Claim], hashes: Hashes, passed: Set[str]
) -> Iterator[Difference]:
    then = stage.dependencies
    for path in inputs_of(job):
        if path.as_posix() in passed:
            continue
        md5 = then.get(path.as_posix())
        if md5 is None:
            yield Difference(f"depends on {path}, {LOCK} does not know")
        elif path in upstream:
            claim = upstream[path]
            if claim.md5 not in (None, md5):
                yield Difference(f"used another {path} than {claim.job} made, by {LOCK}", stale=False)
        elif (now := hashes.md5(path)) is None:
            yield Difference(f"{path} is missing, so it proves nothing", stale=False, remedy="put it back")
        elif now != md5:
            yield Difference(f"{path} changed since {LOCK} was written")
    for name in sorted(set(then) - {path.as_posix() for path in inputs_of(job)} - passed):
        yield Difference(f"depended on {name} by {LOCK}, now it does not")
