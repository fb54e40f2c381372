"""ADE20K, the 150 classes of the scene parsing challenge: one mask beside each image.

Layout: `images/validation/ADE_val_00000001.jpg`, `annotations/validation/ADE_val_00000001.png`. In the files 0 is what
is no class; here the classes are 0..149 and what is none is 255.
"""

from polygrain.data.dense.tree import Bytes, Integers, Tree, checked_indices, same_size

CLASSES = 150
IGNORED = 255


class Ade20k:
    """The images of a split, sorted by name."""

    def __init__(self, tree: Tree, split: str) -> None:
        """split: training or validation. Raises UserError when there is no such folder."""
        self._tree, self.split = tree, split
        self.names = [name.rpartition(".")[0] for name in tree.listed(f"images/{split}")]

    def image(self, name: str) -> Bytes:
        """Pixels, uint8 [C, H, W]. Raises UserError when the file is missing or damaged."""
        return self._tree.image(self._tree.with_suffix(f"images/{self.split}/{name}"))

    def semantic(self, name: str) -> Integers:
        """The class at each pixel, int64 [H, W], 0..149, or 255. Raises UserError for a number above 150."""
        file = f"annotations/{self.split}/{name}.png"
        mask = checked_indices(self._tree.indices(file), range(CLASSES + 1), self._tree.where(file))
        same_size(self.image(name), mask, self._tree.where(file))
        mask = mask - 1
        mask[mask < 0] = IGNORED
        return mask
