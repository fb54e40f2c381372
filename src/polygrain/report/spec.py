"""What a table asks for, read from its resolved configuration into checked dataclasses.

`params/table/*.yaml` documents the keys. The workflow fills in, per row, `runs` (a run directory for each seed),
`facts` and `inputs` (hashes per run), and for the table `scale`, `seeds`, `manifests` and paths of `reported_sources`.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polygrain.provenance.errors import UserError, nearest


@dataclass(frozen=True)
class Column:
    """One column: a value of a protocol, a fact of the run, one of its settings, or a number that a source reports."""

    id: str
    label: str
    group: str
    """Spanning header over neighbouring columns of the same group; may be empty."""
    note: str
    protocol: str = ""
    value: str = ""
    """Name of a value in `results/{protocol}.json`, such as `fashion-mnist/1%/top1`."""
    fact: str = ""
    """Name of a fact that the workflow knows before a run, such as `images_seen`."""
    setting: str = ""
    """Dotted key of a run's configuration, such as `method.grains`; printed as text."""
    reported: bool = False


@dataclass(frozen=True)
class Row:
    """One row: the runs of a method's variant, a seed each."""

    label: str
    method: str
    variant: str
    note: str
    reconstructed: str
    """Which parts are ours because no source specifies them; empty when there are none."""
    runs: tuple[str, ...]
    facts: Mapping[str, float]
    settings: Mapping[str, Any]
    """Dotted key -> value in the configuration of the row's runs."""
    inputs: Mapping[str, Mapping[str, str]]
    """Run directory -> hashes of its config, code and environment."""


@dataclass(frozen=True)
class Group:
    """Rows under one heading."""

    label: str
    best: bool
    """Whether the best comparable row is set in bold."""
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Compare:
    """Significance tests of the other rows against the best of the reference rows, column by column."""

    columns: tuple[str, ...]
    reference: tuple[str, ...]
    by_group: bool
    """Against the reference rows of the own group only."""
    level: float
    draws: int


@dataclass(frozen=True)
class Citation:
    """A reported number: which record stands in which cell."""

    row: str
    column: str
    record: str


@dataclass(frozen=True)
class Spec:
    """A whole table."""

    name: str
    title: str
    caption: str
    scale: str
    seeds: tuple[int, ...]
    groups: tuple[Group, ...]
    columns: tuple[Column, ...]
    compare: Compare | None
    reported: tuple[Citation, ...]
    reported_sources: tuple[str, ...]
    footnotes: tuple[str, ...]
    manifests: tuple[str, ...]
    attestations: int = 0

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows, through the groups."""
        return tuple(row for group in self.groups for row in group.rows)


_GROUP = ("label", "best", "rows")
_ROW = ("label", "method", "variant", "note", "reconstructed", "runs", "facts", "settings", "inputs")
_COLUMN = ("id", "label", "group", "note", "protocol", "value", "fact", "setting", "reported")
_COMPARE = ("columns", "reference", "by_group", "level", "draws")
_CITATION = ("row", "column", "record")


def parse(config: Mapping[str, Any]) -> Spec:
    """Read a resolved table configuration. Raises UserError naming a missing, unknown or contradictory key."""
    whole = _Keys("table", config)
    spec = Spec(
        name=whole.text("name"),
        title=whole.text("title"),
        caption=whole.text("caption"),
        scale=whole.text("scale"),
        seeds=tuple(whole.items("seeds", int)),
        groups=tuple(_group(part) for part in whole.parts("groups", _GROUP)),
        columns=tuple(_column(part) for part in whole.parts("columns", _COLUMN)),
        compare=_compare(whole.part("compare", _COMPARE)) if whole.has("compare") else None,
        reported=tuple(
            Citation(part.text("row"), part.text("column"), part.text("record"))
            for part in whole.parts("reported", _CITATION, [])
        ),
        reported_sources=tuple(whole.items("reported_sources", str, [])),
        footnotes=tuple(clean(whole.where, text) for text in whole.items("footnotes", str, [])),
        manifests=tuple(whole.items("manifests", str)),
        attestations=whole.get("attestations", int, 0),
    )
    _check(spec)
    return spec


def clean(where: str, text: str) -> str:
    """Text with whitespace collapsed. Raises UserError on control, invisible and direction-changing characters."""
    text = " ".join(text.split())
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs"):
            raise UserError(f"{where}: invisible character U+{ord(character):04X} in {text!r}; remove it")
    return text


class _Keys:
    """A mapping with its place in the configuration, for messages."""

    def __init__(self, where: str, value: Any, known: Sequence[str] | None = None) -> None:
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: must be a mapping, not {value!r}")
        self.where, self._value = where, value
        for key in value:
            if known is not None and key not in known:
                raise UserError(f"{where}: unknown key '{key}'{nearest(str(key), known)}")

    def has(self, key: str) -> bool:
        return self._value.get(key) is not None

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        value = self._value.get(key)
        if value is None:
            value = default
        if value is None:
            raise UserError(f"{self.where}: key '{key}' is missing")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UserError(f"{self.where}: key '{key}' has an unfit value {value!r}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        return clean(f"{self.where}.{key}", self.get(key, str, default))

    def items(self, key: str, kind: type, default: list[Any] | None = None) -> list[Any]:
        values: list[Any] = self.get(key, (list, tuple), default)
        for value in values:
            if not isinstance(value, kind) or isinstance(value, bool):
                raise UserError(f"{self.where}: key '{key}' holds an unfit value {value!r}")
        return values

    def part(self, key: str, known: Sequence[str]) -> "_Keys":
        return _Keys(f"{self.where}.{key}", self.get(key, Mapping), known)

    def parts(self, key: str, known: Sequence[str], default: list[Any] | None = None) -> list["_Keys"]:
        values = self.get(key, (list, tuple), default)
        return [_Keys(f"{self.where}.{key}.{place}", value, known) for place, value in enumerate(values)]


def _group(keys: _Keys) -> Group:
    return Group(
        label=keys.text("label"),
        best=keys.get("best", bool, False),
        rows=tuple(_row(part) for part in keys.parts("rows", _ROW)),
    )


def _row(keys: _Keys) -> Row:
    facts = keys.get("facts", Mapping, {})
    for name, value in facts.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise UserError(f"{keys.where}.facts.{name}: must be a number from 0, not {value!r}")
    return Row(
        label=keys.text("label"),
        method=keys.text("method"),
        variant=keys.text("variant", "base"),
        note=keys.text("note", ""),
        reconstructed=keys.text("reconstructed", ""),
        runs=tuple(keys.items("runs", str)),
        facts=facts,
        settings=keys.get("settings", Mapping, {}),
        inputs=keys.get("inputs", Mapping),
    )


def _column(keys: _Keys) -> Column:
    column = Column(
        id=keys.text("id"),
        label=keys.text("label"),
        group=keys.text("group", ""),
        note=keys.text("note", ""),
        protocol=keys.text("protocol", ""),
        value=keys.text("value", ""),
        fact=keys.text("fact", ""),
        setting=keys.text("setting", ""),
        reported=keys.get("reported", bool, False),
    )
    kinds = (bool(column.protocol and column.value), bool(column.fact), bool(column.setting), column.reported)
    if sum(kinds) != 1 or bool(column.protocol) != bool(column.value):
        raise UserError(
            f"{keys.where}: column '{column.id}' needs exactly one of protocol + value, fact, setting, reported: true"
        )
    return column


def _compare(keys: _Keys) -> Compare:
    level, draws = keys.get("level", float), keys.get("draws", int)
    if not 0 < level < 1 or draws < 1:
        raise UserError(f"{keys.where}: level ({level}) must be between 0 and 1, draws ({draws}) at least 1")
    return Compare(
        columns=tuple(keys.items("columns", str)),
        reference=tuple(clean(keys.where, label) for label in keys.items("reference", str)),
        by_group=keys.get("by_group", bool, False),
        level=level,
        draws=draws,
    )


def _check(spec: Spec) -> None:
    """What spans several keys: names are unique, references exist, every row has a run per seed."""
    rows = _unique("row label", [row.label for row in spec.rows])
    columns = _unique("column id", [column.id for column in spec.columns])
    for citation in spec.reported:
        _known("reported", "row", citation.row, rows)
        _known("reported", "column", citation.column, columns)
        if not next(column.reported for column in spec.columns if column.id == citation.column):
            raise UserError(f"table.reported: column '{citation.column}' is measured; cite in a reported column")
    if spec.compare is not None:
        _check_compare(spec, spec.compare, rows, columns)
    if not spec.seeds or not spec.rows or not spec.columns:
        raise UserError("table: needs at least one seed, one row and one column")
    for row in spec.rows:
        if len(row.runs) != len(spec.seeds):
            raise UserError(f"table: row '{row.label}' has {len(row.runs)} runs for {len(spec.seeds)} seeds")


def _check_compare(spec: Spec, compare: Compare, rows: list[str], columns: list[str]) -> None:
    if not compare.columns or not compare.reference:
        raise UserError("table.compare: needs at least one column and one reference row")
    for label in compare.reference:
        _known("compare.reference", "row", label, rows)
    for group in spec.groups:
        if compare.by_group and sum(row.label in compare.reference for row in group.rows) > 1:
            raise UserError(f"table.compare: by_group, but '{group.label}' has several reference rows; leave it one")
    for name in compare.columns:
        _known("compare.columns", "column", name, columns)
        if not next(column.protocol for column in spec.columns if column.id == name):
            raise UserError(f"table.compare.columns: '{name}' is no value of a protocol; only those can be compared")


def _unique(what: str, names: list[str]) -> list[str]:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"table: {what} '{name}' occurs more than once; give each its own")
    return names


def _known(where: str, what: str, name: str, known: list[str]) -> None:
    if name not in known:
        raise UserError(f"table.{where}: no {what} '{name}'{nearest(name, known)}")
