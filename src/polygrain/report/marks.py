"""Which cells stand out, and the rules that the table prints about it.

Bold is the best printed mean of a group that asks for it, among its comparable rows: those whose encoder-pass
units lie within 5 % of the group's median, at least two of them. Only in columns whose numbers have a better side.

An arrow is a difference from the best reference row of the column whose Holm-adjusted p value is below the level. The
best reference row is chosen by its mean on the test split itself, which favours the reference and not the method.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from polygrain.provenance.errors import UserError
from polygrain.report.cells import Cell, Comparison
from polygrain.report.measured import MissingError, Results
from polygrain.report.spec import Compare, Group, Row, Spec
from polygrain.report.statistics import Contrast, bootstrap_difference, holm

COMPUTE = "encoder_passes"
TOLERANCE = 0.05

Cells = dict[str, list[Cell]]
"""Row label -> its cells, in the order of the columns."""


def mark_differences(spec: Spec, results: Results, cells: Cells) -> list[str]:
    """Test every row that is no reference in the compared columns, write the outcome into `cells`, return the rule.

    Raises UserError when two rows were tested on different examples, and for a column in which no side is better.
    """
    if spec.compare is None:
        return []
    found: list[tuple[str, int, str, Contrast]] = []
    for name in spec.compare.columns:
        place = next(place for place, column in enumerate(spec.columns) if column.id == name)
        measure = results.measures.get(name)
        if measure is None:  # no row has a number
            continue
        if not measure.sign:
            raise UserError(f"table.compare.columns: the numbers of '{name}' have no better side; leave it out")
        for group in spec.groups:
            among = group.rows if spec.compare.by_group else spec.rows
            reference = _best_reference(among, spec.compare, cells, place, measure.sign)
            for row in group.rows:
                if reference is None or row.label in spec.compare.reference or not cells[row.label][place].n:
                    continue
                try:
                    difference = _difference(spec, spec.compare, results, row, reference, place)
                except MissingError as reason:
                    cell = cells[row.label][place]
                    cells[row.label][place] = replace(cell, notes=(*cell.notes, f"Not compared: {reason}."))
                else:
                    found.append((row.label, place, reference.label, difference))
    _write(spec, results, found, spec.compare.level, cells)
    return [_significance_rule(spec, spec.compare, len(found))]


def _write(
    spec: Spec, results: Results, found: Sequence[tuple[str, int, str, Contrast]], level: float, cells: Cells
) -> None:
    adjusted = holm([difference.p for *_, difference in found])
    for (label, place, reference, difference), p in zip(found, adjusted, strict=True):
        measure = results.measures[spec.columns[place].id]
        arrow = "" if p >= level else "↑" if measure.sign * difference.estimate > 0 else "↓"
        comparison = Comparison(reference, difference.times(measure.factor), p, arrow)
        cells[label][place] = replace(cells[label][place], comparison=comparison)


def _best_reference(
    among: Sequence[Row], compare: Compare, cells: Mapping[str, Sequence[Cell]], place: int, sign: int
) -> Row | None:
    """The reference row with the best mean (the first of equals); None when there is none or one is missing."""
    rows = [row for row in among if row.label in compare.reference]
    means = [cells[row.label][place].mean for row in rows]
    known = [sign * mean for mean in means if mean is not None]
    return rows[known.index(max(known))] if known and len(known) == len(means) else None


def _difference(spec: Spec, compare: Compare, results: Results, row: Row, reference: Row, place: int) -> Contrast:
    column = spec.columns[place]
    first, examples = results.scores(row, column, spec.seeds)
    second, same_examples = results.scores(reference, column, spec.seeds)
    if examples != same_examples:
        raise UserError(
            f"{row.runs[0]}: tested on other examples than {reference.runs[0]} in {column.value}; evaluate both again"
        )
    key = "|".join((column.protocol, column.value, *row.runs, "against", *reference.runs))
    return bootstrap_difference(first, second, draws=compare.draws, key=key)


def _significance_rule(spec: Spec, compare: Compare, family: int) -> str:
    names = [row.label for row in spec.rows if row.label in compare.reference]
    *others, last = names
    best = "better" if len(names) == 2 else "best"
    reference = f"the {best} of {', '.join(others)} and {last} in that column" if others else last
    if compare.by_group:
        reference = f"the reference row of its group ({'; '.join(names)})"
    over = "seeds and test images" if len(spec.seeds) > 1 else "test images"
    return (
        f"↑ ↓: better or worse than {reference}, p < {compare.level:g} after the Holm correction over {family} "
        f"comparison{'' if family == 1 else 's'}; bootstrap over {over}, {compare.draws:,} draws."
    )


def mark_best(spec: Spec, results: Results, cells: Cells) -> list[str]:
    """Set the best comparable cells of each column in bold, in groups that ask for it; return the rule."""
    groups = [group for group in spec.groups if group.best]
    for group in groups:
        comparable = _comparable(group)
        for place, column in enumerate(spec.columns):
            measure = results.measures.get(column.id)
            if measure is not None and measure.sign:
                _set_bold(comparable, cells, place, measure.sign)
    if not groups:
        return []
    names = " and ".join(f"“{group.label}”" for group in groups)
    if len(groups) == len(spec.groups) > 1:
        names = "each group"
    kind = "best" if any(measure.sign < 0 for measure in results.measures.values()) else "highest"
    return [
        f"Bold: {kind} mean within {names}, among at least two rows whose encoder passes lie within "
        f"{round(100 * TOLERANCE)} % of the median there."
    ]


def _comparable(group: Group) -> list[str]:
    spent = {row.label: float(row.facts[COMPUTE]) for row in group.rows if COMPUTE in row.facts}
    middle = median(spent.values()) if spent else 0.0
    return [label for label, passes in spent.items() if abs(passes - middle) <= TOLERANCE * middle]


def _set_bold(labels: Sequence[str], cells: Cells, place: int, sign: int) -> None:
    ranked = [label for label in labels if cells[label][place].n]
    if len(ranked) < 2:
        return
    best = max(sign * float(cells[label][place].main) for label in ranked)
    for label in ranked:
        if sign * float(cells[label][place].main) == best:
            cells[label][place] = replace(cells[label][place], best=True)
