"""The packed format: a data set as memory-mapped arrays with a manifest of hashes.

data/{name}/images.npy uint8 [N, C, H, W], labels.npy int64 [N] (-1: unknown), splits.npz int64 positions of `train`,
`validation` and `test`, each in an order of which every prefix is as class-balanced as it can be, so subsets are nested
prefixes; and of `unlabelled`, where the authors give such a part.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polygrain.provenance.errors import UserError
from polygrain.provenance.files import read_json, sha256_file

ARRAYS = ("images.npy", "labels.npy", "splits.npz")
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class DataSet:
    """What every packed data set has, however its images are stored."""

    labels: np.ndarray
    manifest: dict[str, Any]
    splits: dict[str, np.ndarray]

    @property
    def mean(self) -> list[float]:
        """Mean of the training pixels per channel, images scaled to 0..1."""
        return list(self.manifest["mean"])

    @property
    def std(self) -> list[float]:
        """Standard deviation of the training pixels per channel, images scaled to 0..1."""
        return list(self.manifest["std"])

    def split(self, name: str) -> np.ndarray:
        """Positions of a split, int64. Raises UserError with the names that there are."""
        if name not in self.splits:
            raise UserError(f"{self.manifest['name']}: no split '{name}'; there are {', '.join(self.splits)}")
        return self.splits[name]

    def subset(self, name: str, size: int | None) -> np.ndarray:
        """The first `size` positions of a split, or all of them. Raises UserError when there are fewer."""
        positions = self.split(name)
        if size is not None and size > len(positions):
            raise UserError(
                f"{self.manifest['name']}: {size} images of {name} asked, there are {len(positions)};"
                " lower pretrain.images"
            )
        return positions[:size]


@dataclass(frozen=True)
class Packed(DataSet):
    """A data set of equally large images; `images` stays on disk until rows are taken from it."""

    images: np.ndarray


def open_packed(root: Path, verify: bool = True) -> Packed:
    """Open a packed data set. Raises UserError naming the file that is missing, truncated or not what was packed."""
    manifest, splits = checked(root, lambda name: verify)
    return Packed(np.load(root / "labels.npy"), manifest, splits, np.load(root / "images.npy", mmap_mode="r"))


def checked(root: Path, hashed: Callable[[str], bool]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The manifest and the splits, once every file has the size that the manifest says, and the hash where `hashed`."""
    manifest: dict[str, Any] = read_json(root / MANIFEST)
    remedy = f"rebuild it with `snakemake --cores all --force {root / MANIFEST}`"
    for name, expected in manifest["files"].items():
        path = root / name
        if not path.is_file():
            raise UserError(f"{path}: not found; {remedy}")
        if path.stat().st_size != expected["bytes"] or (hashed(name) and sha256_file(path) != expected["sha256"]):
            raise UserError(f"{path}: damaged, its content is not what the manifest says; {remedy}")
    with np.load(root / "splits.npz") as archive:
        return manifest, {name: archive[name] for name in archive.files}


OPEN = open_packed
