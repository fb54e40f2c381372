"""Keypoint matching: where a keypoint of one object lies on another object of its class, by frozen features alone.

Pairs are drawn once, the same for all runs: the test objects of a class stand in an order given by a hash of their
numbers; each forms a pair with the next one, if both lie in different scenes and at least `keypoints` keypoints are
seen in both. The feature at a keypoint of the first object, interpolated bilinearly between the cells, is compared with
the features at all pixels of the second object's box; its match is the pixel of the largest cosine (the first of
equals, row by row), its error the distance between the match and the true keypoint.

`pck10` and `pck20` are the shares of keypoints with an error of at most 0.1 and 0.2 of the longer side of the second
object's box, `distance` is the mean error in px; all are means over the keypoints of a pair, then over pairs. On scenes
of 64 px the longer side is some 30 px, and 0.1 of it is 3 px, less than the 8 px of a cell: `pck10` asks how well
features between cells are interpolated as well, so read it with `pck20` and `distance`. `chance10` and `chance20` are
what a match drawn evenly from the pixels of the box would give.

Legend: B images, D width, h, w the map, K keypoints of a pair, P pixels, N places.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from polygrain.data.dense.coco import Instance, Picture
from polygrain.evaluate.result import ACCURACY, FRACTION, Examples, Measure, Number, Result
from polygrain.evaluate.scenes.given import SceneEncoder
from polygrain.evaluate.scenes.iou import Floats, Integers, encoded_maps
from polygrain.evaluate.sphere import on_grid
from polygrain.nn.random_numpy import hash64
from polygrain.provenance.errors import UserError

_NAME = "scene-keypoints"
CHANCE = Measure(FRACTION, "none")
PIXELS = Measure("px", "lower", decimals=2)
MEASURES = {"pck10": ACCURACY, "pck20": ACCURACY, "distance": PIXELS, "chance10": CHANCE, "chance20": CHANCE}
_SHOWN = 2  # a keypoint that is to be seen


class Seen(NamedTuple):
    """An object of a scene."""

    picture: Picture
    instance: Instance


class Pair(NamedTuple):
    """Two objects of a class, and the keypoints (by number) that are seen in both."""

    first: Seen
    second: Seen
    shared: Integers


def evaluate(encoder: SceneEncoder, *, pairs: int, keypoints: int, seed: int) -> Result:
    """Match the keypoints of pairs of test objects.

    pairs: at most so many. keypoints: see above. seed: of the pairs, one for all runs. Raises UserError for values out
    of range, and when no two test objects of a class show so many keypoints.
    """
    if min(pairs, keypoints) < 1:
        raise UserError(f"{_NAME}: pairs ({pairs}) and keypoints ({keypoints}) must be positive")
    scenes = encoder.scenes
    pictures = scenes.pictures("test")
    found = pairs_of(pictures, pairs, keypoints, seed)
    if not found:
        raise UserError(
            f"{_NAME}: no two objects of a class in different test scenes of {scenes.name} show {keypoints} keypoints"
        )
    maps_BDhw = encoded_maps(_NAME, encoder, "test", pictures).double().numpy()
    map_of = {picture.id: map_Dhw for picture, map_Dhw in zip(pictures, maps_BDhw, strict=True)}
    parts = [scored(pair, map_of[pair.first.picture.id], map_of[pair.second.picture.id]) for pair in found]
    scores = {metric: np.array([part[metric] for part in parts]) for metric in MEASURES}
    values = {f"{scenes.name}/{metric}": Number(float(scores[metric].mean()), of) for metric, of in MEASURES.items()}
    index = np.array([pair.first.instance.id for pair in found], dtype=np.int64)
    return Result(values, examples={scenes.name: Examples(index, scores)})


def pairs_of(pictures: Sequence[Picture], pairs: int, keypoints: int, seed: int) -> list[Pair]:
    """The first `pairs` of all pairs, in the order of their first objects; no object is first, or second, twice."""
    found = [pair for pair in _neighbours(pictures, seed) if len(pair.shared) >= keypoints]
    return sorted(found, key=lambda pair: _rank(pair.first.instance, seed))[:pairs]


def _neighbours(pictures: Sequence[Picture], seed: int) -> Iterator[Pair]:
    """Each object with the next one of its class, where that lies in another scene."""
    classes = dict[int, list[Seen]]()
    for picture in pictures:
        for instance in picture.instances:
            if not instance.crowd and len(seen_keypoints(instance)):
                classes.setdefault(instance.category, []).append(Seen(picture, instance))
    for objects in classes.values():
        objects.sort(key=lambda one: _rank(one.instance, seed))
        for first, second in pairwise(objects):
            if first.picture.id != second.picture.id:
                shared = np.intersect1d(seen_keypoints(first.instance), seen_keypoints(second.instance))
                yield Pair(first, second, shared)


def _rank(instance: Instance, seed: int) -> tuple[int, int]:
    return int(hash64(seed, _NAME, instance.id)), instance.id


def seen_keypoints(instance: Instance) -> Integers:
    """The numbers of an object's keypoints that are to be seen; none where it has none."""
    if instance.keypoints is None:
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(instance.keypoints[:, 2] == _SHOWN).astype(np.int64)


def scored(pair: Pair, first_Dhw: Floats, second_Dhw: Floats) -> Mapping[str, float]:
    """The scores of a pair from the maps of its two scenes."""
    sources_K2, targets_K2 = (_places(one.instance, pair.shared) for one in (pair.first, pair.second))
    picture, instance = pair.second
    pixels_P2 = box_pixels(instance, picture)
    wanted_KD = on_grid(at_pixels(first_Dhw, sources_K2, pair.first.picture.height))
    given_PD = on_grid(at_pixels(second_Dhw, pixels_P2, picture.height))
    matches_K2 = pixels_P2[(wanted_KD @ given_PD.T).argmax(axis=1)]
    error_K = np.sqrt(np.square(matches_K2 - targets_K2).sum(axis=1))
    error_KP = np.sqrt(np.square(pixels_P2 - targets_K2[:, None]).sum(axis=2))
    longer = max(instance.box[2:])
    return {
        "pck10": float((error_K <= 0.1 * longer).mean()),
        "pck20": float((error_K <= 0.2 * longer).mean()),
        "distance": float(error_K.mean()),
        "chance10": float((error_KP <= 0.1 * longer).mean()),
        "chance20": float((error_KP <= 0.2 * longer).mean()),
    }


def _places(instance: Instance, numbers: Integers) -> Integers:
    """Row and column of some keypoints, int64 [K, 2]."""
    assert instance.keypoints is not None
    return instance.keypoints[numbers][:, 1::-1]


def box_pixels(instance: Instance, picture: Picture) -> Integers:
    """Row and column of the pixels that an object's box touches inside of the image, row by row, int64 [P, 2]."""
    left, top, width, height = instance.box
    rows = np.arange(max(0, int(np.floor(top))), min(picture.height, int(np.ceil(top + height))))
    columns = np.arange(max(0, int(np.floor(left))), min(picture.width, int(np.ceil(left + width))))
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.int64)


def at_pixels(map_Dhw: Floats, pixels_N2: Integers, side: int) -> Floats:
    """The map, interpolated bilinearly at the centres of pixels of an image of `side` px, float64 [N, D].

    Beyond the centres of the outer cells the map goes on as it is there.
    """
    cells = map_Dhw.shape[1]
    place_N2 = ((pixels_N2 + 0.5) * (cells / side) - 0.5).clip(0, cells - 1)
    low_N2 = np.minimum(np.floor(place_N2).astype(np.int64), max(cells - 2, 0))
    high_N2 = np.minimum(low_N2 + 1, cells - 1)
    (down_1N, right_1N), cells_hwD = (place_N2 - low_N2).T[:, None], np.moveaxis(map_Dhw, 0, 2)
    down_N1, right_N1 = down_1N.T, right_1N.T
    above_ND, below_ND = (
        cells_hwD[row, low_N2[:, 1]] * (1 - right_N1) + cells_hwD[row, high_N2[:, 1]] * right_N1
        for row in (low_N2[:, 0], high_N2[:, 0])
    )
    return np.asarray(above_ND * (1 - down_N1) + below_ND * down_N1)
