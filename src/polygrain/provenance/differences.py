"""How a stage of `dvc.lock` differs from the stage as the checkout would run it now.

`check-lock` and `restore` ask the same question of every stage: is what is on record the output of exactly this
command, these parameters, this code, environment and data?
"""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from polygrain.provenance.attestations import attested, read_attestations
from polygrain.provenance.hashes import Hashes
from polygrain.provenance.lock import LOCK, Locked, changes
from polygrain.provenance.pipeline import parameters
from polygrain.provenance.stage import Stage

AGAIN = "rebuild and run `polygrain record`"
_LONGEST = 200  # characters of two values that a line may quote


@dataclass(frozen=True)
class Difference:
    """One difference. `stale`: the checkout changed since the record; else the lock or the checkout is broken."""

    what: str
    stale: bool = True
    remedy: str = AGAIN


class Claim(NamedTuple):
    """The MD5 of another stage's output as the caller has it; None when it is unknown."""

    maker: str
    md5: str | None


def differences(
    stage: Stage, root: Path, locked: Locked | None, upstream: Mapping[Path, Claim], hashes: Hashes
) -> Iterator[Difference]:
    """Compare a stage with its record in the lock: command, parameters, dependencies, names of outputs.

    `upstream` holds the claim for each dependency that is another stage's output (one that is not known is passed
    over); any other dependency is compared with its bytes in the checkout. Code and environment whose difference is
    attested are passed over. The caller checks the bytes of outputs.
    Raises UserError when the stage's configuration is missing.
    """
    if locked is None:
        yield Difference(f"not in {LOCK}")
        return
    if locked.command != stage.command:
        yield Difference(f"its command was {locked.command!r}, now it is {stage.command!r}")
    config = stage.config_path
    for key, was, now in changes(
        locked.parameters.get(config.as_posix(), {}), _parsed(root / config, hashes.md5(config))
    ):
        before, after = was or "absent", now or "absent"
        change = f"was {before}, now it is {after}" if len(before + after) < _LONGEST else "changed"
        yield Difference(f"{key} in {config} {change}")
    own = {path.as_posix(): hashes.md5(path) or "" for path in stage.dependencies if path not in upstream}
    passed = attested(read_attestations(root), locked.outputs, locked.dependencies, own)
    yield from _dependencies(stage, locked, upstream, hashes, passed)
    names = {path.as_posix() for path in stage.outputs}
    for name in sorted(names ^ set(locked.outputs)):
        yield Difference(f"{name} is an output only {'now' if name in names else f'in {LOCK}'}")


@cache
def _parsed(path: Path, md5: str | None) -> Mapping[str, str]:
    """The parameters of a file with this content: parsing YAML takes longer than all else, and some ask twice."""
    return parameters(path)


def _dependencies(
    stage: Stage, locked: Locked, upstream: Mapping[Path, Claim], hashes: Hashes, passed: Set[str]
) -> Iterator[Difference]:
    for path in stage.dependencies:
        md5 = locked.dependencies.get(path.as_posix())
        if path.as_posix() in passed:
            continue
        if md5 is None:
            yield Difference(f"depends on {path}, which {LOCK} does not list")
        elif path in upstream:
            if upstream[path].md5 not in (None, md5):
                yield Difference(
                    f"used another {path} than {upstream[path].maker} made, according to {LOCK}", stale=False
                )
        elif (now := hashes.md5(path)) is None:
            yield Difference(f"{path} is missing, so it cannot be compared", stale=False, remedy="put it back")
        elif now != md5:
            yield Difference(f"{path} changed since {LOCK} was written")
    for name in sorted(set(locked.dependencies) - {path.as_posix() for path in stage.dependencies} - passed):
        yield Difference(f"depended on {name} according to {LOCK}, now it does not")
