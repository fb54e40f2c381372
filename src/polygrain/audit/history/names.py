"""Find a cell by the names that the user gave in the CSV of any commit.

Labels change over time, and rows are removed. The lock of a commit holds the table's configuration of that time, so
methods, variants and column ids are looked up there; names that it does not have are compared with the printed labels.
"""

import csv
import io
import json
from typing import Any

from polygrain.audit.cells import CellAddress, folded
from polygrain.provenance.errors import UserError
from polygrain.provenance.lock import Locked

Cell = dict[str, str]
"""A line of a table's CSV."""


class Names:
    """One cell by the names that were asked for, and by its address in today's table if it still has one."""

    def __init__(self, row: str, column: str, address: CellAddress | None) -> None:
        self._row, self._column = folded(row), folded(column)
        self._address = address

    def find(self, content: bytes, table: Locked | None) -> Cell | None:
        """The line of a CSV that holds the cell, with the labels in the lock of the same commit.

        Raises UserError when several lines fit.
        """
        text = content.decode(errors="replace")
        lines = [line for line in csv.DictReader(io.StringIO(text, newline="")) if self._is_row(line, table)]
        columns = self._columns(table)
        chosen = [line for line in lines if (folded(line.get("column_group")), folded(line.get("column"))) in columns]
        chosen = chosen or [line for line in lines if self._address is None and self._printed(line)]
        if len(chosen) > 1:
            found = ", ".join(f"'{line['column_group']} {line['column']}' of '{line['row']}'" for line in chosen)
            raise UserError(f"several cells fit: {found}; name the column with its group")
        return chosen[0] if chosen else None

    def _is_row(self, line: Cell, table: Locked | None) -> bool:
        label = folded(line.get("row"))
        if self._address:
            wanted = {f"{self._address.method}/{self._address.variant}"}
            known = {folded(self._address.row_label)}
        else:
            wanted, known = {self._row, f"{self._row}/base"}, {self._row}
        return label in known | {folded(row["label"]) for row in rows_in(table) if _variant(row) in wanted}

    def _columns(self, table: Locked | None) -> set[tuple[str, str]]:
        listed = [column for column in setting(table, "columns") if folded(column.get("id")) == self._column]
        labels = {(folded(column.get("group")), folded(column.get("label"))) for column in listed}
        if self._address and not labels:
            labels.add((folded(self._address.column_group), folded(self._address.column_label)))
        return labels

    def _printed(self, line: Cell) -> bool:
        column, group = folded(line.get("column")), folded(line.get("column_group"))
        return self._column in (column, f"{group} {column}")


def rows_in(table: Locked | None) -> list[dict[str, Any]]:
    """The rows of a table as its lock holds them: label, method, variant, runs."""
    return [row for group in setting(table, "groups") for row in group["rows"]]


def setting(table: Locked | None, key: str) -> Any:
    """A value of the table's configuration in its lock; an empty list where there is none."""
    files = table.parameters.values() if table else ()
    return next((json.loads(values[key]) for values in files if key in values), [])


def _variant(row: dict[str, Any]) -> str:
    return f"{row.get('method')}/{row.get('variant', 'base')}"
