"""What scenes are made of: cut-outs of packed images by split and category, and distractors that are no category.

An image of a packed data set gives cut-outs to scenes of its own split only: a run trains on the packed train split, so
no cut-out of a validation or test scene comes from an image that a run trains on.

Legend: K keypoints, G cells along a side of the canonical grid.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from polygrain.data.packed import Packed
from polygrain.data.scenes.cutouts import GRID, Cutout, canonical_keypoints, cut, resized
from polygrain.data.scenes.draws import Draws
from polygrain.provenance.errors import UserError

Integers = npt.NDArray[np.int64]

_COUNTED = 256  # train images of a class whose silhouettes decide where its keypoints are


@dataclass(frozen=True)
class Source:
    """Where a cut-out comes from."""

    dataset: str
    split: str
    index: int
    """Position of the image in the packed data set."""


@dataclass(frozen=True)
class Category:
    """A class of objects, with its number from 1 on; 0 is the background."""

    number: int
    name: str
    """Small letters, digits and `-`, such as `ankle-boot`."""
    dataset: str
    label: int


class Sources:
    """The cut-outs of several packed data sets."""

    def __init__(self, datasets: Mapping[str, Packed]) -> None:
        """Raises UserError for colour images, two classes with one name, and a split without a class."""
        self._datasets = datasets
        self.categories = _categories(datasets)
        self._rows: dict[tuple[str, int], Integers] = {}
        for name, data in datasets.items():
            if data.images.shape[1] != 1:
                raise UserError(f"scenes: {name} has colour images; scenes are made of grey ones")
            for split in ("train", "validation", "test"):
                rows = data.split(split)
                for category in (one for one in self.categories if one.dataset == name):
                    found = rows[data.labels[rows] == category.label]
                    if not len(found):
                        raise UserError(f"scenes: the {split} split of {name} has no image of '{category.name}'")
                    self._rows[split, category.number] = found

    def draw(self, split: str, number: int, drawn: Draws) -> Source:
        """An image of a split and a category, each with the same probability."""
        rows = self._rows[split, number]
        return Source(self.categories[number - 1].dataset, split, int(rows[drawn.below(len(rows), "source")]))

    def cutout(self, source: Source) -> Cutout:
        """The object of an image, in its canonical frame."""
        return cut(self._datasets[source.dataset].images[source.index, 0])

    @cached_property
    def keypoints(self) -> Sequence[Integers]:
        """For each category its cells (row, column) of the canonical grid, int64 [K, 2]; see `canonical_keypoints`."""
        found = []
        for category in self.categories:
            rows = self._rows["train", category.number][:_COUNTED]
            covered_GG = np.zeros((GRID, GRID), np.int64)
            for row in rows.tolist():
                covered_GG += resized(self.cutout(Source(category.dataset, "train", row)), GRID, GRID).shape
            found.append(canonical_keypoints(covered_GG, len(rows)))
        return found


def _categories(datasets: Mapping[str, Packed]) -> tuple[Category, ...]:
    """The classes of the data sets, in their order."""
    found: list[Category] = []
    for dataset, data in datasets.items():
        for label, name in enumerate(data.manifest["classes"]):
            plain = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
            if plain in [one.name for one in found]:
                raise UserError(f"scenes: two classes are called '{plain}', the second in {dataset}; rename one")
            found.append(Category(len(found) + 1, plain, dataset, label))
    return tuple(found)


def distractor(side: int, drawn: Draws) -> Cutout:
    """A figure that is no category, in a square of `side` px: disc, ring, triangle, cross or frame, with stripes."""
    row, column = 2 * np.indices((side, side)) + 1 - side  # twice the distance from the centre
    far, squared = np.maximum(np.abs(row), np.abs(column)), row**2 + column**2
    shape = (
        squared <= side**2,
        (squared <= side**2) & (4 * squared >= side**2),
        2 * np.abs(column) <= row + side,
        (np.abs(row) <= side // 3) | (np.abs(column) <= side // 3),
        5 * far >= 3 * side,
    )[drawn.below(5, "figure")]
    period, low, spread = (drawn.below(limit, what) for limit, what in ((5, "period"), (150, "low"), (100, "spread")))
    along = (row, column, row + column)[drawn.below(3, "direction")]
    grey = low + spread * ((along + 4 * side) // 2 % (2 * period + 4) < period + 2)
    return Cutout(np.where(shape, grey, 0).astype(np.uint8), shape)
