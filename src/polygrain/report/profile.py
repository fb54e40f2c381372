"""A profile: every number of a table on a scale of which two of its rows are 0 and 1, and what follows for the claim.

With the means x of a row, a of the row at 0 and b of the row at 1, the scaled score is q = (x - a) / (b - a). Its
interval is over seeds: of x, a and b (the delta method),

    variance of q = (var x + (1 - q)^2 var a + q^2 var b) / (b - a)^2,  var of a mean over S seeds: s^2 / S

and a 95 % interval of t with Satterthwaite's degrees of freedom. Where b is not better than a beyond the seeds'
scatter there is no scale. The two rows themselves are 0 and 1 by definition and have no interval.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from polygrain.report.cells import ABSENT, Bar, Cell, Profile, TableContent, TableGroup, TableRow
from polygrain.report.measured import Measured, MissingError, Results
from polygrain.report.spec import Column, Compare, Row, Spec
from polygrain.report.statistics import SEEDS, mean_and_spread
from polygrain.report.student import quantile

_SIDE = 0.975


@dataclass(frozen=True)
class Scaled:
    """A scaled score with half the width of its interval, None where no interval is known."""

    value: float
    half: float | None


@dataclass(frozen=True)
class Scale:
    """What turns the numbers of a column into scaled scores: those of the two rows."""

    zero: Measured
    one: Measured

    def sound(self) -> bool:
        """Whether the row at 1 is better than the row at 0, beyond the scatter of their seeds where that is known."""
        (low, spread), (high, other) = (mean_and_spread(row.values) for row in (self.zero, self.one))
        better = (high - low) * self.zero.measure.sign
        if spread is None or other is None:
            return better > 0
        error, degrees = _error([(spread, len(self.zero.values)), (other, len(self.one.values))])
        return better > quantile(_SIDE, degrees) * error

    def of(self, row: Measured) -> Scaled:
        """The scaled score of a row."""
        (x, sx), (a, sa), (b, sb) = (mean_and_spread(each.values) for each in (row, self.zero, self.one))
        q = (x - a) / (b - a)
        if sx is None or sa is None or sb is None:
            return Scaled(q, None)
        counts = (len(row.values), len(self.zero.values), len(self.one.values))
        error, degrees = _error(list(zip((sx, (1 - q) * sa, q * sb), counts, strict=True)))
        return Scaled(q, quantile(_SIDE, degrees) * error / abs(b - a))


def _error(parts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Standard error and degrees of freedom of a sum of means with these deviations and numbers of seeds."""
    variances = [(spread**2 / count, count - 1) for spread, count in parts]
    total = sum(variance for variance, _ in variances)
    spent = sum(variance**2 / degrees for variance, degrees in variances)
    return math.sqrt(total), total**2 / spent if spent else 1.0


def add_scale(table: TableContent, spec: Spec, results: Results) -> TableContent:
    """The table with its profile: bars to draw, scaled scores above the numbers, and what they say of the claim."""
    assert spec.profile is not None
    scales = [_scale(spec, results, column) for column in spec.columns]
    by_label = {row.label: row for row in spec.rows}
    scaled = {label: [*_scaled(spec, results, row, scales)] for label, row in by_label.items()}
    above, below = [], []
    for group in table.groups:
        cells = [replace(row, cells=tuple(_cell(found, spec) for found in scaled[row.label])) for row in group.rows]
        above.append(TableGroup(f"{group.label}, scaled", tuple(cells)))
        below.append(TableGroup(f"{group.label}, as measured", group.rows))
    bars = tuple(
        (group.label, tuple((row.label, _bars(row, scaled[row.label])) for row in group.rows)) for group in table.groups
    )
    reference = ""
    if spec.compare is not None:
        reference = "the whole method" if spec.compare.by_group else " and ".join(spec.compare.reference)
    profile = Profile(spec.profile.zero, spec.profile.one, bars, reference)
    legend = (*_legend(spec), *table.legend, *_claim(spec, table))
    return replace(table, groups=(*above, *below), profile=profile, legend=legend)


def _scale(spec: Spec, results: Results, column: Column) -> Scale | str:
    """The scale of a column, or why it has none."""
    assert spec.profile is not None
    ends = {row.label: row for row in spec.rows}
    try:
        zero, one = (
            results.measured(ends[label], column, spec.seeds) for label in (spec.profile.zero, spec.profile.one)
        )
    except MissingError:
        return f"No scale: {spec.profile.zero} or {spec.profile.one} has no number here."
    scale = Scale(zero, one)
    known = f"No scale: {spec.profile.one} is not better than {spec.profile.zero} beyond the scatter of their seeds."
    return scale if scale.sound() else known


def _scaled(spec: Spec, results: Results, row: Row, scales: Sequence[Scale | str]) -> Iterator[Scaled | str]:
    """Scaled scores of a row, or why there is none."""
    assert spec.profile is not None
    ends = {spec.profile.zero: 0.0, spec.profile.one: 1.0}
    for column, scale in zip(spec.columns, scales, strict=True):
        if column.id in row.without:
            yield row.without[column.id]
        elif isinstance(scale, str):
            yield scale
        elif row.label in ends:
            yield Scaled(ends[row.label], None)
        else:
            try:
                yield scale.of(results.measured(row, column, spec.seeds))
            except MissingError as reason:
                yield f"Missing: {reason}."


def _cell(found: Scaled | str, spec: Spec) -> Cell:
    if isinstance(found, str):
        return Cell(unit="scaled", main=ABSENT, notes=(found,))
    spread = "" if found.half is None else f"{found.half:.2f}"
    return Cell("scaled", f"{found.value:.2f}", spread, found.value, found.half, len(spec.seeds), 4)


def _bars(row: TableRow, scaled: Sequence[Scaled | str]) -> tuple[Bar, ...]:
    bars = []
    for cell, found in zip(row.cells, scaled, strict=True):
        if isinstance(found, str):
            bars.append(Bar(None))
        else:
            half = found.half or 0.0
            bars.append(Bar((found.value, found.value - half, found.value + half), cell.arrow))
    return tuple(bars)


def _legend(spec: Spec) -> list[str]:
    assert spec.profile is not None
    interval = ", ± half of its 95 % interval over the seeds of the row and of both ends" if len(spec.seeds) > 1 else ""
    return [f"Scaled: 0 is {spec.profile.zero}, 1 is {spec.profile.one}, in every column{interval}."]


def _claim(spec: Spec, table: TableContent) -> list[str]:
    """What the tests say of the claim that several grains serve every task."""
    if spec.compare is None or len(spec.seeds) < SEEDS:
        return []
    if spec.compare.by_group:
        return _against_parts(spec.compare, table)
    tested = [row for group in table.groups for row in group.rows if any(cell.comparison for cell in row.cells)]
    if not tested:
        return []
    sides = {row.label: (_marked(table, row, "↑"), _marked(table, row, "↓")) for row in tested}
    parts = [
        f"{label}: better in {', '.join(better) or 'none'}; worse in {', '.join(worse) or 'none'}"
        for label, (better, worse) in sides.items()
    ]
    holds = [label for label, (better, worse) in sides.items() if better and not worse]
    read = f"better than {' and '.join(spec.compare.reference)} in a tested column and worse in none"
    return [f"The claim that several grains serve every task, read as {read}. {'. '.join(parts)}. {_held(holds)}"]


def _against_parts(compare: Compare, table: TableContent) -> list[str]:
    """The same where the reference is the whole method, and the other rows of its group are ablated."""
    parts, holds = [], []
    for group in table.groups:
        whole = [row.label for row in group.rows if row.label in compare.reference]
        tested = [row for row in group.rows if any(cell.comparison for cell in row.cells)]
        if not whole or not tested:
            continue
        better = {row.label: _marked(table, row, "↑") for row in tested}
        said = [f"{label} in {', '.join(columns)}" for label, columns in better.items() if columns]
        parts.append(f"{whole[0]}: {'; '.join(said) or 'no row'}")
        if not said and any(_marked(table, row, "↓") for row in tested):
            holds.append(whole[0])
    if not parts:
        return []
    read = "no ablated row is better than the whole method in a tested column, and one is worse"
    found = f"Better: {'. '.join(parts)}. {_held(holds)}"
    return [f"The claim that several grains serve every task, read as {read}. {found}"]


def _marked(table: TableContent, row: TableRow, arrow: str) -> list[str]:
    """The columns in which a row carries an arrow."""
    cells = zip(table.columns, row.cells, strict=True)
    return [f"{column.group} {column.label}".strip() for column, cell in cells if cell.arrow == arrow]


def _held(holds: Sequence[str]) -> str:
    return f"It holds for {', '.join(holds)}." if holds else "It holds for none of them."
