"""What the runs behind a row measured: one number per seed, and what each seed scored on each test example."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from polygrain.evaluate.result import Measure, Result
from polygrain.provenance.errors import UserError
from polygrain.report.spec import Column, Row


class MissingError(Exception):
    """A number that is not there, with the reason as a reader of the table should see it."""


@dataclass(frozen=True)
class Measured:
    """A row's numbers in one column, one per seed, and what they are; `notes` are the protocol's remarks on them."""

    values: tuple[float, ...]
    measure: Measure
    notes: tuple[str, ...]


@dataclass
class Results:
    """The result files under a root, each read once."""

    root: Path
    measures: dict[str, Measure] = field(default_factory=dict)
    """Column id -> what its numbers are, once one of them was read."""
    _first: dict[str, str] = field(default_factory=dict)
    """Column id -> the run that said so."""
    _read: dict[tuple[str, str], Result] = field(default_factory=dict)

    def measured(self, row: Row, column: Column, seeds: Sequence[int]) -> Measured:
        """The row's values.

        Raises MissingError when any seed lacks one, UserError when a file is malformed or when its unit, direction or
        decimals are not those of the column's other numbers.
        """
        found = self._of_row(row, column.protocol, seeds)
        found = [of_split(result, column.value, column.split) for result in found]
        lacking = [seed for seed, result in zip(seeds, found, strict=True) if column.value not in result.values]
        if lacking:
            raise MissingError(f"{column.protocol} gave no {column.value} for {_seeds(lacking)}")
        numbers = [result.values[column.value] for result in found]
        for run, number in zip(row.runs, numbers, strict=True):
            self._agree(run, column, number.measure)
        values = tuple(float(number.value) for number in numbers)
        return Measured(values, numbers[0].measure, _remarks(found, column.value.partition("/")[0], seeds))

    def scores(self, row: Row, column: Column, seeds: Sequence[int]) -> tuple[npt.NDArray[np.float64], bytes]:
        """What each seed scored [S] on each test example [N], by ascending index, and a key of those examples.

        Rows with an equal key were tested on the same examples with the same labels. Raises as above.
        """
        key, _, metric = column.value.rpartition("/")
        scores, examples = [], set[bytes]()
        for run, result in zip(row.runs, self._of_row(row, column.protocol, seeds), strict=True):
            rows = result.examples.get(key)
            if rows is None or metric not in rows.scores:
                raise MissingError(f"{column.protocol} kept no score per test example for {column.value}")
            if not result.agrees(column.value):
                path = self._path(run, column.protocol, "npz")
                raise UserError(f"{path}: disagrees with {column.protocol}.json on {column.value}; evaluate again")
            order = np.argsort(rows.index, kind="stable")
            scores.append(rows.scores[metric][order])
            labels = b"" if rows.label is None else rows.label[order].tobytes()
            examples.add(rows.index[order].tobytes() + labels)
        if len(examples) > 1:
            raise UserError(f"{row.runs[0]}: its seeds were tested on different examples; evaluate them again")
        return np.stack(scores).astype(np.float64), examples.pop()

    def _agree(self, run: str, column: Column, measure: Measure) -> None:
        first = self._first.setdefault(column.id, run)
        known = self.measures.setdefault(column.id, measure)
        if measure != known:
            raise UserError(
                f"{self._path(run, column.protocol, 'json')}: {column.value} has {_words(measure)}, but"
                f" {_words(known)} in {first}; evaluate both again, or give them columns of their own"
            )

    def _of_row(self, row: Row, protocol: str, seeds: Sequence[int]) -> list[Result]:
        absent = [
            seed
            for seed, run in zip(seeds, row.runs, strict=True)
            if not all(self._path(run, protocol, kind).is_file() for kind in ("json", "npz"))
        ]
        if absent:
            raise MissingError(f"no {protocol} result for {_seeds(absent)}")
        return [self._load(run, protocol) for run in row.runs]

    def _load(self, run: str, protocol: str) -> Result:
        if (run, protocol) not in self._read:
            self._read[run, protocol] = Result.load(self.root / run / "results", protocol)
        return self._read[run, protocol]

    def _path(self, run: str, protocol: str, kind: str) -> Path:
        return self.root / run / "results" / f"{protocol}.{kind}"


def of_split(result: Result, name: str, split: str) -> Result:
    """A result with a value as it was on a split; for `validation` that alone, and nothing if it was not kept."""
    if split == "test":
        return result
    key, _, metric = name.rpartition("/")
    value = result.selected.get(key, {}).get(f"validation_{metric}")
    values = {} if value is None else {name: result.values[name]._replace(value=value)}
    return replace(result, values=values, examples={})


def _words(measure: Measure) -> str:
    return f"unit {measure.unit}, direction {measure.direction}, {measure.decimals} decimals"


def _remarks(found: Sequence[Result], dataset: str, seeds: Sequence[int]) -> tuple[str, ...]:
    """What a protocol says about a data set, each remark once with the seeds that it holds for."""
    remarks: dict[str, list[int]] = {}
    for seed, result in zip(seeds, found, strict=True):
        for remark in result.note.split("; "):
            if remark.startswith(f"{dataset}: "):
                remarks.setdefault(remark, []).append(seed)
    return tuple(f"{_seeds(where).capitalize()}, {remark}" for remark, where in remarks.items())


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
