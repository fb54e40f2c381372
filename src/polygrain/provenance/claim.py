"""The claim id: one short name for everything that a table was computed from.

It is the SHA-256 over the canonical JSON of a mapping from run path to the hashes of that run's config, code,
environment and data. It holds no commit, time or host: two people who build the same table from the same
inputs print the same id, and a changed input of any run changes it.
"""

import re
from collections.abc import Mapping

from polygrain.provenance.files import canonical_json, sha256_bytes

PARTS = ("code", "config", "data", "environment")


def claim_id(runs: Mapping[str, Mapping[str, str]]) -> str:
    """Return 64 hex digits that name the inputs of `runs`.

    `runs` maps a run path, such as `runs/cpu/cifar100/wcl/default/seed0`, to the SHA-256 in hex of each of
    `PARTS`. The order of either mapping does not matter. Raises ValueError when there is no run, a part is
    missing or added, or a value is no hash: such an id would not identify the inputs.
    """
    if not runs:
        raise ValueError("a claim needs at least one run")
    for path, hashes in runs.items():
        if tuple(sorted(hashes)) != PARTS:
            raise ValueError(f"{path}: needs exactly the hashes {', '.join(PARTS)}, got {', '.join(sorted(hashes))}")
        for part, value in hashes.items():
            if not re.fullmatch(r"[0-9a-f]{64}", value):
                raise ValueError(f"{path}: {part} is no SHA-256 in hex: {value!r}")
    return sha256_bytes(canonical_json({path: dict(runs[path]) for path in runs}).encode())
