"""Frozen features on disk: safetensors with `{dataset}/{split}/{features,labels,indices}` and one metadata key.

Written once per checkpoint, read by every protocol. It needs numpy only: a protocol starts without torch. Tensors stay
in the file until they are used, so that a file larger than the memory can be read.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from polygrain.provenance.errors import UserError
from polygrain.provenance.files import atomic_path

METADATA = "polygrain"
SPLITS = ("train", "validation", "test")
ALL = "all"
_SHARE = re.compile(r"([0-9]{1,2}(?:\.[0-9]+)?)%")
# Rows of which float64 copies are made at once. It decides the order of sums, so no machine's memory decides it.
BLOCK = 16_384
_FEWEST = 2  # labelled rows of a class: one to fit, one to select by

_KINDS = {"F32": np.float32, "I64": np.int64}

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


def blocks(rows: Floats) -> Iterator[Floats]:
    """The rows, `BLOCK` at a time."""
    return (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))


@dataclass(frozen=True)
class Split:
    """Rows of one split, in the stored order."""

    features: Floats
    """Float32 [n, D]."""
    labels: Integers
    """Int64 [n], in 0..classes-1."""
    indices: Integers
    """Int64 [n]: each row's position in the packed data set."""

    def __len__(self) -> int:
        return len(self.labels)

    def prefix(self, size: int) -> "Split":
        """The first `size` rows."""
        return Split(self.features[:size], self.labels[:size], self.indices[:size])


def labelled_rows(name: str, subset: str, rows: int, classes: int) -> int:
    """How many of the extracted train rows a label subset of data set `name` has: `all`, or a share such as `1%`.

    A share has whole images per class, and at least two of each. Raises UserError for any other name, and when there
    are not so many rows.
    """
    if subset == ALL:
        return rows
    share = _SHARE.fullmatch(subset)
    if share is None or float(share[1]) == 0:
        raise UserError(f"{name}: no label subset '{subset}'; write all, or a share such as 1% or 0.5%")
    each = max(_FEWEST, math.floor(float(share[1]) / 100 * rows / classes + 1e-9))
    if each * classes > rows:
        raise UserError(
            f"{name}: label subset {subset} needs {_FEWEST} images of each of {classes} classes; {rows} train rows are"
            " extracted, extract more"
        )
    return each * classes


@dataclass(frozen=True)
class FeatureSet:
    """The features of one data set; every prefix of the train rows is as class-balanced as it can be.

    Raises UserError for an empty split, wrong shapes, a label outside the classes, a feature that is not finite.
    """

    name: str
    classes: int
    train: Split
    validation: Split
    test: Split

    def __post_init__(self) -> None:
        for name in SPLITS:
            self._check(name, getattr(self, name))

    def labelled(self, subset: str) -> Split:
        """The train rows whose labels a subset names; see `labelled_rows`."""
        return self.train.prefix(labelled_rows(self.name, subset, len(self.train), self.classes))

    @property
    def collapsed(self) -> bool:
        """Whether all train images have the same feature, up to rounding."""
        low, high = self.train.features.min(axis=0), self.train.features.max(axis=0)
        largest = max(np.abs(low).max(initial=0.0), np.abs(high).max(initial=0.0))
        return bool((high - low).max(initial=0.0) <= 1e-6 * largest)

    def _check(self, name: str, split: Split) -> None:
        where = f"features of {self.name}, {name} split"
        if len(split) == 0:
            raise UserError(f"{where}: no rows; raise its limit or check the data set's splits")
        shape = (len(split), self.train.features.shape[-1])
        if split.features.shape != shape or split.indices.shape != shape[:1] or split.labels.ndim != 1:
            raise UserError(f"{where}: features, labels and indices do not fit; delete the file and extract again")
        if split.labels.min() < 0 or split.labels.max() >= self.classes:
            raise UserError(f"{where}: a label is outside 0..{self.classes - 1}; delete the file and extract again")
        finite = np.concatenate([np.isfinite(part).all(axis=1) for part in blocks(split.features)])
        if not finite.all():
            bad = int(np.flatnonzero(~finite)[0])
            raise UserError(
                f"{where}: row {bad} is not finite, the encoder has diverged; train with a lower learning rate"
            )


@dataclass(frozen=True)
class Features:
    """All that a frozen-feature protocol may use."""

    datasets: Mapping[str, FeatureSet]

    def note(self) -> str:
        """One line that readers of the numbers must see, or empty."""
        collapsed = [name for name, dataset in self.datasets.items() if dataset.collapsed]
        return f"collapsed encoder: every train image of {', '.join(collapsed)} has one feature" if collapsed else ""

    def save(self, path: Path) -> None:
        """Write the features atomically; equal features give equal bytes."""
        tensors = {
            f"{name}/{split}/{part}": np.ascontiguousarray(getattr(getattr(dataset, split), part))
            for name, dataset in self.datasets.items()
            for split in SPLITS
            for part in ("features", "labels", "indices")
        }
        about = {
            "datasets": {name: {"classes": dataset.classes} for name, dataset in self.datasets.items()},
        }
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={METADATA: json.dumps(about, sort_keys=True)})
            temporary.chmod(0o644)  # safetensors makes its files readable by their owner only

    @classmethod
    def load(cls, path: Path, names: Sequence[str] | None = None) -> "Features":
        """Read a features file, or some of its data sets. Raises UserError when one is missing or the file damaged."""
        try:
            with safe_open(path, framework="np") as file:
                about = json.loads((file.metadata() or {})[METADATA])
                read = _mapped(path)
                known = about["datasets"]
                for name in names or ():
                    if name not in known:
                        raise UserError(f"{path}: holds no data set {name}; extract the features again")
                return cls({name: _dataset(name, known[name], read) for name in names or known})
        except FileNotFoundError:
            raise UserError(f"{path}: not found; extract the features first") from None
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            fault = " ".join(str(error).split())
            raise UserError(f"{path}: not a whole features file ({fault}); delete it and extract again") from None


def _mapped(path: Path) -> Callable[[str], Any]:
    """Reads a tensor of a safetensors file by name: its pages are loaded when they are used, and never written back.

    The library's own reader copies whole tensors. The format: 8 bytes with the length of a JSON header, which gives
    type, shape and place of each tensor behind it.
    """
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))

    def read(name: str) -> Any:
        kind, shape, (start, end) = (header[name][key] for key in ("dtype", "shape", "data_offsets"))
        if start == end:  # nothing can be mapped
            return np.empty(shape, _KINDS[kind])
        return np.asarray(np.memmap(path, _KINDS[kind], "c", 8 + length + start, tuple(shape)))

    return read


def _dataset(name: str, facts: Mapping[str, Any], read: Callable[[str], Any]) -> FeatureSet:
    splits = {
        split: Split(*(read(f"{name}/{split}/{part}") for part in ("features", "labels", "indices")))
        for split in SPLITS
    }
    return FeatureSet(name, int(facts["classes"]), **splits)
