"""The cells of a table as data: what every output format prints."""

from dataclasses import dataclass

from polygrain.report.spec import Column
from polygrain.report.statistics import Contrast

ABSENT = "—"


@dataclass(frozen=True)
class Comparison:
    """A cell against the reference row of its column."""

    reference: str
    difference: Contrast
    """In the unit of the cell."""
    p_adjusted: float
    arrow: str
    """`↑` better, `↓` worse, empty when not significant."""


@dataclass(frozen=True)
class Cell:
    """One printed cell: a number in its unit, or text."""

    unit: str
    """`%` for what was measured as a fraction; empty for text and for numbers without unit."""
    main: str
    """The number or text, or `ABSENT`."""
    spread: str = ""
    """The standard deviation without its sign, empty when there is none."""
    mean: float | None = None
    sd: float | None = None
    n: int = 0
    decimals: int = 4
    """Of mean, deviation and difference in the CSV."""
    notes: tuple[str, ...] = ()
    best: bool = False
    comparison: Comparison | None = None

    @property
    def text(self) -> str:
        """The number as one string."""
        return f"{self.main} ± {self.spread}" if self.spread else self.main

    @property
    def arrow(self) -> str:
        """The significance mark."""
        return self.comparison.arrow if self.comparison else ""


@dataclass(frozen=True)
class TableRow:
    """A label with its notes and one cell per column."""

    label: str
    notes: tuple[str, ...]
    reconstructed: bool
    cells: tuple[Cell, ...]
    collapsed: str = ""
    """The seeds that collapsed and by which values; empty when none did."""


@dataclass(frozen=True)
class TableGroup:
    """Rows under one heading."""

    label: str
    rows: tuple[TableRow, ...]


@dataclass(frozen=True)
class Footer:
    """What the numbers were made from: no time, host or commit."""

    scale: str
    seeds: tuple[int, ...]
    data_hash: str
    claim_id: str
    attestations: int = 0
    """How often older runs were shown to come out the same from changed code."""

    @property
    def text(self) -> str:
        """One line without the whole claim id."""
        seeds = ", ".join(map(str, self.seeds))
        made = f"scale {self.scale} · seeds {seeds} · data {self.data_hash[:12]} · claim {self.claim_id[:16]}"
        return f"{made} · {self.attestations} attested" if self.attestations else made


@dataclass(frozen=True)
class Bar:
    """A row in one panel of a profile: its scaled mean with the ends of its interval, which are it where none is known.

    `None` in place of the three: the row or the scale has no number.
    """

    span: tuple[float, float, float] | None
    arrow: str = ""
    """As in the cell that it is drawn from."""


@dataclass(frozen=True)
class Profile:
    """Rows drawn in a panel for each column, between two rows at 0 and 1."""

    zero: str
    one: str
    bars: tuple[tuple[str, tuple[tuple[str, tuple[Bar, ...]], ...]], ...]
    """Groups: label, rows; a row: label, a bar for each column."""
    reference: str
    """The row that the others are tested against; empty when none is."""


@dataclass(frozen=True)
class TableContent:
    """Everything that a renderer needs."""

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    groups: tuple[TableGroup, ...]
    legend: tuple[str, ...]
    """Lines below the table that belong to no single cell."""
    footer: Footer
    profile: Profile | None = None

    @property
    def footnotes(self) -> dict[str, str]:
        """Text -> mark (a, b, ...), in reading order: column heads, then row by row."""
        marks: dict[str, str] = {}
        texts = [column.note for column in self.columns if column.note]
        for group in self.groups:
            for row in group.rows:
                texts += [*row.notes, *(note for cell in row.cells for note in cell.notes)]
        for text in texts:
            marks.setdefault(text, letters(len(marks)))
        return marks


def letters(number: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa."""
    head, tail = divmod(number, 26)
    return (letters(head - 1) if head else "") + chr(ord("a") + tail)
