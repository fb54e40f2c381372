"""A table's YAML as a person writes it, as types; `params/table/*.yaml` explains the keys."""

import unicodedata
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from polygrain.config.check import Strict
from polygrain.provenance.errors import nearest


def plain(text: str) -> str:
    """Text with whitespace collapsed. Raises ValueError on control, invisible and direction-changing characters."""
    text = " ".join(text.split())
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs"):
            raise ValueError(f"invisible character U+{ord(character):04X} in {text!r}; remove it")
    return text


Words = Annotated[str, Field(min_length=1), AfterValidator(plain)]
Unset = Annotated[str, AfterValidator(plain)]


class Column(Strict):
    """One column: a value of a protocol, a fact of the run, one of its settings, or a number that a source reports."""

    id: Words
    label: Words
    group: Unset = ""
    """Spanning header over neighbouring columns of the same group; may be empty."""
    note: Unset = ""
    protocol: Unset = ""
    value: Unset = ""
    """Name of a value in `results/{protocol}.json`, such as `fashion-mnist/1%/top1`."""
    split: Literal["test", "validation"] = "test"
    """Of the value: as reported, or as it was when the protocol selected its settings."""
    mean_of: list[Words] = Field(default_factory=list)
    """Ids of columns of values: their mean for each seed."""
    fact: Literal["images_seen", "steps", "encoder_passes", ""] = ""
    """Name of a fact that is known before a run."""
    setting: Annotated[str, Field(pattern=r"^([a-z_]+(\.[a-z0-9_]+)+)?$")] = ""
    """Dotted key of a run's configuration, such as `method.grains`; printed as text."""
    reported: bool = False

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        whole = bool(self.protocol and self.value)
        kinds = (whole, bool(self.fact), bool(self.setting), self.reported, bool(self.mean_of))
        if sum(kinds) != 1 or bool(self.protocol) != bool(self.value):
            raise ValueError(
                f"column '{self.id}' needs exactly one of protocol + value, fact, setting, mean_of, reported: true"
            )
        return self

    @property
    def measured(self) -> bool:
        """Whether its numbers differ from seed to seed."""
        return bool(self.protocol or self.mean_of)


class WrittenRow(Strict):
    """One row: a method's variant."""

    label: Words
    method: Words
    variant: Words = "base"
    scale: Unset = ""
    """Of its runs; empty: the table's."""
    note: Unset = ""
    reconstructed: Unset = ""
    """Which parts are ours because no source specifies them; empty when there are none."""
    without: dict[Words, Words] = Field(default_factory=dict)
    """Column id -> why this row has no number there."""


class WrittenGroup(Strict):
    """Rows under one heading."""

    label: Words
    best: bool = False
    """Whether the best comparable row, and every row that cannot be told from it, is set in bold."""
    tested: bool = True
    """Whether its rows are compared with the reference."""
    rows: Annotated[list[WrittenRow], Field(min_length=1)]


class Compare(Strict):
    """Significance tests of the other rows against the best of the reference rows, column by column."""

    columns: Annotated[list[Words], Field(min_length=1)]
    reference: Annotated[list[Words], Field(min_length=1)]
    by_group: bool = False
    """Against the reference rows of the own group only."""
    level: Annotated[float, Field(gt=0, lt=1)]


class Floor(Strict):
    """What a row outside the floor's group must reach on average, or its representation has collapsed."""

    row: Words
    column: Words


class Profile(Strict):
    """The two rows that are 0 and 1 of the scale on which all rows are drawn and printed, beside the numbers."""

    zero: Words
    one: Words


class Citation(Strict):
    """A reported number: the record that is printed in a cell."""

    row: Words
    column: Words
    record: Words


class WrittenTable(Strict):
    """A whole table: rows and columns, what is compared, what others report."""

    name: Words
    title: Words
    caption: Words
    dataset: Words
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    groups: Annotated[list[WrittenGroup], Field(min_length=1)]
    columns: Annotated[list[Column], Field(min_length=1)]
    compare: Compare | None = None
    floor: Floor | None = None
    profile: Profile | None = None
    order_by: Unset = ""
    """Id of the column by whose means the rows of each group are ordered, the best first; empty: as written."""
    reported_sources: list[Words] = Field(default_factory=list)
    reported: list[Citation] = Field(default_factory=list)
    footnotes: list[Words] = Field(default_factory=list)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """What spans several keys: names are unique, references exist."""
        rows = _unique("row label", [row.label for group in self.groups for row in group.rows])
        columns = _unique("column id", [column.id for column in self.columns])
        _unique("seed", list(map(str, self.seeds)))
        for citation in self.reported:
            _known("reported", "row", citation.row, rows)
            _known("reported", "column", citation.column, columns)
            if not next(column.reported for column in self.columns if column.id == citation.column):
                raise ValueError(f"reported: column '{citation.column}' is measured; cite in a reported column")
        if self.floor is not None:
            _known("floor", "row", self.floor.row, rows)
        if self.profile is not None:
            self._check_profile(self.profile, rows)
        for where, name in self._named_columns():
            _known(where, "column", name, columns)
        if self.compare is not None:
            self._check_compare(self.compare, rows, columns)
        return self

    def _named_columns(self) -> Iterator[tuple[str, str]]:
        """Where a column is named by its id, and that id."""
        rows = [row for group in self.groups for row in group.rows]
        yield from ((f"column '{column.id}': mean_of", name) for column in self.columns for name in column.mean_of)
        yield from ((f"row '{row.label}': without", name) for row in rows for name in row.without)
        if self.floor is not None:
            yield "floor", self.floor.column
        if self.order_by:
            yield "order_by", self.order_by

    def _check_profile(self, profile: Profile, rows: list[str]) -> None:
        for key, label in (("zero", profile.zero), ("one", profile.one)):
            _known(f"profile.{key}", "row", label, rows)
        for column in self.columns:
            if not column.protocol:
                raise ValueError(f"profile: column '{column.id}' is no value of a protocol; leave it out")

    def _check_compare(self, compare: Compare, rows: list[str], columns: list[str]) -> None:
        for label in compare.reference:
            _known("compare.reference", "row", label, rows)
        for group in self.groups:
            if compare.by_group and sum(row.label in compare.reference for row in group.rows) > 1:
                raise ValueError(f"compare: by_group, but '{group.label}' has several reference rows; keep one")
        for name in compare.columns:
            _known("compare.columns", "column", name, columns)
            column = next(column for column in self.columns if column.id == name)
            if not column.protocol or column.split != "test":
                raise ValueError(f"compare.columns: '{name}' is no test value of a protocol; only those are compared")


def _unique(what: str, names: list[str]) -> list[str]:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{what} '{name}' occurs more than once; give each its own")
    return names


def _known(where: str, what: str, name: str, known: list[str]) -> None:
    if name not in known:
        raise ValueError(f"{where}: no {what} '{name}'{nearest(name, known)}")
