"""One cell of a table: which runs and which value it prints, and its line in a published CSV."""

import csv
import difflib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polygrain.config import ledger
from polygrain.config.project import Project
from polygrain.config.runs import Run
from polygrain.config.tables import Table, row_runs, specification
from polygrain.provenance.errors import UserError
from polygrain.report.spec import clean

_CONTENTS = ("protocol", "fact", "setting", "reported")


@dataclass(frozen=True)
class CellAddress:
    """One cell: its place as printed, the runs of its row, and what its column holds.

    Exactly one of `protocol` with `value`, `fact`, `setting` and `reported` is set.
    """

    table: Table
    row_group: str
    row_label: str
    method: str
    variant: str
    runs: tuple[Run, ...]
    """A run for each seed of the table."""
    column: str
    """The column's `id` in the table's YAML."""
    column_group: str
    column_label: str
    protocol: str = ""
    value: str = ""
    """Name of a value in `results/{protocol}.json`."""
    split: str = "test"
    fact: str = ""
    setting: str = ""
    reported: bool = False
    record: str = ""
    """In a reported column the first field of the cited line in params/reported; empty when none is cited."""

    @property
    def printed_in(self) -> str:
        """The cell in words: `row Mugs, column k-NN of Fashion-MNIST`."""
        group = f" of {self.column_group}" if self.column_group else ""
        return f"row {self.row_label}, column {self.column_label}{group}"


def find_cell(project: Project, target: str, row: str, column: str) -> CellAddress:
    """Look a cell up in a table's YAML.

    target: a table's file, such as `reports/table1.pdf`. row: its label as printed, or METHOD/VARIANT, or METHOD when
    one row alone has it. column: its `id`. Case does not matter. Raises UserError naming what there is.
    """
    table = Table.parse(target)
    if table.name == ledger.NAME:
        raise UserError(f"{target}: the ledger prints no measured cell; its lines cite their sources themselves")
    spec = specification(project, table)
    place = f"params/table/{table.name}.yaml"
    group, found = _find_row(spec, row, place)
    chosen = _find_column(spec, column, place)
    label = clean(place, found["label"])
    if reason := found.get("without", {}).get(chosen["id"]):
        raise UserError(f"{place}: row '{label}' has no number in column '{chosen['id']}': {reason}")
    cited = [
        citation["record"]
        for citation in spec.get("reported", [])
        if (clean(place, citation["row"]), citation["column"]) == (label, chosen["id"])
    ]
    return CellAddress(
        table=table,
        row_group=clean(place, group["label"]),
        row_label=label,
        method=found["method"],
        variant=found.get("variant", "base"),
        runs=tuple(row_runs(spec, found, table)),
        column=chosen["id"],
        column_group=clean(place, chosen.get("group", "")),
        column_label=clean(place, chosen["label"]),
        **{key: chosen[key] for key in ("protocol", "value", "split", "fact", "setting", "reported") if key in chosen},
        record=cited[0] if cited else "",
    )


def printed_cell(content: str, address: CellAddress) -> dict[str, str] | None:
    """The line of a table's CSV that holds the cell, by labels; None when it holds no such cell or several."""
    wanted = (address.row_label, address.column_group, address.column_label)
    lines = [
        line
        for line in csv.DictReader(io.StringIO(content, newline=""))
        if (line.get("row"), line.get("column_group"), line.get("column")) == wanted
    ]
    return lines[0] if len(lines) == 1 else None


def _find_row(spec: dict[str, Any], name: str, place: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row and its group: by label first, then by METHOD/VARIANT, then by METHOD."""
    rows = [(group, row) for group in spec["groups"] for row in group["rows"]]
    labels = [" ".join(row["label"].split()) for _, row in rows]
    variants = [f"{row['method']}/{row.get('variant', 'base')}" for _, row in rows]
    methods = [str(row["method"]) for _, row in rows]
    wanted = folded(name)
    for names in (labels, variants, methods):
        matches = [number for number, own in enumerate(names) if own.casefold() == wanted]
        if len(matches) == 1:
            return rows[matches[0]]
        if matches:
            between = ", ".join(variants[number] for number in matches)
            raise UserError(f"{place}: {len(matches)} rows are called '{name}'; say one of {between}")
    listed = ", ".join(f"{label} ({own})" for label, own in zip(labels, variants, strict=True))
    raise UserError(f"{place}: no row '{name}'{_hint(wanted, [*labels, *variants, *methods])}; rows: {listed}")


def _find_column(spec: dict[str, Any], name: str, place: str) -> dict[str, Any]:
    known = [str(column["id"]) for column in spec["columns"]]
    matches = [column for column in spec["columns"] if column["id"].casefold() == name.strip().casefold()]
    if len(matches) != 1:
        fault = "several columns" if matches else "no column"
        raise UserError(f"{place}: {fault} '{name}'{_hint(name, known)}; columns: {', '.join(known)}")
    column: dict[str, Any] = matches[0]
    if column.get("mean_of"):
        raise UserError(f"{place}: '{column['id']}' is a mean of columns; name one of {', '.join(column['mean_of'])}")
    if sum(bool(column.get(key)) for key in _CONTENTS) != 1 or ("protocol" in column) != ("value" in column):
        raise UserError(f"{place}: column '{column['id']}' needs exactly one of {', '.join(_CONTENTS)}")
    return column


def folded(text: Any) -> str:
    """A label without case and superfluous spaces."""
    return " ".join(str(text or "").split()).casefold()


def _hint(name: str, known: Sequence[str]) -> str:
    """The nearest of `known`, whatever its case; empty when none is near."""
    by_folded = {own.casefold(): own for own in known}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return f", did you mean '{by_folded[close[0]]}'?" if close else ""
