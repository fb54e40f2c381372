"""From a specification and result files to the cells of a table.

A number is the mean and the sample standard deviation over all seeds of the table; when one seed lacks it the cell is
missing and says why. Which cells are bold or carry an arrow is decided in `marks.py`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from polygrain.evaluate.result import Measure
from polygrain.provenance.errors import UserError
from polygrain.report.cells import ABSENT, Cell, Footer, TableContent, TableGroup, TableRow
from polygrain.report.collapse import LIMITS, collapsed
from polygrain.report.marks import mark_best, mark_differences
from polygrain.report.measured import Measured, MissingError, Results
from polygrain.report.profile import add_scale
from polygrain.report.reported import Record
from polygrain.report.spec import Citation, Column, Group, Row, Spec
from polygrain.report.statistics import mean_and_spread


def make_table(spec: Spec, results: Results, records: Mapping[str, Record], footer: Footer) -> TableContent:
    """Fill a specification from result files and reported records. Raises UserError on malformed files."""
    cells = {row.label: [_cell(spec, row, column, results, records) for column in spec.columns] for row in spec.rows}
    _name_units(spec, results, cells)
    below = _below_floor(spec, results, cells)
    fallen = {row.label: collapsed(results.root, row, spec.seeds) or below.get(row.label, "") for row in spec.rows}
    legend = [
        _legend_of_numbers(spec),
        *_legend_of_measures(spec, results),
        *mark_differences(spec, results, cells),
        *mark_best(spec, results, cells),
        *_reconstructed(spec),
        *_collapsed(spec, fallen),
    ]
    groups = []
    for group in spec.groups:
        ordered = _ordered(spec, group, results, cells)
        groups.append(TableGroup(group.label, tuple(_row(row, cells[row.label], fallen[row.label]) for row in ordered)))
    table = TableContent(
        name=spec.name,
        title=spec.title,
        caption=spec.caption,
        columns=tuple(spec.columns),
        groups=tuple(groups),
        legend=(*legend, *spec.footnotes),
        footer=footer,
    )
    return add_scale(table, spec, results) if spec.profile else table


def _ordered(spec: Spec, group: Group, results: Results, cells: Mapping[str, Sequence[Cell]]) -> list[Row]:
    """The rows of a group, by `order_by` if it is set: the best first, missing ones last."""
    measure = results.measures.get(spec.order_by)
    if measure is None:
        return group.rows
    place = [column.id for column in spec.columns].index(spec.order_by)
    means = {row.label: cells[row.label][place].mean for row in group.rows}
    ranks = {label: math.inf if mean is None else -(measure.sign or 1) * mean for label, mean in means.items()}
    return sorted(group.rows, key=lambda row: ranks[row.label])


def _row(row: Row, cells: Sequence[Cell], fallen: str) -> TableRow:
    return TableRow(row.label, (row.note,) if row.note else (), bool(row.reconstructed), tuple(cells), fallen)


def _cell(spec: Spec, row: Row, column: Column, results: Results, records: Mapping[str, Record]) -> Cell:
    if column.id in row.without:
        return Cell(unit="", main=ABSENT, notes=(row.without[column.id],))
    if column.fact:
        return _fact(row, column)
    if column.setting:
        return _setting(row, column)
    if column.reported:
        return _reported(spec.reported, row, column, records)
    try:
        measured = _mean_of(spec, row, column, results) if column.mean_of else results.measured(row, column, spec.seeds)
    except MissingError as reason:
        return Cell(unit="", main=ABSENT, notes=(f"Missing: {reason}.",))
    return measured_cell(measured.measure, measured.values, measured.notes)


def _mean_of(spec: Spec, row: Row, column: Column, results: Results) -> Measured:
    """The mean of other columns for each seed."""
    parts = [results.measured(row, part, spec.seeds) for part in spec.columns if part.id in column.mean_of]
    if len({part.measure for part in parts}) != 1:
        raise UserError(f"table.columns: '{column.id}' is the mean of columns that differ in unit or direction")
    results.measures[column.id] = parts[0].measure
    return Measured(tuple(map(fmean, zip(*(part.values for part in parts), strict=True))), parts[0].measure, ())


def measured_cell(measure: Measure, values: Sequence[float], notes: Sequence[str] = ()) -> Cell:
    """The mean of a value over seeds, with its spread, as its measure wants it printed."""
    mean, sd = mean_and_spread([measure.factor * value for value in values])
    return Cell(
        unit=measure.printed_unit,
        main=f"{mean:.{measure.decimals}f}",
        spread="" if sd is None else f"{sd:.{measure.decimals}f}",
        mean=mean,
        sd=sd,
        n=len(values),
        decimals=measure.decimals + 3,
        notes=tuple(f"{note}." for note in notes),
    )


def _name_units(spec: Spec, results: Results, cells: Mapping[str, list[Cell]]) -> None:
    """Give a missing number the unit of its column."""
    for place, column in enumerate(spec.columns):
        for of_row in cells.values() if column.id in results.measures else ():
            of_row[place] = replace(of_row[place], unit=results.measures[column.id].printed_unit)


def _fact(row: Row, column: Column) -> Cell:
    unit = column.fact.replace("_", " ")
    if column.fact not in row.facts:
        return Cell(unit=unit, main=ABSENT, notes=(f"Missing: the run declares no {unit}.",))
    value = float(row.facts[column.fact])
    return Cell(unit=unit, main=count(value), mean=value, n=len(row.runs), decimals=0)


def _setting(row: Row, column: Column) -> Cell:
    if column.setting not in row.settings:
        return Cell(unit="", main=ABSENT, notes=(f"Missing: the run has no {column.setting}.",))
    return Cell(unit="", main=setting_text(row.settings[column.setting]) or ABSENT, n=len(row.runs))


def setting_text(value: Any) -> str:
    """A value of a configuration for people: lists are joined, switches are on or off, null is none."""
    if isinstance(value, list):
        return ", ".join(map(setting_text, value))
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "none"}[value]
    return str(value)


def _reported(citations: Sequence[Citation], row: Row, column: Column, records: Mapping[str, Record]) -> Cell:
    names = [cited.record for cited in citations if (cited.row, cited.column) == (row.label, column.id)]
    if not names:
        return Cell(unit="%", main=ABSENT, notes=("Missing: no source at hand reports such a number.",))
    if len(names) > 1 or names[0] not in records:
        fault = "cites two records" if len(names) > 1 else f"cites '{names[0]}', which no reported file holds"
        raise UserError(f"table.reported: row '{row.label}', column '{column.id}' {fault}")
    record = records[names[0]]
    return Cell(unit="%", main=record.text, mean=float(record.percent), n=1, notes=(f"Reported: {record.description}",))


def count(value: float) -> str:
    """A count to three digits: 0, 640, 9.22 k, 400 k, 1.20 M."""
    for unit, size in (("", 1.0), (" k", 1e3), (" M", 1e6), (" G", 1e9)):
        scaled = value / size
        if scaled < 999.5 or unit == " G":
            break
    decimals = 0 if scaled >= 99.95 or not unit else 1 if scaled >= 9.995 else 2
    return f"{scaled:.{decimals}f}{unit}"


def _legend_of_numbers(spec: Spec) -> str:
    if len(spec.seeds) == 1:
        return f"Numbers are from the single seed {spec.seeds[0]}; their spread is unknown."
    return f"Numbers are mean ± sample standard deviation over {len(spec.seeds)} seeds."


def _legend_of_measures(spec: Spec, results: Results) -> list[str]:
    """What a reader must know of the columns that are no percentage of which the higher is better."""
    sides = {"higher": "higher is better", "lower": "lower is better", "none": "neither side is better"}
    parts = []
    for column in spec.columns:
        measure = results.measures.get(column.id)
        if measure is not None and (measure.printed_unit, measure.direction) != ("%", "higher"):
            unit = f" in {measure.printed_unit}" if measure.printed_unit else ""
            group = f"{column.group} " if column.group else ""
            parts.append(f"{group}{column.label}{unit}: {sides[measure.direction]}")
    return [f"{'; '.join(parts)}."] if parts else []


def _below_floor(spec: Spec, results: Results, cells: Mapping[str, Sequence[Cell]]) -> dict[str, str]:
    """The rows outside the floor's group whose mean does not reach it, with what is below what."""
    floor = spec.floor
    measure = results.measures.get(floor.column) if floor else None
    if floor is None or measure is None:
        return {}
    place = [column.id for column in spec.columns].index(floor.column)
    column, least = spec.columns[place], cells[floor.row][place].mean
    others = [group.rows for group in spec.groups if floor.row not in [row.label for row in group.rows]]
    means = {row.label: cells[row.label][place].mean for rows in others for row in rows}
    text = f"{column.group} {column.label} worse than {floor.row}".strip()
    return {
        label: text
        for label, mean in means.items()
        if mean is not None and least is not None and measure.sign * mean < measure.sign * least
    }


def _reconstructed(spec: Spec) -> list[str]:
    parts = [f"{row.label}: {row.reconstructed}" for row in spec.rows if row.reconstructed]
    return [f"‡ Has parts that no source specifies. {'; '.join(parts)}."] if parts else []


def _collapsed(spec: Spec, fallen: Mapping[str, str]) -> list[str]:
    parts = [f"{label}: {seeds}" for label, seeds in fallen.items() if seeds]
    limits = f"spread below {LIMITS['spread']:g}, effective rank below {LIMITS['rank']:g}"
    limits += f" or less than {LIMITS['occupancy']:.0%} of groups or prototypes in use".replace("%", " %")
    floor = f"; or {spec.floor.row} is better" if spec.floor else ""
    return [f"† Collapsed ({limits}, at the last step{floor}). {'; '.join(parts)}."] if parts else []
