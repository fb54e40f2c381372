"""Laws of crops that overlap the first view, and of erased boxes, against scalar and numpy rules on the same draws."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polygrain.nn.random import hash64, uniform
from polygrain.provenance.errors import UserError
from polygrain.views.batch import draw_views
from polygrain.views.boxes import _overlap_above
from polygrain.views.draw import draw
from polygrain.views.recipe import Recipe

CROP: dict[str, Any] = {"size": 32, "scale": [0.2, 1.0], "ratio": [0.75, 1.3333333333333333], "flip": 0.5}
ANCHOR = Recipe.from_mapping(CROP)
OVERLAPPING = Recipe.from_mapping({**CROP, "overlap": {"minimum": 0.2}})
ERASING = {"probability": 0.25, "area": [0.02, 0.33], "ratio": [0.3, 3.3]}
COUNT = 20000


def _views(source: Any, count: int = COUNT, other: Recipe = OVERLAPPING) -> tuple[np.ndarray, np.ndarray]:
    first, second = draw_views([ANCHOR, other], torch.arange(count), seed=2, epoch=3, source=source)
    return first.box.numpy(), second.box.numpy()


def _iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """By counting pixels row by row and column by column."""
    sides = []
    for axis in (0, 1):
        near = np.maximum(one[..., axis], other[..., axis])
        far = np.minimum(one[..., axis] + one[..., axis + 2], other[..., axis] + other[..., axis + 2])
        sides.append(np.maximum(0, far - near))
    shared = sides[0] * sides[1]
    areas = one[..., 2] * one[..., 3] + other[..., 2] * other[..., 3]
    return np.asarray(shared / (areas - shared))


def _tries(source: tuple[int, int], view: int, count: int, tries: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of all tries [count, tries, 4] and whether they fit, in numpy, from the same uniform numbers."""
    key = hash64(2, "view", 3, view, torch.arange(count))
    numbers = uniform(hash64(key[:, None], "crop", torch.arange(tries))[..., None], torch.arange(4)).numpy()
    area = source[0] * source[1] * (0.2 + 0.8 * numbers[..., 0])
    ratio = np.exp(math.log(0.75) + numbers[..., 1] * (math.log(4 / 3) - math.log(0.75)))
    width, height = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (width <= source[1]) & (height <= source[0])
    top = np.floor(numbers[..., 2] * (source[0] - height + 1))
    left = np.floor(numbers[..., 3] * (source[1] - width + 1))
    return np.stack((top, left, height, width), axis=-1).astype(np.int64), fits


@pytest.mark.parametrize("source", [(480, 640), (28, 28), (96, 40)])
def test_the_first_fitting_try_that_overlaps_is_taken(source: tuple[int, int]) -> None:
    first, second = _views(source, 500)
    boxes, fits = _tries(source, 1, 500, 200)
    good = fits & (_iou(boxes, first[:, None]) > 0.2)
    assert good.any(axis=1).all()
    taken = good.argmax(axis=1)
    np.testing.assert_array_equal(second, boxes[np.arange(500), taken])
    assert (taken > fits.argmax(axis=1)).any()  # some fitted and did not overlap


def test_statistics_of_the_specification() -> None:
    """mgc.md sections 4.2 and 5, on 640 x 480: draws that fit until one overlaps, and the IoU of the two crops."""
    source = (480, 640)
    first, second = _views(source)
    iou = _iou(first, second)
    assert iou.min() > 0.2
    assert float(iou.mean()) == pytest.approx(0.49, abs=0.01)
    assert np.quantile(iou, [0.05, 0.95]) == pytest.approx([0.25, 0.78], abs=0.012)
    boxes, fits = _tries(source, 1, COUNT, 40)
    taken = (boxes == second[:, None]).all(axis=-1).argmax(axis=1)
    draws = np.where(np.arange(40) <= taken[:, None], fits, False).sum(axis=1)
    assert 1.05 < draws.mean() < 1.1


def test_the_minimum_holds_and_matters() -> None:
    first, plain = _views((28, 28), 1000, ANCHOR)
    share = (_iou(first, plain) <= 0.6).mean()
    assert share > 0.5
    for minimum in (0.0, 0.4, 0.6):
        recipe = Recipe.from_mapping({**CROP, "overlap": {"minimum": minimum}})
        assert _iou(*_views((28, 28), 1000, recipe)).min() > minimum


def test_a_bound_is_exceeded_not_met() -> None:
    """Boxes whose IoU is exactly a fifth, 20 x 20 and 20 x 28 that share 8 columns: a minimum of 0.2 refuses them."""
    one, other = torch.tensor([0, 0, 20, 20]), torch.tensor([0, 12, 20, 28])
    assert _iou(one.numpy(), other.numpy()) == 0.2
    assert not _overlap_above(0.2, one, other)
    assert _overlap_above(0.1999, one, other)


@pytest.mark.parametrize("source", [(10, 100), (100, 10), (28, 280)])
def test_where_no_crop_can_fit_the_whole_image_is_taken(source: tuple[int, int]) -> None:
    first, second = _views(source, 40)
    assert second.tolist() == [[0, 0, *source]] * 40
    assert (_iou(first, second) < 0.2).all()


def test_where_no_crop_can_overlap_enough_the_whole_image_is_taken() -> None:
    recipe = Recipe.from_mapping({**CROP, "scale": [0.2, 0.3], "overlap": {"minimum": 0.9}})
    first = torch.tensor([[0, 0, 28, 28]]).expand(30, 4)
    drawn = draw(recipe, seed=0, epoch=0, indices=torch.arange(30), view=1, source=(28, 28), first=first)
    assert drawn.box.tolist() == [[0, 0, 28, 28]] * 30


def test_a_long_image_takes_many_tries_but_not_the_whole() -> None:
    """At 5 to 1 crops fit seldom: later rounds serve, and the minimum still holds."""
    source = (40, 200)
    first, second = _views(source, 400)
    whole = (second == [0, 0, *source]).all(axis=1)
    boxes, fits = _tries(source, 1, 400, 1000)
    good = fits & (_iou(boxes, first[:, None]) > 0.2)
    np.testing.assert_array_equal(whole, ~good.any(axis=1))
    assert (_iou(first, second)[~whole] > 0.2).all()
    taken = good.argmax(axis=1)[~whole]
    assert ((taken >= 10) & (taken < 100)).any()
    assert (taken >= 100).any()


def test_samples_do_not_touch_each_other() -> None:
    sizes = torch.tensor([[28, 28], [480, 640], [10, 100], [40, 200], [100, 10]]).repeat(8, 1)
    _, together = _views(sizes, 40)
    for row, size in enumerate(sizes.tolist()):
        views = draw_views([ANCHOR, OVERLAPPING], torch.tensor([row]), seed=2, epoch=3, source=tuple(size))
        assert views[1].box[0].tolist() == together[row].tolist()


def test_the_rest_of_the_view_is_drawn_as_without_overlap() -> None:
    plain, overlapping = (
        draw_views([ANCHOR, it], torch.arange(9), seed=0, epoch=0, source=(28, 28))[1] for it in (ANCHOR, OVERLAPPING)
    )
    assert torch.equal(plain.flip, overlapping.flip)


def test_the_first_view_cannot_overlap_itself() -> None:
    with pytest.raises(UserError, match=r"^augmentation: the first view has a recipe with 'overlap'.*first view$"):
        draw_views([OVERLAPPING, ANCHOR], torch.arange(3), seed=0, epoch=0, source=(28, 28))


# --- erased boxes


def _erased(count: int, size: int = 32, **changes: Any) -> Tensor:
    recipe = Recipe.from_mapping({**CROP, "size": size, "erasing": {**ERASING, **changes}})
    drawn = draw(recipe, seed=1, epoch=0, indices=torch.arange(count), view=0, source=(28, 28))
    assert drawn.erasing is not None
    return drawn.erasing.box


def test_erased_boxes_follow_their_law() -> None:
    box = _erased(20000, 224).double()
    top, left, height, width = box.unbind(1)
    done = height > 0
    assert float(done.double().mean()) == pytest.approx(0.25, abs=0.012)
    assert (box[~done] == 0).all()
    top, left, height, width = (part[done] for part in (top, left, height, width))
    assert ((top >= 0) & (left >= 0) & (top + height <= 224) & (left + width <= 224)).all()
    share, ratio = height * width / 224**2, height / width
    assert 0.018 < share.min() < 0.024
    assert 0.32 < share.max() < 0.34
    assert float(share.mean()) == pytest.approx(0.175, abs=0.005)
    assert 0.29 < ratio.min() < 0.31
    assert 3.2 < ratio.max() < 3.4
    assert float(ratio.log().mean()) == pytest.approx((math.log(0.3) + math.log(3.3)) / 2, abs=0.03)
    room = 224 - height
    assert float((top / room)[room > 20].mean()) == pytest.approx(0.5, abs=0.02)
    assert (top + height == 224).any()
    assert (left + width == 224).any()


def test_tall_boxes_come_from_large_ratios_and_none_is_as_large_as_the_view() -> None:
    box = _erased(500, probability=1.0, ratio=[3.0, 3.3])
    assert (box[:, 2] > 2 * box[:, 3]).all()
    for ratio in (4.0, 0.25):  # one side of 16, the other of 32: as long as the view
        assert _erased(50, probability=1.0, area=[0.25, 0.25], ratio=[ratio, ratio]).tolist() == [[0, 0, 0, 0]] * 50
        assert (_erased(50, size=31, probability=1.0, area=[0.2, 0.2], ratio=[ratio, ratio])[:, 2:] > 0).all()
