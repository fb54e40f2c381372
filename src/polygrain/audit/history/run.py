"""`polygrain history`: how a printed number changed over commits, as text and as a figure."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from polygrain.audit.cells import find_cell
from polygrain.audit.history.names import Names
from polygrain.audit.history.values import Value, number, values
from polygrain.audit.judge import audit_history
from polygrain.audit.locks import read_history
from polygrain.audit.repository import Repository
from polygrain.audit.run import LAYOUT
from polygrain.config.project import Project
from polygrain.config.tables import Table
from polygrain.provenance.errors import UserError


def print_history(project: Project, target: str, row: str, column: str, plot: str) -> int:
    """Print every value of a cell with its reason, a commit after the other; with `plot` draw them into that file.

    A row or column that today's table lacks is looked for in the commits. Raises UserError when none of them has it.
    """
    table, address, fault = Table.parse(target), None, None
    try:
        address = find_cell(project, target, row, column)
    except UserError as error:
        fault = error
    with Repository(project.root) as repository:
        result = audit_history(repository, read_history(repository), LAYOUT)
        found = list(values(repository, result, table, Names(row, column, address)))
    cells = [value.cell for value in found if value.cell]
    if not cells:
        raise fault or UserError(f"{target}: no commit published a number there; run `polygrain record {target}`")
    last = cells[-1]
    title = f"{last['row']}, {' '.join(filter(None, (last['column_group'], last['column'])))}"
    print(f"{target}: {title}" + (f" ({last['unit']})" if last["unit"] else ""))
    for line in _lines(found):
        print(line)
    if plot:
        _plot(found, f"{table.name}: {title}", last["unit"], Path(plot))
        print(f"wrote {plot}")
    return 0


def _lines(found: Sequence[Value]) -> Iterator[str]:
    texts, deltas = (max(len(getattr(value, name)) for value in found) for name in ("text", "delta"))
    for value in found:
        commit, numbers = value.commit, f"{value.text:>{texts}}  {value.delta:>{deltas}}"
        yield f"{commit.date} {commit.short}  {numbers}  {commit.subject}".rstrip()
        yield f"    {'UNEXPLAINED ' if value.unexplained else ''}{'; '.join(value.why)}"


def _plot(found: Sequence[Value], title: str, unit: str, path: Path) -> None:
    from polygrain.report.moves import Move, plot_moves

    moves = [
        Move(
            commit=value.commit.short,
            date=value.commit.date,
            subject=value.commit.subject,
            mean=mean,
            sd=number(value.cell, "sd"),
            text=value.text,
            unexplained=value.unexplained,
        )
        for value in found
        if (mean := number(value.cell, "mean")) is not None
    ]
    plot_moves(moves, title, unit, path)
