"""Object discovery without training: a box from the first principal component of a scene's cells.

The features of a scene's cells, less their mean, have a first principal component; it serves every kind of network,
where attention exists in transformers only. Its values at the cells are upsampled bilinearly to the pixels and cut at
their mean, which is 0. Of the two sides the object is the one with fewer pixels on the image's border; of equals the
one with fewer pixels; of equals the one that does not come first, row by row. The direction of the component plays
no part. The largest connected part of the object (edges connect, corners do not; the first of equals, row by row) gives
the box. A scene whose cells are all equal, or whose parts are empty, gives the whole image.

`corloc`: the share of scenes whose box has an intersection over union of at least `threshold` with the box of an object
of any class. `overlap`: the largest intersection over union with an object, mean over scenes. Objects without a pixel
do not count, and scenes without objects are no example. `chance` and `chance-overlap` are the same numbers for boxes
whose two corners are drawn evenly from the image, mean over `draws` of them.

Legend: B images, N cells, D width, S side of an image, O objects, T boxes.
"""

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import label
from torch.nn.functional import interpolate

from polygrain.data.dense.coco import Picture
from polygrain.evaluate.result import ACCURACY, FRACTION, Examples, Measure, Number, Result
from polygrain.evaluate.scenes.given import SceneEncoder
from polygrain.evaluate.scenes.iou import Floats, Integers, encoded_maps
from polygrain.nn.random_numpy import uniform
from polygrain.provenance.errors import UserError

Bools = npt.NDArray[np.bool_]

_NAME = "scene-discovery"
CHANCE = Measure(FRACTION, "none")
_ZERO = 1e-9  # of the largest value: below it rounding decides the sign


def evaluate(encoder: SceneEncoder, *, threshold: float, draws: int, seed: int) -> Result:
    """Find a box in every test scene.

    threshold: intersection over union from which a box counts as found. draws: boxes for `chance`. seed: of these, one
    for all runs. Raises UserError for values out of range, and when no test scene holds an object.
    """
    if not 0 < threshold <= 1 or draws < 1:
        raise UserError(f"{_NAME}: threshold ({threshold}) must be above 0, at most 1; draws ({draws}) positive")
    scenes = encoder.scenes
    shown = [picture for picture in scenes.pictures("test") if len(boxes_of(picture))]
    if not shown:
        raise UserError(f"{_NAME}: no test scene of {scenes.name} holds an object; there is nothing to find")
    found_BSS = components(encoded_maps(_NAME, encoder, "test", shown).double().numpy(), shown[0].height)
    best = np.array([overlaps(box(one)[None], boxes_of(at)).max() for one, at in zip(found_BSS, shown, strict=True)])
    drawn = [_by_chance(picture, draws, seed) for picture in shown]
    scores = {
        "corloc": (best >= threshold).astype(np.int64),
        "overlap": best,
        "chance": np.array([(one >= threshold).mean() for one in drawn]),
        "chance-overlap": np.array([one.mean() for one in drawn]),
    }
    values = {
        f"{scenes.name}/{metric}": Number(float(score.mean()), CHANCE if "chance" in metric else ACCURACY)
        for metric, score in scores.items()
    }
    index = np.array([picture.id for picture in shown], dtype=np.int64)
    return Result(values, examples={scenes.name: Examples(index, scores)})


def boxes_of(picture: Picture) -> Floats:
    """Left, top, right, bottom of the objects that have a pixel, float64 [O, 4]; without crowds."""
    kept = [one.box for one in picture.instances if not one.crowd and one.box[2] > 0 and one.box[3] > 0]
    corners_O4 = np.array(kept, dtype=np.float64).reshape(-1, 4)
    corners_O4[:, 2:] += corners_O4[:, :2]
    return corners_O4


def components(maps_BDhw: Floats, side: int) -> Floats:
    """The first principal component of each image's cells, upsampled to pixels, float64 [B, S, S].

    It has either direction, and is zero everywhere where all cells are equal.
    """
    cells_BND = np.moveaxis(maps_BDhw.reshape(*maps_BDhw.shape[:2], -1), 1, 2)
    centred_BND = cells_BND - cells_BND.mean(axis=1, keepdims=True)
    _, vectors_BNN = np.linalg.eigh(centred_BND @ np.moveaxis(centred_BND, 1, 2))
    equal_B = np.abs(centred_BND).max(axis=(1, 2)) <= _ZERO * np.abs(cells_BND).max(axis=(1, 2))
    values_BN = np.where(equal_B[:, None], 0.0, vectors_BNN[:, :, -1])
    grid = torch.from_numpy(np.ascontiguousarray(values_BN.reshape(-1, 1, *maps_BDhw.shape[2:])))
    return np.asarray(interpolate(grid, size=(side, side), mode="bilinear", align_corners=False)[:, 0].numpy())


def object_of(component_SS: Floats) -> Bools:
    """The side of a component that is the object, [S, S]; see above."""
    least = _ZERO * float(np.abs(component_SS).max())
    border_SS = np.ones_like(component_SS, dtype=np.bool_)
    border_SS[1:-1, 1:-1] = False
    sides = [component_SS > least, component_SS < -least]
    return min(sides, key=lambda one: (int((one & border_SS).sum()), int(one.sum()), -int(one.argmax())))


def box(component_SS: Floats) -> Floats:
    """Left, top, right, bottom of the largest connected part of the object, px; the whole image where there is none."""
    parts_SS, count = label(object_of(component_SS))
    if not count:
        return np.array([0, 0, component_SS.shape[1], component_SS.shape[0]], dtype=np.float64)
    largest = 1 + int(np.bincount(parts_SS.ravel())[1:].argmax())  # the first of equals
    rows, columns = np.nonzero(parts_SS == largest)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=np.float64)


def overlaps(boxes_T4: Floats, others_O4: Floats) -> Floats:
    """Intersection over union of boxes, float64 [T, O]."""
    low = np.maximum(boxes_T4[:, None, :2], others_O4[None, :, :2])
    high = np.minimum(boxes_T4[:, None, 2:], others_O4[None, :, 2:])
    shared_TO = np.maximum(high - low, 0.0).prod(axis=2)
    area_T, area_O = ((one[:, 2:] - one[:, :2]).prod(axis=1) for one in (boxes_T4, others_O4))
    return np.asarray(shared_TO / (area_T[:, None] + area_O - shared_TO))


def _by_chance(picture: Picture, draws: int, seed: int) -> Floats:
    """The best overlap of each random box, [T]; its corners are two pixels, both inside of it."""
    drawn_T22 = uniform(seed, _NAME, picture.id, np.arange(draws)[:, None, None], np.arange(2)[:, None], np.arange(2))
    corners_T22: Integers = (drawn_T22 * (picture.width, picture.height)).astype(np.int64)
    boxes_T4 = np.concatenate([corners_T22.min(axis=1), corners_T22.max(axis=1) + 1], axis=1).astype(np.float64)
    return np.asarray(overlaps(boxes_T4, boxes_of(picture)).max(axis=1))
