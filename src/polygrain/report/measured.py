"""What the runs behind a row measured: one number per seed, and which test images each seed got right."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from polygrain.evaluate.result import Predictions, Result
from polygrain.provenance.errors import UserError
from polygrain.report.spec import Column, Row

# A value and the share of right predictions are the same quotient of whole numbers.
_ROUNDING = 1e-9


class MissingError(Exception):
    """A number that is not there, with the reason as a reader of the table should see it."""


@dataclass(frozen=True)
class Measured:
    """A row's numbers in one column, one per seed, as fractions; `notes` are the protocol's remarks on them."""

    values: tuple[float, ...]
    notes: tuple[str, ...]


@dataclass
class Results:
    """The result files under a root, each read once."""

    root: Path
    _read: dict[tuple[str, str], Result] = field(default_factory=dict)

    def measured(self, row: Row, column: Column, seeds: Sequence[int]) -> Measured:
        """The row's values. Raises MissingError when any seed lacks one, UserError when a file is malformed."""
        found = self._of_row(row, column.protocol, seeds)
        lacking = [seed for seed, result in zip(seeds, found, strict=True) if column.value not in result.values]
        if lacking:
            raise MissingError(f"{column.protocol} gave no {column.value} for {_seeds(lacking)}")
        values = tuple(self._value(run, column, result) for run, result in zip(row.runs, found, strict=True))
        return Measured(values, _remarks(found, column.value.partition("/")[0], seeds))

    def correct(self, row: Row, column: Column, seeds: Sequence[int]) -> tuple[npt.NDArray[np.bool_], bytes]:
        """Whether each seed [S] is right on each test image [N], by ascending index, and a key of those images.

        Rows with an equal key were tested on the same images with the same labels. Raises as above.
        """
        found = self._of_row(row, column.protocol, seeds)
        right, keys = [], set[bytes]()
        for run, result in zip(row.runs, found, strict=True):
            predictions = result.predictions.get(column.predictions)
            if predictions is None:
                raise MissingError(f"{column.protocol} kept no predictions for {column.value}")
            path = self._path(run, column.protocol, "npz")
            order = _order(path, predictions)
            correct = (predictions.predicted == predictions.label)[order]
            if abs(float(correct.mean()) - self._value(run, column, result)) > _ROUNDING:
                raise UserError(f"{path}: disagrees with {column.protocol}.json on {column.value}; evaluate again")
            right.append(correct)
            keys.add(predictions.index[order].tobytes() + predictions.label[order].tobytes())
        if len(keys) > 1:
            raise UserError(f"{row.runs[0]}: its seeds were tested on different images; evaluate them again")
        return np.stack(right), keys.pop()

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
            result = Result.load(self.root / run / "results", protocol)
            if not isinstance(result.values, dict) or not isinstance(result.note, str):
                raise UserError(f"{self._path(run, protocol, 'json')}: malformed; delete it and evaluate again")
            self._read[run, protocol] = result
        return self._read[run, protocol]

    def _value(self, run: str, column: Column, result: Result) -> float:
        value = result.values[column.value]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            path = self._path(run, column.protocol, "json")
            raise UserError(f"{path}: {column.value} must be a fraction in 0..1, not {value!r}; evaluate again")
        return float(value)

    def _path(self, run: str, protocol: str, kind: str) -> Path:
        return self.root / run / "results" / f"{protocol}.{kind}"


def _order(path: Path, predictions: Predictions) -> npt.NDArray[np.int64]:
    """Positions that sort the test images by index. Raises UserError when the arrays do not fit each other."""
    shapes = {predictions.predicted.shape, predictions.label.shape, predictions.index.shape}
    if len(shapes) != 1 or predictions.index.ndim != 1 or not predictions.index.size:
        raise UserError(f"{path}: its arrays differ in shape or are empty; delete it and evaluate again")
    if len(np.unique(predictions.index)) != len(predictions.index):
        raise UserError(f"{path}: a test image occurs twice; delete it and evaluate again")
    return np.argsort(predictions.index, kind="stable")


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
