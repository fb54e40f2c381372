"""Frozen features on disk: safetensors with `{dataset}/{split}/{features,labels,indices}` and one metadata key.

Written once per checkpoint, read by every protocol. It needs numpy only: a protocol starts without torch.
"""

import json
from collections.abc import Callable, Mapping, Sequence
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

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


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


@dataclass(frozen=True)
class FeatureSet:
    """The features of one data set; train rows are class-balanced, so a label subset is a prefix of them.

    Raises UserError for an empty split, wrong shapes, a label outside the classes, a feature that is not finite.
    """

    name: str
    classes: int
    label_subsets: Mapping[str, int]
    """Name -> number of train rows, for example {"10%": 1200}."""
    train: Split
    validation: Split
    test: Split

    def __post_init__(self) -> None:
        for name in SPLITS:
            self._check(name, getattr(self, name))

    def labelled(self, subset: str) -> Split:
        """The train rows of `all` or of a name in `label_subsets`. Raises UserError for any other name."""
        if subset == ALL:
            return self.train
        if subset not in self.label_subsets:
            known = ", ".join([ALL, *self.label_subsets])
            raise UserError(
                f"{self.name}: no label subset '{subset}' within its {len(self.train)} extracted train rows; there are"
                f" {known}; name one of these under `labels`, or extract more train rows"
            )
        return self.train.prefix(self.label_subsets[subset])

    @property
    def collapsed(self) -> bool:
        """Whether all train images have the same feature, up to rounding."""
        spread = np.ptp(self.train.features, axis=0).max(initial=0.0)
        return bool(spread <= 1e-6 * np.abs(self.train.features).max(initial=0.0))

    def _check(self, name: str, split: Split) -> None:
        where = f"features of {self.name}, {name} split"
        if len(split) == 0:
            raise UserError(f"{where}: no rows; raise its limit or check the data set's splits")
        shape = (len(split), self.train.features.shape[-1])
        if split.features.shape != shape or split.indices.shape != shape[:1] or split.labels.ndim != 1:
            raise UserError(f"{where}: features, labels and indices do not fit; delete the file and extract again")
        if split.labels.min() < 0 or split.labels.max() >= self.classes:
            raise UserError(f"{where}: a label is outside 0..{self.classes - 1}; delete the file and extract again")
        if not np.isfinite(split.features).all():
            bad = int(np.flatnonzero(~np.isfinite(split.features).all(axis=1))[0])
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
            "datasets": {
                name: {"classes": dataset.classes, "label_subsets": dict(dataset.label_subsets)}
                for name, dataset in self.datasets.items()
            }
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
                read: Callable[[str], Any] = file.get_tensor
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


def _dataset(name: str, facts: Mapping[str, Any], read: Callable[[str], Any]) -> FeatureSet:
    splits = {
        split: Split(*(read(f"{name}/{split}/{part}") for part in ("features", "labels", "indices")))
        for split in SPLITS
    }
    return FeatureSet(name, int(facts["classes"]), dict(facts["label_subsets"]), **splits)
