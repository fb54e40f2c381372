"""Cityscapes: fine annotations of 19 classes, a folder for each city.

Layout: `leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png` and `gtFine/val/lindau/lindau_000000_000019_` with
`gtFine_labelIds.png` and `gtFine_instanceIds.png`. The files hold the ids 0..33, of which 19 are judged, and 255 for
the licence plate (-1); an instance's number is 1000 times its id, plus its place.
"""

import numpy as np

from polygrain.data.dense.tree import Bytes, Integers, Tree, checked_indices, same_size
from polygrain.provenance.errors import UserError

IGNORED = 255
_LAST = 33
CLASSES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
"""Id in the files -> class, in the order of the class numbers 0..18."""


class Cityscapes:
    """The images of a split, sorted by city and name."""

    def __init__(self, tree: Tree, split: str) -> None:
        """split: train, val or test. Raises UserError when there is no city."""
        self._tree, self.split = tree, split
        cities = tree.folders(f"leftImg8bit/{split}")
        if not cities:
            raise UserError(f"{tree.where(f'leftImg8bit/{split}')}: holds no city; is this the right layout?")
        end = "_leftImg8bit.png"
        self.names = [
            f"{city}/{name.removesuffix(end)}"
            for city in cities
            for name in tree.listed(f"leftImg8bit/{split}/{city}")
            if name.endswith(end)
        ]

    def image(self, name: str) -> Bytes:
        """Pixels, uint8 [C, H, W]. Raises UserError when the file is missing or damaged."""
        return self._tree.image(f"leftImg8bit/{self.split}/{name}_leftImg8bit.png")

    def semantic(self, name: str) -> Integers:
        """The class at each pixel, int64 [H, W], 0..18, or 255. Raises UserError for an unknown id."""
        file = f"gtFine/{self.split}/{name}_gtFine_labelIds.png"
        mask = checked_indices(self._tree.indices(file), [*range(_LAST + 1), IGNORED], self._tree.where(file))
        same_size(self.image(name), mask, self._tree.where(file))
        table = np.full(256, IGNORED, np.int64)
        table[list(CLASSES)] = np.arange(len(CLASSES))
        found: Integers = table[mask]
        return found

    def instances(self, name: str) -> Integers:
        """The number of the object at each pixel as in the file, int64 [H, W]; below 1000 where there is none."""
        return self._tree.indices(f"gtFine/{self.split}/{name}_gtFine_instanceIds.png")
