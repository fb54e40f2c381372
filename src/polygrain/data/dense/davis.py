"""DAVIS 2017: clips of frames, with a mask of numbered objects for each.

Layout: `ImageSets/2017/val.txt`, `JPEGImages/480p/bike-packing/00000.jpg`, `Annotations/480p/bike-packing/00000.png`.
Of the test splits upstream only the first masks are public.
"""

from dataclasses import dataclass

import numpy as np

from polygrain.data.dense.tree import Bytes, Integers, Tree, checked_indices, same_size
from polygrain.provenance.errors import UserError


@dataclass(frozen=True)
class Sequence:
    """A clip."""

    name: str
    frames: tuple[str, ...]
    """Names up to the suffix, in order."""
    masks: frozenset[str]
    """The frames that have a mask, the first among them."""
    objects: tuple[int, ...]
    """Numbers of the objects: those of the first mask. It may have none."""


class Davis:
    """The clips that a list names, in its order."""

    def __init__(self, tree: Tree, split: str) -> None:
        """split: a list in ImageSets/2017, such as val.

        Raises UserError when the list or a clip's folder is missing, and for a clip whose first frame has no mask.
        """
        self._tree = tree
        self.sequences = [self._sequence(name) for name in tree.lines(f"ImageSets/2017/{split}.txt")]

    def image(self, sequence: Sequence, frame: str) -> Bytes:
        """Pixels, uint8 [C, H, W]. Raises UserError when the file is missing or damaged."""
        return self._tree.image(self._tree.with_suffix(f"JPEGImages/480p/{sequence.name}/{frame}"))

    def mask(self, sequence: Sequence, frame: str) -> Integers:
        """The object's number at each pixel, 0 for none, int64 [H, W].

        Raises UserError for a number that the first mask does not have: nothing could be propagated to it.
        """
        file = f"Annotations/480p/{sequence.name}/{frame}.png"
        mask = checked_indices(self._tree.indices(file), [0, *sequence.objects], self._tree.where(file))
        same_size(self.image(sequence, frame), mask, self._tree.where(file))
        return mask

    def propagated(self, sequence: Sequence) -> tuple[str, ...]:
        """The frames that masks are propagated to: all but the first. Raises UserError for a clip of one frame."""
        if len(sequence.frames) < 2:
            raise UserError(
                f"{self._tree.where(f'JPEGImages/480p/{sequence.name}')}: a clip of one frame, to which nothing can be"
                " propagated; leave it out of the list"
            )
        return sequence.frames[1:]

    def _sequence(self, name: str) -> Sequence:
        frames = tuple(file.rpartition(".")[0] for file in self._tree.listed(f"JPEGImages/480p/{name}"))
        masks = frozenset(file.rpartition(".")[0] for file in self._tree.listed(f"Annotations/480p/{name}"))
        if frames[0] not in masks:
            raise UserError(
                f"{self._tree.where(f'Annotations/480p/{name}')}: has no mask of the first frame, {frames[0]}"
            )
        first = self._tree.indices(f"Annotations/480p/{name}/{frames[0]}.png")
        return Sequence(name, frames, masks, tuple(np.setdiff1d(first, [0]).tolist()))
