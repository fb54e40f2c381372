"""What a protocol found: named numbers, what was selected on validation, and one prediction per test image.

`{protocol}.json` holds the numbers, `{protocol}.npz` the predictions. Both are claims: equal content gives
equal bytes.
"""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from polygrain.provenance.errors import UserError
from polygrain.provenance.files import canonical_json, read_json, write_bytes, write_text

FORMAT = 1
_PARTS = ("predicted", "label", "index")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip file can name

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Predictions:
    """Predictions on a test split at the reported setting; all int64 [n]."""

    predicted: Integers
    label: Integers
    index: Integers
    """Position of each image in the packed data set."""

    def top1(self) -> float:
        """Share of images whose class was predicted."""
        return int((self.predicted == self.label).sum()) / len(self.label)

    def macro(self) -> float:
        """Mean over the classes present of the share predicted within the class, rounded once."""
        present = np.bincount(self.label)
        hits = np.bincount(self.label[self.predicted == self.label], minlength=len(present))
        shares = [Fraction(int(hit), int(of)) for hit, of in zip(hits, present, strict=True) if of]
        return float(sum(shares, Fraction()) / len(shares))


@dataclass(frozen=True)
class Result:
    """One protocol's outcome; a key of `selected` or `predictions` is `{dataset}` or `{dataset}/{subset}`."""

    values: Mapping[str, float]
    """`{key}/top1` and the like -> fraction in 0..1."""
    selected: Mapping[str, Mapping[str, Any]]
    """What was chosen on the validation split, per key."""
    predictions: Mapping[str, Predictions]
    note: str = ""
    """One line for a reader of the number, empty when there is nothing to say."""

    def save(self, folder: Path, protocol: str) -> None:
        """Write `{protocol}.npz`, then `{protocol}.json`, each atomically."""
        arrays = {
            f"{key}.{part}": np.asarray(getattr(rows, part), dtype=np.int64)
            for key, rows in self.predictions.items()
            for part in _PARTS
        }
        about = {
            "format": FORMAT,
            "protocol": protocol,
            "values": dict(self.values),
            "selected": {key: dict(chosen) for key, chosen in self.selected.items()},
            "note": self.note,
        }
        write_bytes(folder / f"{protocol}.npz", npz_bytes(arrays))
        write_text(folder / f"{protocol}.json", canonical_json(about))

    @classmethod
    def load(cls, folder: Path, protocol: str) -> "Result":
        """Read what `save` wrote. Raises UserError naming a file that is missing or broken."""
        path = folder / f"{protocol}.json"
        about = read_json(path)
        if not isinstance(about, dict) or about.get("format") != FORMAT or about.get("protocol") != protocol:
            raise UserError(f"{path}: not a result of {protocol} in format {FORMAT}; delete it and evaluate again")
        try:
            return cls(
                about["values"],
                about["selected"],
                _read_predictions(folder / f"{protocol}.npz"),
                about["note"],
            )
        except KeyError as error:
            raise UserError(f"{path}: key {error} is missing; delete it and evaluate again") from None


def npz_bytes(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Pack an uncompressed .npz with sorted members and a constant time: equal arrays, equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(arrays[name]), version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=_EPOCH)
            info.create_system = 3
            archive.writestr(info, member.getvalue())
    return buffer.getvalue()


def _read_predictions(path: Path) -> dict[str, Predictions]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = sorted({name.rpartition(".")[0] for name in archive.files})
            return {key: Predictions(*(archive[f"{key}.{part}"] for part in _PARTS)) for key in keys}
    except FileNotFoundError:
        raise UserError(f"{path}: not found; evaluate again") from None
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it and evaluate again") from None
