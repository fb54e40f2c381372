"""The result of a protocol: named numbers with unit and direction, and scores of each test example.

A name is `{data set}[/{subset}]/{metric}`, such as `fashion-mnist/1%/top1`; the part before the metric is its key.

`{protocol}.json` holds the numbers and, under `measures`, for each [unit, direction, printed decimals].
`{protocol}.npz` holds `{key}.index`, int64 [n], the positions of the test examples in the packed data set; for every
number that is a mean over them `{name}.score`, int64 or float64 [n]; and where classes were predicted
`{key}.predicted` and `{key}.label`, int64 [n]. Equal content gives equal bytes.
"""

import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polygrain.provenance.errors import UserError
from polygrain.provenance.files import canonical_json, read_json, write_bytes, write_text
from polygrain.provenance.npz import npz_bytes

FORMAT = 2
FRACTION = "fraction"
DIRECTIONS = ("higher", "lower", "none")
_ROUNDING = 1e-9  # allowed difference of a number and the mean of its scores, relative to max(1, mean)

Integers = npt.NDArray[np.int64]
Scores = npt.NDArray[np.int64] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """What a number means: how tables print it and which of two is better."""

    unit: str
    """`fraction` (0..1, printed in percent), `1` for a number without unit, or a name such as `bits`."""
    direction: str
    """Which is better: `higher`, `lower`, or `none`."""
    decimals: int = 1
    """Printed decimals; for a fraction, those of the percentage."""

    @property
    def printed_unit(self) -> str:
        """The unit that tables print; empty when there is none."""
        return {FRACTION: "%", "1": ""}.get(self.unit, self.unit)

    @property
    def factor(self) -> float:
        """The factor from a value to the number that tables print."""
        return 100.0 if self.unit == FRACTION else 1.0

    @property
    def sign(self) -> int:
        """1 where higher is better, -1 where lower is, 0 where neither."""
        return {"higher": 1, "lower": -1}.get(self.direction, 0)

    def fault(self) -> str:
        """The error in it; empty when there is none."""
        if not isinstance(self.unit, str) or not self.unit:
            return f"unit must be text, not {self.unit!r}"
        if self.direction not in DIRECTIONS:
            return f"direction must be one of {', '.join(DIRECTIONS)}, not {self.direction!r}"
        fits = isinstance(self.decimals, int) and 0 <= self.decimals <= 9
        return "" if fits else f"decimals must be from 0 to 9, not {self.decimals!r}"


ACCURACY = Measure(FRACTION, "higher")


class Number(NamedTuple):
    """A value and its measure."""

    value: float
    measure: Measure

    def fault(self) -> str:
        """The error in it; empty when there is none."""
        if fault := self.measure.fault():
            return fault
        known = isinstance(self.value, int | float) and not isinstance(self.value, bool) and math.isfinite(self.value)
        if self.measure.unit == FRACTION and not (known and 0 <= self.value <= 1):
            return f"must be a fraction in 0..1, not {self.value!r}"
        return "" if known else f"must be a finite number, not {self.value!r}"


@dataclass(frozen=True)
class Examples:
    """The test examples behind the numbers of one key; arrays are [n], in one order."""

    index: Integers
    """Positions in the packed data set."""
    scores: Mapping[str, Scores]
    """Metric -> one score per example, whose mean is the number; other metrics are left out."""
    predicted: Integers | None = None
    label: Integers | None = None

    def arrays(self, key: str) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """The names and arrays of the file."""
        yield f"{key}.index", self.index
        yield from ((f"{key}/{metric}.score", score) for metric, score in self.scores.items())
        if self.predicted is not None and self.label is not None:
            yield from ((f"{key}.predicted", self.predicted), (f"{key}.label", self.label))

    def fault(self) -> str:
        """The error in the arrays; empty when there is none."""
        classes = [array for array in (self.predicted, self.label) if array is not None]
        whole = [self.index, *classes]
        if len({array.shape for array in (*whole, *self.scores.values())}) != 1 or self.index.ndim != 1:
            return "its arrays differ in shape"
        if not self.index.size or len(np.unique(self.index)) != len(self.index):
            return "no test example" if not self.index.size else "a test example occurs twice"
        if len(classes) == 1 or any(array.dtype != np.int64 for array in whole):
            return "index, predicted and label must be int64, the last two both or neither"
        for metric, score in self.scores.items():
            if score.dtype not in (np.int64, np.float64) or not np.isfinite(score).all():
                return f"the scores of {metric} must be finite, int64 or float64"
        return ""


@dataclass(frozen=True)
class Result:
    """The result of one protocol."""

    values: Mapping[str, Number]
    """By name."""
    selected: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Key -> values selected on the validation split."""
    examples: Mapping[str, Examples] = field(default_factory=dict)
    """Key -> its test examples."""
    note: str = ""
    """One line that readers of the numbers must see, or empty."""

    def save(self, folder: Path, protocol: str) -> None:
        """Write `{protocol}.npz`, then `{protocol}.json`, atomically. Raises UserError on a faulty value or score."""
        for where, fault in self._faults():
            raise UserError(f"{protocol}: {where}: {fault}; correct the protocol")
        about = {
            "format": FORMAT,
            "protocol": protocol,
            "values": {name: number.value for name, number in self.values.items()},
            "measures": {name: astuple(number.measure) for name, number in self.values.items()},
            "selected": {key: dict(chosen) for key, chosen in self.selected.items()},
            "note": self.note,
        }
        arrays = dict(pair for key, rows in self.examples.items() for pair in rows.arrays(key))
        write_bytes(folder / f"{protocol}.npz", npz_bytes(dict(sorted(arrays.items()))))
        write_text(folder / f"{protocol}.json", canonical_json(about))

    @classmethod
    def load(cls, folder: Path, protocol: str, *, numbers_only: bool = False) -> "Result":
        """Read what `save` wrote. Raises UserError naming a file that is missing or broken.

        numbers_only: do not read the test examples. Whether numbers are means of scores is not checked: see `agrees`.
        """
        path = folder / f"{protocol}.json"
        about = read_json(path)
        if not isinstance(about, dict) or about.get("format") != FORMAT or about.get("protocol") != protocol:
            raise UserError(f"{path}: not a result of {protocol} in format {FORMAT}; delete it and evaluate again")
        try:
            values = {name: Number(value, Measure(*about["measures"][name])) for name, value in about["values"].items()}
            selected, note = about["selected"], str(about["note"])
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{path}: malformed ({error}); delete it and evaluate again") from None
        for name, number in values.items():
            if fault := number.fault():
                raise UserError(f"{path}: {name} {fault}; delete it and evaluate again")
        examples = {} if numbers_only else _read_arrays(path.with_suffix(".npz"))
        return cls(values, selected, examples, note)

    def counted(self, name: str) -> float | None:
        """A number computed again from its test examples; None where that is not possible."""
        key, _, metric = name.rpartition("/")
        rows = self.examples.get(key)
        if rows is not None and metric in rows.scores:
            return float(rows.scores[metric].mean())
        if rows is not None and metric == "macro" and rows.predicted is not None and rows.label is not None:
            return macro(rows.predicted, rows.label)
        return None

    def agrees(self, name: str) -> bool:
        """Whether a number agrees with its test examples, where it can be computed from them."""
        counted = self.counted(name)
        return counted is None or abs(counted - self.values[name].value) <= _ROUNDING * max(1.0, abs(counted))

    def _faults(self) -> Iterator[tuple[str, str]]:
        yield from ((name, fault) for name, number in self.values.items() if (fault := number.fault()))
        for key, rows in self.examples.items():
            if fault := rows.fault():
                yield key, fault
            for name in (f"{key}/{metric}" for metric in rows.scores):
                if name not in self.values or not self.agrees(name):
                    yield name, f"must be a value, the mean {self.counted(name)} of its scores"


def classified(key: str, predicted: Integers, label: Integers, index: Integers) -> tuple[dict[str, Number], Examples]:
    """The numbers `{key}/top1` and `{key}/macro` of a classification, and its images, scored 1 if right, else 0."""
    right = (predicted == label).astype(np.int64)
    values = {"top1": int(right.sum()) / len(label), "macro": macro(predicted, label)}
    numbers = {f"{key}/{metric}": Number(value, ACCURACY) for metric, value in values.items()}
    return numbers, Examples(index, {"top1": right}, predicted, label)


def macro(predicted: Integers, label: Integers) -> float:
    """Mean recall over the classes present, rounded once."""
    present = np.bincount(label)
    hits = np.bincount(label[predicted == label], minlength=len(present))
    shares = [Fraction(int(hit), int(of)) for hit, of in zip(hits, present, strict=True) if of]
    return float(sum(shares, Fraction()) / len(shares))


def _read_arrays(path: Path) -> dict[str, Examples]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            found: dict[str, dict[str, Any]] = {}
            for name in archive.files:
                stem, _, part = name.rpartition(".")
                key, _, metric = stem.rpartition("/") if part == "score" else (stem, "", "")
                kept = found.setdefault(key, {"scores": {}})
                (kept["scores"] if metric else kept)[metric or part] = archive[name]
        examples = {key: Examples(**parts) for key, parts in found.items()}
    except FileNotFoundError:
        raise UserError(f"{path}: not found; evaluate again") from None
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, EOFError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it and evaluate again") from None
    for key, rows in examples.items():
        if fault := rows.fault():
            raise UserError(f"{path}: {key}: {fault}; delete it and evaluate again")
    return examples
