"""Cut-outs of packed images: silhouette, exact change of size, parts and keypoints of a class's canonical frame.

The canonical frame of a cut-out is the tight box around its silhouette, before it is mirrored. All arithmetic is on
integers, so the pixels are the same on every machine.

Legend: H, W rows and columns of a cut-out; h, w of the source; K keypoints.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from polygrain.provenance.errors import UserError

Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]

KEYPOINTS = 8
GROUND = 8  # grey levels below belong to the black ground of a source image
_RIM = 5  # so many times darker than the object is the rim between it and the ground, at least
GRID = 16  # cells along a side of the canonical frame, on which keypoints lie
_COVERED = 75  # percent of a class's images whose silhouette covers a cell that may be a keypoint


@dataclass(frozen=True)
class Cutout:
    """An object without its surroundings, in its canonical frame or as it stands in a scene."""

    grey: Bytes
    """Uint8 [H, W]; 0 outside the silhouette."""
    shape: Bools
    """The silhouette, [H, W]."""


def cut(image_hw: Bytes) -> Cutout:
    """The object of a source image with black ground, in its tight box. Raises UserError for an empty image.

    A pixel belongs to it unless it is black or much darker than the mean of those that are not black.
    """
    levels = image_hw.astype(np.int64)
    bright = levels >= GROUND
    shape = bright & (_RIM * levels * int(bright.sum()) >= int(levels[bright].sum()))
    rows, columns = np.flatnonzero(shape.any(axis=1)), np.flatnonzero(shape.any(axis=0))
    if not len(rows):
        raise UserError("an image without any pixel of an object cannot be cut out; leave it out of the data set")
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Cutout(np.where(shape, image_hw, 0)[box].astype(np.uint8), shape[box])


def resized(cutout: Cutout, height: int, width: int) -> Cutout:
    """The cut-out at another size, by exact area: a pixel belongs to it if at least half of its area does.

    Its grey is the mean over the part of its area that belongs to the object, rounded half up.
    """
    down, across = overlaps(height, cutout.shape.shape[0]), overlaps(width, cutout.shape.shape[1])
    area = down @ cutout.shape.astype(np.int64) @ across.T
    total = down @ cutout.grey.astype(np.int64) @ across.T
    shape = 2 * area >= cutout.shape.size
    grey = (2 * total + area) // np.maximum(2 * area, 1)
    return Cutout(np.where(shape, grey, 0).astype(np.uint8), shape)


@cache
def overlaps(to: int, of: int) -> Integers:
    """How much each of `to` equal parts of a line shares with each of `of` parts, int64 [to, of]; rows sum to `of`."""
    first, second = np.arange(to)[:, None], np.arange(of)[None, :]
    shared = np.minimum((first + 1) * of, (second + 1) * to) - np.maximum(first * of, second * to)
    return np.asarray(np.maximum(shared, 0))


def sides(shape: tuple[int, ...], longer: int) -> tuple[int, int]:
    """Height and width of a cut-out whose longer side becomes `longer`, rounded, at least 3."""
    height, width = shape
    most = max(shape)
    return tuple(max(3, (2 * side * longer + most) // (2 * most)) for side in (height, width))  # type: ignore[return-value]


def dimmed(cutout: Cutout, share: int) -> Cutout:
    """The cut-out with `share` 256ths of its grey, so that neighbours without texture can be told apart."""
    return Cutout((cutout.grey.astype(np.int64) * share // 256).astype(np.uint8), cutout.shape)


def mirrored(cutout: Cutout) -> Cutout:
    """Left and right exchanged."""
    return Cutout(cutout.grey[:, ::-1], cutout.shape[:, ::-1])


def part_labels(shape_HW: Bools, parts: int, mirror: bool) -> Bytes:
    """Which cell, 1..parts^2 row by row, of the grid of parts x parts over the canonical frame a pixel lies in, [H, W].

    With `mirror` for a mirrored cut-out: a part stays the same part of the object.
    """
    rows, columns = (np.arange(side) * parts // side for side in shape_HW.shape)
    labels: Bytes = (rows[:, None] * parts + columns[None, :] + 1).astype(np.uint8)
    return labels[:, ::-1] if mirror else labels


def keypoint_pixels(cells_K2: Integers, shape_HW: Bools, mirror: bool) -> Integers:
    """Row and column in a cut-out [H, W] of keypoints that are given as cells of the canonical grid, int64 [K, 2]."""
    rows, columns = ((2 * cells_K2 + 1) * np.array(shape_HW.shape) // (2 * GRID)).T
    return np.stack([rows, shape_HW.shape[1] - 1 - columns if mirror else columns], axis=1)


def canonical_keypoints(covered_GG: Integers, images: int) -> Integers:
    """Eight cells (row, column) of a class's canonical grid, int64 [K, 2], far from each other and mostly on objects.

    covered_GG: by how many of a class's `images` silhouettes each cell is covered. Candidates are the cells that at
    least 75 percent cover, or the eight best covered ones. The first keypoint is the first candidate row by row, each
    further one the candidate farthest from those chosen; of equals the first.
    """
    flat = covered_GG.ravel()
    candidates = np.flatnonzero(100 * flat >= _COVERED * images)
    if len(candidates) < KEYPOINTS:
        candidates = np.sort(np.argsort(-flat, kind="stable")[:KEYPOINTS])
    cells = np.stack(np.divmod(candidates, covered_GG.shape[1]), axis=1)
    chosen = [0]
    distance = ((cells - cells[0]) ** 2).sum(axis=1)
    while len(chosen) < KEYPOINTS:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, ((cells - cells[chosen[-1]]) ** 2).sum(axis=1))
    return cells[chosen].astype(np.int64)
