"""The curves of trainings for `dvc plots show` and `dvc plots diff`.

A training writes its losses and monitors as JSON lines, which DVC does not draw. So `record` writes a CSV file for each
training beside the published tables, and dvc.yaml names one plot for each group of runs that differ in the seed.
"""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polygrain.provenance.files import write_if_changed
from polygrain.provenance.stage import Stage

CURVES = Path("reports/published/curves")
ROWS = 500
"""Rows that are kept of a curve, at most: a plot shows no more, and the file is committed to git."""


def curve_path(stage: Stage) -> Path:
    """Where the curve of a training is published, relative to the project root."""
    return CURVES.joinpath(*stage.directory.parts[1:]).with_suffix(".csv")


def curve_table(lines: str) -> str:
    """The CSV text of a `metrics.jsonl`: step first, then every number by name, six significant digits."""
    rows = [json.loads(line) for line in lines.splitlines()]
    every = -(-len(rows) // ROWS)
    # the last line is always kept
    kept = rows[(len(rows) - 1) % every :: every] if rows else []
    names = ["step", *sorted({name for row in rows for name in row} - {"step"})]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_number(row.get(name)) for name in names] for row in kept)
    return text.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.6g}"


def publish_curves(stages: Sequence[Stage], root: Path, beside: Sequence[Stage] = ()) -> None:
    """Write the curve of every training among `stages`, and remove those of runs that are no longer recorded.

    The curves of trainings `beside` them stay as they are.
    """
    wanted = {root / curve_path(stage): root / stage.curves[0] for stage in stages if stage.curves}
    for path, metrics in wanted.items():
        write_if_changed(path, curve_table(metrics.read_text(encoding="utf-8")))
    kept = {root / curve_path(stage) for stage in beside if stage.curves}
    for path in (root / CURVES).rglob("*.csv"):
        if path not in wanted.keys() | kept:
            path.unlink()


def plots(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """The plots of dvc.yaml: the loss of the runs that differ in the seed alone, one plot for each such group."""
    groups: dict[Path, list[Path]] = defaultdict(list)
    for stage in stages:
        if stage.curves:
            groups[stage.directory.parent].append(curve_path(stage))
    return [
        {
            f"loss of {'/'.join(run.parts[1:])}": {
                "template": "linear",
                "x": "step",
                "y": {path.as_posix(): "loss" for path in sorted(paths)},
                "title": f"{run.parts[3]}, {run.parts[4]}: training loss ({run.parts[1]}, {run.parts[2]})",
                "x_label": "optimiser step",
                "y_label": "loss",
            }
        }
        for run, paths in sorted(groups.items())
    ]
