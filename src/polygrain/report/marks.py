"""Which cells stand out, and the rules that the table prints about it.

An arrow is a difference from the best reference row of the column whose Holm-adjusted p value is below the level; the
family is all tested cells of the table. The best of several reference rows is chosen by its mean on the test split
itself, which favours the reference and not the method.

Bold is the best mean of a group that asks for it, and each row that the same test, Holm-adjusted within the column,
cannot tell from it, among comparable rows: those whose encoder-pass units lie within 5 % of the group's median, at
least two of them. Only in columns whose numbers have a better side.

With fewer than three seeds nothing is tested, and bold is the best printed mean.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from statistics import median

from polygrain.provenance.errors import UserError
from polygrain.report.cells import Cell, Comparison
from polygrain.report.measured import MissingError, Results
from polygrain.report.spec import Compare, Group, Row, Spec
from polygrain.report.statistics import SEEDS, Contrast, NoTestError, difference, holm

COMPUTE = "encoder_passes"
TOLERANCE = 0.05

Cells = dict[str, list[Cell]]
"""Row label -> its cells, in the order of the columns."""
Tested = tuple[str, int, str, Contrast]
"""A row's label, the place of its column, the reference's label, and the difference in the unit of the cell."""


def mark_differences(spec: Spec, results: Results, cells: Cells) -> list[str]:
    """Test every row that is no reference in the compared columns, write the outcome into `cells`, return the rule.

    Raises UserError when two rows were tested on different examples, and for a column in which no side is better.
    """
    if spec.compare is None:
        return []
    if len(spec.seeds) < SEEDS:
        return [f"No difference is tested: that needs {SEEDS} seeds."]
    found = [
        tested for name in spec.compare.columns for tested in _test_column(spec, spec.compare, results, name, cells)
    ]
    _write(spec, results, found, spec.compare.level, cells)
    return [_significance_rule(spec, spec.compare, len(found)), *_detectable(spec, results, spec.compare.level, found)]


def _test_column(spec: Spec, compare: Compare, results: Results, name: str, cells: Cells) -> Iterator[Tested]:
    """Compare the rows of one column; a cell that cannot be compared gets a note that says why."""
    place = next(place for place, column in enumerate(spec.columns) if column.id == name)
    measure = results.measures.get(name)
    if measure is None:  # no row has a number
        return
    if not measure.sign:
        raise UserError(f"table.compare.columns: the numbers of '{name}' have no better side; leave it out")
    for group in spec.groups:
        among = group.rows if compare.by_group else spec.rows
        reference = _best_reference(among, compare, cells, place, measure.sign)
        if reference is None or not group.tested:
            continue
        for row in (row for row in group.rows if row.label not in compare.reference and cells[row.label][place].n):
            try:
                contrast = _contrast(spec, results, row, reference, place)
            except (MissingError, NoTestError) as reason:
                cell = cells[row.label][place]
                cells[row.label][place] = replace(cell, notes=(*cell.notes, f"Not compared: {reason}."))
            else:
                yield row.label, place, reference.label, contrast.times(measure.factor)


def _write(spec: Spec, results: Results, found: Sequence[Tested], level: float, cells: Cells) -> None:
    adjusted = holm([contrast.p for *_, contrast in found])
    for (label, place, reference, contrast), p in zip(found, adjusted, strict=True):
        measure = results.measures[spec.columns[place].id]
        arrow = "" if p >= level else "↑" if measure.sign * contrast.estimate > 0 else "↓"
        comparison = Comparison(reference, contrast, p, arrow)
        cells[label][place] = replace(cells[label][place], comparison=comparison)


def _best_reference(
    among: Sequence[Row], compare: Compare, cells: Mapping[str, Sequence[Cell]], place: int, sign: int
) -> Row | None:
    """The reference row with the best mean (the first of equals); None when there is none or one is missing."""
    rows = [row for row in among if row.label in compare.reference]
    means = [cells[row.label][place].mean for row in rows]
    known = [sign * mean for mean in means if mean is not None]
    return rows[known.index(max(known))] if known and len(known) == len(means) else None


def _contrast(spec: Spec, results: Results, row: Row, reference: Row, place: int) -> Contrast:
    column = spec.columns[place]
    first, examples = results.scores(row, column, spec.seeds)
    second, same_examples = results.scores(reference, column, spec.seeds)
    if examples != same_examples:
        raise UserError(
            f"{row.runs[0]}: tested on other examples than {reference.runs[0]} in {column.value}; evaluate both again"
        )
    return difference(first, second)


def _significance_rule(spec: Spec, compare: Compare, family: int) -> str:
    names = [row.label for row in spec.rows if row.label in compare.reference]
    *others, last = names
    best = "better" if len(names) == 2 else "best"
    reference = f"the {best} of {', '.join(others)} and {last} in that column" if others else last
    if compare.by_group:
        reference = f"the reference row of its group ({'; '.join(names)})"
    untested = [f"“{group.label}”" for group in spec.groups if not group.tested]
    return (
        f"↑ ↓: better or worse than {reference}, p < {compare.level:g} after the Holm correction over {family} "
        f"comparison{'' if family == 1 else 's'}; t test over seeds and test images."
        + (f" Not tested: {' and '.join(untested)}." if untested else "")
    )


def _detectable(spec: Spec, results: Results, level: float, found: Sequence[Tested]) -> Iterator[str]:
    """What the test can find, column by column: the median over its rows, at the level of Holm's first step."""
    parts = []
    for place, column in enumerate(spec.columns):
        sizes = [contrast.detectable(level / len(found)) for _, where, _, contrast in found if where == place]
        if sizes:
            head = f"{column.group} {column.label}".strip()
            parts.append(f"{head} {median(sizes):.{results.measures[column.id].decimals}f}")
    if parts:
        yield f"Difference that is marked with a probability of 80 %, if it is the largest: {', '.join(parts)}."


def mark_best(spec: Spec, results: Results, cells: Cells) -> list[str]:
    """Set the best comparable cells of each column in bold, in groups that ask for it; return the rule."""
    groups = [group for group in spec.groups if group.best]
    for group in groups:
        comparable = _comparable(group)
        for place, column in enumerate(spec.columns):
            measure = results.measures.get(column.id)
            if measure is not None and measure.sign:
                _set_bold(spec, results, comparable, cells, place)
    if not groups:
        return []
    names = " and ".join(f"“{group.label}”" for group in groups)
    if len(groups) == len(spec.groups) > 1:
        names = "each group"
    kind = "best" if any(measure.sign < 0 for measure in results.measures.values()) else "highest"
    alike = ""
    if spec.compare is not None and len(spec.seeds) >= SEEDS:
        alike = (
            f", and every row that the same test cannot tell from it (level {spec.compare.level:g}, Holm in its column)"
        )
    return [
        f"Bold: {kind} mean within {names}{alike}, among at least two rows whose encoder passes lie within "
        f"{round(100 * TOLERANCE)} % of the median there."
    ]


def _comparable(group: Group) -> list[Row]:
    spent = [(row, float(row.facts[COMPUTE])) for row in group.rows if COMPUTE in row.facts]
    middle = median(passes for _, passes in spent) if spent else 0.0
    return [row for row, passes in spent if abs(passes - middle) <= TOLERANCE * middle]


def _set_bold(spec: Spec, results: Results, rows: Sequence[Row], cells: Cells, place: int) -> None:
    sign = results.measures[spec.columns[place].id].sign
    ranked = {row.label: row for row in rows if cells[row.label][place].n}
    if len(ranked) < 2:
        return
    best = max(ranked, key=lambda label: sign * (cells[label][place].mean or 0.0))
    others = [row for label, row in ranked.items() if label != best]
    alike = _alike(spec, results, ranked[best], others, place)
    for label in ranked:
        if label in alike or cells[label][place].main == cells[best][place].main:
            cells[label][place] = replace(cells[label][place], best=True)


def _alike(spec: Spec, results: Results, best: Row, others: Sequence[Row], place: int) -> list[str]:
    """The rows that the test cannot tell from the best one."""
    if spec.compare is None or len(spec.seeds) < SEEDS:
        return []
    tested = {}
    for row in others:
        with suppress(MissingError, NoTestError):
            tested[row.label] = _contrast(spec, results, row, best, place).p
    adjusted = zip(tested, holm(list(tested.values())), strict=True)
    return [label for label, p in adjusted if p >= spec.compare.level]
