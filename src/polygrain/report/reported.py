"""Numbers that other people report: `params/reported/*.csv`, one record a line, each with its source."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass, fields
from decimal import Decimal, InvalidOperation
from pathlib import Path

from polygrain.provenance.errors import UserError
from polygrain.report.spec import clean


@dataclass(frozen=True)
class Record:
    """One reported number; the columns of the file in their order, all text."""

    row: str
    """Name of the record, unique over the files of a table; a table cites it."""
    method: str
    backbone: str
    dataset: str
    protocol: str
    metric: str
    value: str
    """As the source prints it, with its decimals."""
    unit: str
    """`%` or `fraction`."""
    source: str

    @property
    def percent(self) -> Decimal:
        """The value in percent, with the decimals of the source."""
        return Decimal(self.value).scaleb(2 if self.unit == "fraction" else 0)

    @property
    def text(self) -> str:
        """The value in percent as printed; never in exponent form."""
        return format(self.percent, "f")

    @property
    def description(self) -> str:
        """A footnote: what was measured on what, and where it is written."""
        return f"{self.method}, {self.backbone}, {self.dataset}, {self.protocol}, {self.metric}: {self.source}."


HEADER = tuple(field.name for field in fields(Record))


def read_reported(paths: Iterable[Path]) -> dict[str, Record]:
    """All records by name. Raises UserError naming file and line of anything that is not as documented."""
    records: dict[str, Record] = {}
    for path in paths:
        try:
            lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines(), strict=True))
        except FileNotFoundError:
            raise UserError(f"{path}: not found; a table names it under reported_sources") from None
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a CSV file in UTF-8 ({error})") from None
        if not lines or tuple(lines[0]) != HEADER:
            raise UserError(f"{path}: the first line must be {','.join(HEADER)}")
        for number, cells in enumerate(lines[1:], start=2):
            record = _record(f"{path}, line {number}", cells)
            if record.row in records:
                raise UserError(f"{path}, line {number}: a second record '{record.row}'")
            records[record.row] = record
    return records


def _record(where: str, cells: list[str]) -> Record:
    if len(cells) != len(HEADER) or not all(cells):
        raise UserError(f"{where}: needs {len(HEADER)} filled columns, as in the header")
    record = Record(*(clean(where, cell) for cell in cells))
    try:
        fits = record.unit in ("%", "fraction") and 0 <= record.percent <= 100
    except InvalidOperation:
        fits = False
    if not fits:
        raise UserError(f"{where}: value '{record.value}' with unit '{record.unit}' is neither % nor fraction")
    return record
