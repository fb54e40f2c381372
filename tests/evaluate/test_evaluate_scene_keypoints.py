"""Keypoint matching: perfect and permuted features, interpolation by a library, pairs and chance by hand, bad input."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from toy_scenes import SIDE, scene_set

from polygrain.backbones.contract import Encoded, from_map
from polygrain.data.dense.coco import Instance, Picture
from polygrain.evaluate import scene_keypoints
from polygrain.evaluate.result import Result
from polygrain.evaluate.scenes.given import SceneSet
from polygrain.provenance.errors import UserError

VALUES: dict[str, Any] = {"pairs": 100, "keypoints": 2, "seed": 0}
OBJECT = 8  # px, side of an object
POINTS = [(1, 1), (6, 2), (3, 6)]  # column, row in it


def _scenes(root: Path, visible: Sequence[int] = (2, 2, 2), count: int = 60) -> SceneSet:
    """One object in each scene, of two classes in turn, at a drawn place."""
    generator, masks, points = np.random.default_rng(0), [], {}
    for number in range(1, count + 1):
        left, top = generator.integers(0, SIDE - OBJECT, 2).tolist()
        mask = np.zeros((SIDE, SIDE), bool)
        mask[top : top + OBJECT, left : left + OBJECT] = True
        masks.append([(1 + number % 2, mask)])
        points[number] = [
            value for (x, y), seen in zip(POINTS, visible, strict=True) for value in (left + x, top + y, seen)
        ]
    return scene_set(root, {"train": masks[:1], "validation": masks[:1], "test": masks}, points)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SceneSet:
    return _scenes(tmp_path_factory.mktemp("scenes"))


class Given:
    """The place within the object as a unit vector for each pixel; permuted: another pixel's."""

    def __init__(self, scenes: SceneSet, permuted: bool = False, broken: bool = False) -> None:
        self.scenes, self.permuted, self.broken = scenes, permuted, broken

    def encoded(self, split: str, pictures: Sequence[Picture]) -> Iterator[Encoded]:
        generator = np.random.default_rng(0)
        maps = np.zeros((len(pictures), OBJECT**2, SIDE, SIDE), np.float32)
        for map_, picture in zip(maps, pictures, strict=True):
            left, top = (int(value) for value in picture.instances[0].box[:2])
            order = generator.permutation(OBJECT**2) if self.permuted else np.arange(OBJECT**2)
            for place, at in enumerate(order.tolist()):
                map_[place, top + at // OBJECT, left + at % OBJECT] = np.nan if self.broken else 1.0
        yield from_map(torch.from_numpy(maps))


def _evaluate(given: Given, **changes: Any) -> Result:
    return scene_keypoints.evaluate(given, **{**VALUES, **changes})  # type: ignore[arg-type]


def test_perfect_features_match_every_keypoint_and_permuted_ones_are_chance(scenes: SceneSet) -> None:
    perfect, permuted = (_evaluate(Given(scenes, permuted=permuted)).values for permuted in (False, True))
    assert perfect["toy/pck10"].value == perfect["toy/pck20"].value == 1.0
    assert perfect["toy/distance"].value == 0.0
    for alpha in ("10", "20"):
        assert permuted[f"toy/pck{alpha}"].value == pytest.approx(permuted[f"toy/chance{alpha}"].value, abs=0.05)
    # by hand: within 0.8 px lies one of 64 pixels; within 1.6 px 9, of which none is outside for these keypoints
    assert permuted["toy/chance10"].value == pytest.approx(1 / 64)
    assert permuted["toy/chance20"].value == pytest.approx(9 / 64)


def test_pairs_are_neighbours_of_one_class_in_an_order_of_hashes(scenes: SceneSet) -> None:
    pictures = scenes.pictures("test")
    found = scene_keypoints.pairs_of(pictures, 100, 2, 0)
    assert len(found) == 58, "30 objects of each class, 29 neighbours"
    for pair in found:
        assert pair.first.instance.category == pair.second.instance.category
        assert pair.first.picture.id != pair.second.picture.id
        assert pair.shared.tolist() == [0, 1, 2]
    firsts = [pair.first.instance.id for pair in found]
    assert len(set(firsts)) == len({pair.second.instance.id for pair in found}) == 58
    assert [one.first.instance.id for one in scene_keypoints.pairs_of(pictures[::-1], 10, 2, 0)] == firsts[:10]
    assert [one.first.instance.id for one in scene_keypoints.pairs_of(pictures, 100, 2, 1)] != firsts


def test_maps_are_interpolated_as_by_a_library() -> None:
    map_ = np.random.default_rng(1).normal(size=(3, 4, 4))
    known = interpolate(torch.from_numpy(map_)[None], size=(32, 32), mode="bilinear", align_corners=False)[0]
    pixels = np.stack(np.meshgrid(np.arange(32), np.arange(32), indexing="ij"), axis=-1).reshape(-1, 2)
    found = scene_keypoints.at_pixels(map_, pixels, 32)
    np.testing.assert_allclose(found, known.flatten(1).T.numpy(), rtol=1e-12, atol=1e-12)
    single = scene_keypoints.at_pixels(map_[:, :1, :1], pixels, 32)
    np.testing.assert_array_equal(single, np.tile(map_[:, 0, 0], (1024, 1)))


def test_scores_by_hand_with_a_mirrored_map_and_a_tie() -> None:
    """The second object's features are mirrored, and the last keypoint's feature occurs twice: the first place wins."""

    def seen(number: int, points: list[list[int]]) -> scene_keypoints.Seen:
        instance = Instance(number, 1, (0.0, 0.0, 10.0, 10.0), False, [], np.array(points), {})
        return scene_keypoints.Seen(Picture(number, "", 10, 10, (instance,)), instance)

    first = np.zeros((3, 10, 10))
    first[0, 2, 1] = first[1, 5, 5] = first[2, 7, 7] = 1.0
    second = first[:, :, ::-1].copy()
    second[2, 7, 9] = 1.0  # beside (7, 2)
    points = [[1, 2, 2], [5, 5, 2], [7, 7, 2]]
    pair = scene_keypoints.Pair(seen(1, points), seen(2, points), np.arange(3))
    found = scene_keypoints.scored(pair, first, second)
    assert found["distance"] == pytest.approx((7 + 1 + 5) / 3)
    assert found["pck10"] == found["pck20"] == pytest.approx(1 / 3)


def test_a_box_is_cut_at_the_border_of_the_image() -> None:
    instance = Instance(1, 1, (-0.5, 7.2, 2.0, 3.3), False, [], None, {})
    found = scene_keypoints.box_pixels(instance, Picture(1, "", 10, 10, (instance,)))
    assert found.tolist() == [[row, column] for row in (7, 8, 9) for column in (0, 1)]


def test_bytes_are_equal_twice(scenes: SceneSet, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        _evaluate(Given(scenes, permuted=True)).save(tmp_path / folder, "scene-keypoints")
    for kind in ("json", "npz"):
        assert len({(tmp_path / f"{one}/scene-keypoints.{kind}").read_bytes() for one in ("one", "two")}) == 1


def test_bad_input_is_one_line(scenes: SceneSet, tmp_path: Path) -> None:
    for change in ({"pairs": 0}, {"keypoints": 0}):
        with pytest.raises(UserError, match=r"scene-keypoints: pairs .* must be positive"):
            _evaluate(Given(scenes), **change)
    with pytest.raises(UserError, match="not finite, the encoder has diverged"):
        _evaluate(Given(scenes, broken=True))
    for name, visible in (("hidden", (1, 1, 1)), ("none", (0, 0, 0)), ("one", (2, 1, 0))):
        few = _scenes(tmp_path / name, visible, count=6)
        with pytest.raises(
            UserError, match="no two objects of a class in different test scenes of toy show 2 keypoints"
        ):
            _evaluate(Given(few))
    both = np.zeros((2, SIDE, SIDE), bool)
    both[0, :OBJECT], both[1, OBJECT:] = True, True
    points = [1, 1, 2, 6, 2, 2, 3, 6, 2]
    test: list[list[tuple[int, Any]]] = [[(1, both[0]), (1, both[1])]]
    splits = {"train": test, "validation": test, "test": test}
    same = scene_set(tmp_path / "same", splits, {1: points, 2: points})
    with pytest.raises(UserError, match="no two objects of a class in different test scenes"):
        _evaluate(Given(same))
