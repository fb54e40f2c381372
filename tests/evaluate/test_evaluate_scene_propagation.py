"""Video object segmentation: J and F by hand and by a plain second implementation, propagation by loops, bad input."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from polygrain.backbones.contract import Encoded, from_map
from polygrain.data.dense.davis import Davis
from polygrain.data.dense.tree import Tree
from polygrain.evaluate import scene_propagation
from polygrain.evaluate.result import Result
from polygrain.evaluate.scenes import regions
from polygrain.evaluate.sphere import on_grid
from polygrain.provenance.errors import UserError

SIDE = 16
VALUES: dict[str, Any] = {"enlarge": 1, "frames": 2, "radius": [1, 3], "k": 2, "temperature": [0.05, 0.2]}
Masks = dict[str, list[np.ndarray]]


def _moving(generator: np.random.Generator, frames: int = 6) -> list[np.ndarray]:
    """Two objects of 4 px that move by two pixels a frame, the second leaves."""
    masks = []
    for frame in range(frames):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[2:6, 2 * frame : 2 * frame + 4] = 1
        mask[9:13, max(0, 8 + 2 * frame) : 12 + 2 * frame] = 2
        masks.append(np.roll(mask, generator.integers(0, 3), axis=0))
    return masks


def _davis(root: Path, split: str, clips: Masks, annotated: int | None = None) -> Davis:
    """The frames show 100 times the object's number; `annotated` frames have masks."""
    for name, masks in clips.items():
        for kind in ("JPEGImages", "Annotations"):
            folder = root / kind / "480p" / name
            folder.mkdir(parents=True)
            for frame, mask in enumerate(masks if kind == "JPEGImages" else masks[:annotated]):
                Image.fromarray(mask * (100 if kind == "JPEGImages" else 1)).save(folder / f"{frame:05}.png")
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / f"ImageSets/2017/{split}.txt").write_text("".join(f"{name}\n" for name in clips))
    return Davis(Tree(root), split)


class Given:
    """Stands for `SceneEncoder`: what a pixel shows as a map of one cell for each, with noise, or moved elsewhere.

    stride: px between the cells.
    """

    def __init__(self, clips: dict[str, Davis], noise: float = 0.0, permuted: bool = False, stride: int = 1) -> None:
        self.scenes = SimpleNamespace(name="toy", clips=clips.__getitem__)
        self.noise, self.permuted, self.stride, self.batch = noise, permuted, stride, 7

    def encoded_pixels(self, pixels: np.ndarray) -> Encoded:
        assert len(pixels) <= self.batch
        generator = np.random.default_rng(int(pixels.sum()))
        labels = pixels[:, 0, :: self.stride, :: self.stride].astype(int) // 100
        labels = (
            generator.permuted(labels.reshape(len(labels), -1), axis=1).reshape(labels.shape)
            if self.permuted
            else labels
        )
        maps = np.moveaxis(np.eye(3)[labels], 3, 1)
        return from_map(torch.from_numpy(maps + self.noise * generator.normal(size=maps.shape)).float())


def _given(root: Path, **changes: Any) -> Given:
    generator = np.random.default_rng(0)
    made = {}
    for split in ("validation", "test"):
        clips = {f"{split}-{number}": _moving(generator) for number in range(3)}
        clips[f"{split}-empty"] = [np.zeros((SIDE, SIDE), np.uint8)] * 3
        made[split] = _davis(root / split, split, clips)
    return Given(made, **changes)


def _evaluate(given: Any, **changes: Any) -> Result:
    return scene_propagation.evaluate(given, **{**VALUES, **changes})


def test_perfect_features_follow_every_object_and_permuted_ones_do_not(tmp_path: Path) -> None:
    given = _given(tmp_path)
    perfect = _evaluate(given)
    for metric in ("j", "f", "jf", "jf-objects"):
        assert perfect.values[f"toy/{metric}"].value == 1.0
    assert perfect.examples["toy"].index.tolist() == [0, 1, 2], "a clip without objects is no example"
    assert perfect.selected["toy"] == {"radius": 3, "temperature": 0.05, "validation_jf": 1.0, "clips": 3}
    still = perfect.values["toy/still"].value
    given.permuted = True
    permuted = _evaluate(given).values["toy/jf"].value
    assert permuted < 0.3, "scattered pixels meet some of the boundary"
    assert 0 < still < 0.3, "the objects move"


def test_numbers_are_means_of_their_scores_and_bytes_are_equal_twice(tmp_path: Path) -> None:
    given = _given(tmp_path / "clips", noise=0.7)
    for folder in ("one", "two"):
        _evaluate(given).save(tmp_path / folder, "scene-propagation")
    for kind in ("json", "npz"):
        assert len({(tmp_path / f"{one}/scene-propagation.{kind}").read_bytes() for one in ("one", "two")}) == 1
    values = {name: number.value for name, number in Result.load(tmp_path / "one", "scene-propagation").values.items()}
    assert values["toy/jf"] == pytest.approx((values["toy/j"] + values["toy/f"]) / 2)
    assert 0 < values["toy/jf"] < 1


def test_masks_are_propagated_as_by_loops() -> None:
    generator = np.random.default_rng(1)
    frames, rows, last, radius, k, temperature = 5, 4, 2, 1, 3, 0.3
    maps = torch.from_numpy(generator.normal(size=(frames, 6, rows, rows))).float()
    first = generator.integers(0, 3, (8, 8)) * 5  # objects 5 and 10
    clip = scene_propagation.Clip(0, maps, first, {2: first, 4: first}, (5, 10))
    near = scene_propagation.neighbours(maps, last, radius, k)
    found = scene_propagation.propagated(clip, near, temperature)
    assert sorted(found) == [2, 4]

    unit = [on_grid(one.flatten(1).T.numpy()) / 2**26 for one in maps]
    cells = [(row, column) for row in range(rows) for column in range(rows)]
    soft = [
        np.array(
            [[(first[2 * r : 2 * r + 2, 2 * c : 2 * c + 2] == one).mean() for one in (0, 5, 10)] for r, c in cells]
        )
    ]
    for frame in range(1, frames):
        context = [0] + [one for one in range(frame - last, frame) if one > 0]
        given = np.zeros((16, 3))
        for cell, (row, column) in enumerate(cells):
            sources = [
                (unit[frame][cell] @ unit[one][other], one, other)
                for one in context
                for other, (r, c) in enumerate(cells)
                if abs(r - row) <= radius and abs(c - column) <= radius
            ]
            chosen = sorted(sources, key=lambda source: -source[0])[:k]
            weights = [math.exp(cosine / temperature) for cosine, _, _ in chosen]
            given[cell] = sum(w * soft[one][other] for w, (_, one, other) in zip(weights, chosen, strict=True)) / sum(
                weights
            )
        soft.append(given)
    for frame, got in found.items():
        np.testing.assert_array_equal(got, scene_propagation.winners(soft[frame], rows, 8))


def test_each_object_is_scaled_before_the_largest_wins() -> None:
    shares = np.array([[0.9, 0.1], [0.8, 0.2], [0.9, 0.1], [0.9, 0.1]])
    assert scene_propagation.winners(shares, 2, 2).tolist() == [[0, 1], [0, 0]]
    shares = np.array([[1.0, 0.0], [0.7, 0.05], [0.8, 0.05], [1.0, 0.0]])  # over 0.3, and over 0.05
    assert scene_propagation.winners(shares, 2, 2).tolist() == [[0, 1], [1, 0]]
    assert scene_propagation.winners(np.array([[1.0, 0.0]] * 4), 2, 4).tolist() == [[0] * 4] * 4, "nothing is left"


def test_equal_similarities_go_in_the_order_of_the_sources() -> None:
    near = scene_propagation.neighbours(torch.ones(3, 2, 2, 2), 5, 1, 5)
    assert near[0].places[:, :4].tolist() == [[0, 1, 2, 3]] * 4, "the first frame has four cells"
    assert near[1].places.tolist() == [[0, 1, 2, 3, 4]] * 4
    values, places = scene_propagation.largest(np.array([[1.0, 3.0, 3.0, -np.inf]]), 3)
    assert (values.tolist(), places.tolist()) == ([[3.0, 3.0, 1.0]], [[1, 2, 0]])


def _plain_contour(found: np.ndarray, truth: np.ndarray) -> float:
    """F with loops over pixels and pairs of boundary pixels."""

    def line(mask: np.ndarray) -> list[tuple[int, int]]:
        height, width = mask.shape
        return [
            (y, x)
            for y in range(height)
            for x in range(width)
            if any(
                mask[y, x] != mask[min(y + a, height - 1), min(x + b, width - 1)] for a, b in ((0, 1), (1, 0), (1, 1))
            )
        ]

    one, other = line(found), line(truth)
    reach = math.ceil(0.008 * math.sqrt(sum(side**2 for side in truth.shape)))
    if not one or not other:
        return float(not one and not other)

    def share(these: Sequence[tuple[int, int]], those: Sequence[tuple[int, int]]) -> float:
        return sum(any((y - v) ** 2 + (x - u) ** 2 <= reach**2 for v, u in those) for y, x in these) / len(these)

    precision, recall = share(one, other), share(other, one)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("shape", [(12, 12), (20, 170), (9, 280)])
def test_contours_are_those_of_a_plain_second_implementation(shape: tuple[int, int]) -> None:
    """Of 170 and 280 px the distance is 2 and 3 px."""
    generator = np.random.default_rng(2)
    for _ in range(3):
        truth = np.zeros(shape, bool)
        truth[2:7, 3 : generator.integers(6, 11)] = True
        found = np.roll(truth, generator.integers(0, 4, 2), axis=(0, 1)) ^ (generator.random(shape) < 0.02)
        assert regions.contour(found, truth) == pytest.approx(_plain_contour(found, truth), rel=1e-12)


def test_regions_and_contours_by_hand() -> None:
    empty, square = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    square[2:4, 2:4] = True
    moved, far = np.roll(square, 1, axis=1), np.roll(square, 4, axis=1)
    assert [regions.region(square, other) for other in (square, moved, far, empty)] == [1.0, 1 / 3, 0.0, 0.0]
    assert regions.region(empty, empty) == regions.contour(empty, empty) == 1.0
    assert regions.contour(square, empty) == regions.contour(empty, square) == 0.0
    # where the mask changes to the right, below, or both: rows 1 to 3, columns 1 to 3, but for the inner pixel (2, 2)
    assert np.argwhere(regions.boundary(square)).tolist() == [
        [r, c] for r in (1, 2, 3) for c in (1, 2, 3) if (r, c) != (2, 2)
    ]
    # moved by one: every boundary pixel lies at most one pixel from the other boundary; by four: none does
    assert regions.contour(square, moved) == 1.0
    assert regions.contour(square, far) == 0.0
    assert not regions.boundary(~empty).any(), "the image's own border is none"
    assert regions.disk(1).astype(int).tolist() == [[0, 1, 0], [1, 1, 1], [0, 1, 0]]


def test_the_first_and_the_last_frame_do_not_count_and_frames_are_enlarged(tmp_path: Path) -> None:
    clips = {"a": _moving(np.random.default_rng(0))}
    davis = {count: _davis(tmp_path / str(count), "test", clips, count) for count in (None, 3)}
    whole, partly = (scene_propagation.clips_of(Given({"test": one}), "test", 1)[0] for one in davis.values())
    assert sorted(whole.judged) == [1, 2, 3, 4]
    assert sorted(partly.judged) == [1, 2], "a frame without a mask cannot be judged"
    (enlarged,) = scene_propagation.clips_of(Given({"test": davis[None]}, stride=2), "test", 2)
    assert torch.equal(enlarged.maps, whole.maps), "each pixel is repeated"
    with pytest.raises(UserError, match="a map of 6 x 6 cells does not divide frames of 16 px; change enlarge"):
        scene_propagation.clips_of(Given({"test": davis[None]}, stride=3), "test", 1)


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    given = _given(tmp_path / "good")
    for change in ({"enlarge": 0}, {"frames": 0}, {"k": 0}, {"radius": []}, {"radius": [-1]}, {"temperature": [0.0]}):
        with pytest.raises(UserError, match="scene-propagation: enlarge"):
            _evaluate(given, **change)
    with pytest.raises(UserError, match="not finite, the encoder has diverged"):
        _evaluate(_given(tmp_path / "broken", noise=float("nan")))
    moving = _moving(np.random.default_rng(0))
    faulty: dict[str, tuple[Masks, str]] = {
        "one": ({"a": moving[:1]}, "a clip of one frame, to which nothing can be propagated"),
        "two": ({"a": moving[:2]}, "clip a has no mask of a frame between its first and its last"),
        "empty": ({"a": [moving[0] * 0] * 3}, "no clip of the validation split holds an object"),
        "sizes": ({"a": moving, "b": [mask[:8] for mask in moving]}, "must be squares of one size"),
    }
    for name, (clips, line) in faulty.items():
        davis = _davis(tmp_path / name, "test", clips)
        with pytest.raises(UserError, match=line):
            _evaluate(Given({"validation": davis, "test": davis}))
