"""Object discovery: boxes by hand, perfect and permuted maps, the direction of the component, ties, bad input."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torchvision.ops import box_iou
from toy_scenes import SIDE, scene_set

from polygrain.backbones.contract import Encoded, from_map
from polygrain.data.dense.coco import Picture
from polygrain.evaluate import scene_discovery
from polygrain.evaluate.result import Result
from polygrain.evaluate.scenes.given import SceneSet
from polygrain.provenance.errors import UserError

VALUES: dict[str, Any] = {"threshold": 0.5, "draws": 40, "seed": 0}
EMPTY = np.zeros((SIDE, SIDE), bool)


def _square(top: int, left: int, side: int = 8) -> np.ndarray:
    mask = EMPTY.copy()
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SceneSet:
    """A square of 8 px at a drawn place; the first scene is empty, the second has an object without a pixel besides."""
    generator = np.random.default_rng(0)
    placed: list[list[tuple[int, Any]]] = [[(1, _square(*generator.integers(1, 8, 2)))] for _ in range(40)]
    placed[0], placed[1] = [], [*placed[1], (2, EMPTY)]
    return scene_set(tmp_path_factory.mktemp("scenes"), {"train": placed[:2], "validation": placed[:2], "test": placed})


class Given:
    """The object's pixels as a map of one cell for each, in one of two directions, with noise, or moved elsewhere."""

    def __init__(self, scenes: SceneSet, sign: float = 1.0, noise: float = 0.01, permuted: bool = False) -> None:
        self.scenes, self.sign, self.noise, self.permuted = scenes, sign, noise, permuted

    def encoded(self, split: str, pictures: Sequence[Picture]) -> Iterator[Encoded]:
        generator = np.random.default_rng(1)
        truth = np.stack([self.scenes.semantic(split, picture) for picture in pictures]) > 0
        truth = generator.permutation(truth) if self.permuted else truth
        maps = self.sign * truth[:, None] * np.array([1.0, 0.5]).reshape(2, 1, 1)
        yield from_map(torch.from_numpy(maps + self.noise * generator.normal(size=maps.shape)).float())


def _evaluate(given: Given, **changes: Any) -> Result:
    return scene_discovery.evaluate(given, **{**VALUES, **changes})  # type: ignore[arg-type]


def test_perfect_maps_find_every_object_and_permuted_ones_few(scenes: SceneSet) -> None:
    perfect, permuted = (_evaluate(Given(scenes, permuted=permuted)) for permuted in (False, True))
    assert perfect.values["toy/corloc"].value == perfect.values["toy/overlap"].value == 1.0
    assert permuted.values["toy/corloc"].value < 0.4
    assert perfect.examples["toy"].index.tolist() == list(range(2, 41)), "nothing is to be found in the empty scene"
    for sign in (1.0, -1.0):
        assert _evaluate(Given(scenes, sign=sign)).values["toy/corloc"].value == 1.0, "either direction is the same"


def test_components_are_those_of_a_library_but_for_their_direction() -> None:
    maps = np.random.default_rng(2).normal(size=(3, 5, 4, 4)) * np.array([3, 2, 1, 1, 1]).reshape(5, 1, 1)
    found = scene_discovery.components(maps, 4)
    for one, map_ in zip(found, maps, strict=True):
        known = PCA(1).fit_transform(map_.reshape(5, 16).T).ravel()
        known /= np.linalg.norm(known)
        np.testing.assert_allclose(np.abs(one.ravel()), np.abs(known), atol=1e-9)
        np.testing.assert_allclose(abs(one.ravel() @ known), 1, atol=1e-9)
    assert scene_discovery.components(np.ones((1, 5, 4, 4)), 8).tolist() == np.zeros((1, 8, 8)).tolist()


def test_the_box_is_the_largest_part_of_the_side_away_from_the_border() -> None:
    component = -np.ones((8, 8))
    component[1:4, 2:5] = component[5:7, 1:3] = component[4, 5] = 1.0  # 9 px; 4 px; 1 px, which touches a corner only
    for sign in (1.0, -1.0):
        assert scene_discovery.box(sign * component).tolist() == [2, 1, 5, 4]
    component[1:4, 2:5] = -1.0
    component[1:3, 5:7] = 1.0  # 4 px, as many as the other part, which comes later row by row
    assert scene_discovery.box(component).tolist() == [5, 1, 7, 3]
    assert scene_discovery.box(np.zeros((8, 8))).tolist() == [0, 0, 8, 8]
    inner = -np.ones((8, 8))
    inner[1:-1, 1:-1] = 1.0  # more pixels than the frame around it, but none on the border
    assert scene_discovery.box(inner).tolist() == [1, 1, 7, 7]
    corner = -np.ones((8, 8))
    corner[:4, :7] = 1.0  # 10 pixels of the border, against 18
    assert scene_discovery.box(-corner).tolist() == [0, 0, 7, 4]
    halves = np.repeat([[1.0, 1.0, -1.0, -1.0]], 4, axis=0)  # equal in all: the side that does not come first
    for sign in (1.0, -1.0):
        assert scene_discovery.box(sign * halves).tolist() == [2, 0, 4, 4]


def test_overlaps_are_those_of_a_library() -> None:
    generator = np.random.default_rng(3)
    corners = generator.integers(0, 20, (7, 2))
    boxes = np.concatenate([corners, corners + generator.integers(1, 12, (7, 2))], axis=1).astype(float)
    known = box_iou(torch.from_numpy(boxes[:3]), torch.from_numpy(boxes[3:])).numpy()
    np.testing.assert_allclose(scene_discovery.overlaps(boxes[:3], boxes[3:]), known, rtol=1e-12)


def test_chance_is_the_mean_over_all_boxes_of_two_drawn_pixels(tmp_path: Path) -> None:
    """Counted: every pair of corner pixels of a 16 px image against one square."""
    only = scene_set(tmp_path, {split: [[(1, _square(4, 4))]] for split in ("train", "validation", "test")})
    ends = np.arange(SIDE)
    low, high = np.minimum(ends[:, None], ends), np.maximum(ends[:, None], ends) + 1
    inner, length = (np.minimum(high, 12) - np.maximum(low, 4)).clip(0).ravel(), (high - low).ravel()
    shared, area = inner[:, None] * inner, length[:, None] * length
    iou = shared / (area + 64 - shared)
    found = _evaluate(Given(only), draws=40_000).values
    assert found["toy/chance"].value == pytest.approx((iou >= 0.5).mean(), abs=0.005)
    assert found["toy/chance-overlap"].value == pytest.approx(iou.mean(), abs=0.005)


def test_bytes_are_equal_twice(scenes: SceneSet, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        _evaluate(Given(scenes, noise=1.0)).save(tmp_path / folder, "scene-discovery")
    for kind in ("json", "npz"):
        assert len({(tmp_path / f"{one}/scene-discovery.{kind}").read_bytes() for one in ("one", "two")}) == 1


def test_bad_input_is_one_line(scenes: SceneSet, tmp_path: Path) -> None:
    for change in ({"threshold": 0.0}, {"threshold": 1.5}, {"draws": 0}):
        with pytest.raises(UserError, match="scene-discovery: threshold"):
            _evaluate(Given(scenes), **change)
    with pytest.raises(UserError, match="not finite, the encoder has diverged"):
        _evaluate(Given(scenes, noise=float("nan")))
    nothing = scene_set(tmp_path, {split: [[], [(1, EMPTY)]] for split in ("train", "validation", "test")})
    with pytest.raises(UserError, match="no test scene of toy holds an object; there is nothing to find"):
        _evaluate(Given(nothing))
