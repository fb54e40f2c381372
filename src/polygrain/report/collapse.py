"""Runs whose representation collapsed, by the monitors in the last line of their metrics."""

import json
from collections.abc import Sequence
from pathlib import Path

from polygrain.provenance.errors import UserError
from polygrain.report.spec import Row

LIMITS = {"spread": 0.1, "rank": 2.0, "occupancy": 0.05}
"""Below any of them a run has collapsed: its rows are one point, lie along one line, or share few groups.

Spread is 0 when all rows are equal and about 1 when they fill the sphere; rank counts the dimensions that carry
variance, 0 for equal rows and 1 on a line. Methods log both for their embeddings or for the network's features. At cpu
scale the embeddings of SimCLR, WCL and SMoG end at 0.99 and 7 to 20, the features of all trained runs of table 1 at
0.45 to 0.73 and 4.8 to 6.5, those of untrained networks at 0.11 to 0.17 and 4.4 to 7.1: who falls below is worse off
than before training. Occupancy is the share of the groups or prototypes that a batch uses (exp of the entropy of their
shares, divided by their number): 0.6 for SMoG, at most 0.25 for Mugs, whose batch has 128 images for 512 prototypes. A
method that logs none of these monitors is not judged.
"""


def collapsed(root: Path, row: Row, seeds: Sequence[int]) -> str:
    """Name the seeds that collapsed with what was measured, as `seed 1 (spread 0.03, rank 1.2)`; empty without any.

    A run without metrics is not judged. Raises UserError when the last line of its metrics cannot be read.
    """
    found = []
    for seed, run in zip(seeds, row.runs, strict=True):
        measured = _monitors(root / run / "metrics.jsonl")
        if any(not value >= LIMITS[name] for name, value in measured.items()):  # so written, nan has collapsed
            values = ", ".join(f"{name} {measured[name]:.2g}" for name in LIMITS if name in measured)
            found.append(f"seed {seed} ({values})")
    return ", ".join(found)


def _monitors(path: Path) -> dict[str, float]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if not lines:
        return {}
    try:
        last = json.loads(lines[-1])
        return {name: float(value) for name, value in last.items() if name in LIMITS}
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"{path}: its last line is malformed; delete it and train again") from None
