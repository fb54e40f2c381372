"""How one printed number moved: a figure of its values over commits."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polygrain.provenance.errors import UserError
from polygrain.provenance.files import atomic_path

# Neither a time nor a version goes into the file, so that equal values give equal bytes.
_METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    ".svg": {"Date": None, "Creator": None},
}
_ROOMY = 12  # commits whose subjects still fit below the axis


@dataclass(frozen=True)
class Move:
    """One value of the number."""

    commit: str
    """Short hash."""
    date: str
    subject: str
    mean: float
    sd: float | None
    text: str
    """As printed."""
    unexplained: bool


def plot_moves(moves: Sequence[Move], title: str, unit: str, path: Path) -> None:
    """Draw the values with their spread, a commit a step; a value that nothing explains is marked.

    path: ends with .png, .pdf or .svg. Raises UserError for another ending and when there is no value.
    """
    if path.suffix not in _METADATA:
        raise UserError(f"{path}: a figure ends with .png, .pdf or .svg")
    if not moves:
        raise UserError(f"{path}: no commit holds a number to draw")
    import matplotlib as mpl

    mpl.use("Agg")
    settings: Any = {
        "svg.hashsalt": "polygrain",
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "pdf.fonttype": 42,
        "text.parse_math": False,  # a subject may hold dollar signs
    }
    with mpl.rc_context(settings):
        figure = _draw(moves, title, unit)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=_METADATA[path.suffix])


def _draw(moves: Sequence[Move], title: str, unit: str) -> Any:
    import seaborn as sns
    from matplotlib.figure import Figure

    blue, red, grey = sns.color_palette("deep")[0], sns.color_palette("deep")[3], "0.45"
    with sns.axes_style("ticks"):
        figure = Figure(figsize=(max(5.0, min(1.5 + 1.15 * len(moves), 16.0)), 3.9), layout="constrained")
        axes = figure.subplots()
    steps, means = list(range(len(moves))), [move.mean for move in moves]
    axes.plot(steps, means, color=blue, linewidth=1.2, alpha=0.45, zorder=1)
    for unexplained, colour, marker, size, label in (
        (False, blue, "o", 6, "explained"),
        (True, red, "X", 9, "unexplained"),
    ):
        chosen = [step for step in steps if moves[step].unexplained is unexplained]
        if chosen:
            axes.errorbar(
                chosen,
                [means[step] for step in chosen],
                yerr=[moves[step].sd or 0.0 for step in chosen],
                fmt=marker,
                color=colour,
                markersize=size,
                markeredgecolor="white",
                elinewidth=1.3,
                capsize=3,
                label=label,
                zorder=2,
            )
    _annotate(axes, moves, red)
    axes.set_xticks(steps, [_tick(move, len(moves)) for move in moves])
    axes.tick_params(axis="x", length=0, labelsize=7.5, labelcolor="0.25", rotation=0 if len(moves) <= _ROOMY else 90)
    axes.set_xlim(-0.5, len(moves) - 0.5)
    axes.margins(y=0.22)
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_ylabel(unit, color=grey)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    if any(move.unexplained for move in moves):
        axes.legend(loc="best", frameon=False, fontsize=8)
    sns.despine(ax=axes)
    return figure


def _annotate(axes: Any, moves: Sequence[Move], red: Any) -> None:
    """Print each value beside its point as the table does: below where the line dips, else above."""
    if len(moves) > _ROOMY:
        return
    for step, move in enumerate(moves):
        dips = all(other.mean > move.mean for other in [*moves[max(step - 1, 0) : step], *moves[step + 1 : step + 2]])
        side = -1 if dips and len(moves) > 1 else 1
        axes.annotate(
            move.text,
            (step, move.mean + side * (move.sd or 0.0)),
            xytext=(0, side * 8),
            textcoords="offset points",
            ha="center",
            va="bottom" if side > 0 else "top",
            fontsize=7.5,
            color=red if move.unexplained else "0.25",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
        )


def _tick(move: Move, commits: int) -> str:
    if commits > _ROOMY:
        return f"{move.commit} {move.date}"
    subject = textwrap.wrap(move.subject, 19, max_lines=3, placeholder=" …")
    return "\n".join([move.commit, move.date, *subject])
