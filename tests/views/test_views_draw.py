"""Draws are pure functions of their counters, follow the stated laws, and never change by accident."""

import math
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from polygrain.nn.random import hash64, uniform
from polygrain.views.draw import Parameters, draw
from polygrain.views.recipe import Recipe

FULL: dict[str, Any] = {
    "size": 32,
    "scale": [0.2, 1.0],
    "ratio": [0.75, 1.3333333333333333],
    "flip": 0.5,
    "grey": 0.2,
    "jitter": {"probability": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1},
    "blur": {"probability": 0.5, "sigma": [0.1, 2.0]},
    "solarise": {"probability": 0.2, "threshold": 0.5},
}

# torchvision's law, quantiles 0.1, 0.5, 0.9 of the area's share after rounding, of 200,000 scalar simulations at 224 px
SHARE_QUANTILES = [0.268, 0.536, 0.813]

GOLDEN_BOXES = [[6, 10, 18, 15], [5, 1, 18, 24], [6, 3, 22, 19], [5, 0, 22, 18]]
GOLDEN_FLIPS = [False, False, False, False, False, False, False, False]
GOLDEN_ORDERS = [[0, 2, 1, 3], [1, 2, 0, 3]]
GOLDEN_FACTORS = [0.727506, 0.772652, 0.804117, 0.003808]


def _draw(count: int = 256, mapping: dict[str, Any] = FULL, **changes: Any) -> Parameters:
    counters = {"seed": 0, "epoch": 0, "view": 0, "source": (28, 28), "indices": torch.arange(count)} | changes
    return draw(Recipe.from_mapping(mapping), **counters)


def _tensors(value: Any) -> list[Tensor]:
    if is_dataclass(value):
        return [tensor for field in fields(value) for tensor in _tensors(getattr(value, field.name))]
    return [] if value is None else [value]


def test_golden_boxes() -> None:
    drawn = _draw(8)
    assert drawn.box[:4].tolist() == GOLDEN_BOXES
    assert drawn.flip.tolist() == GOLDEN_FLIPS
    assert drawn.jitter is not None
    assert drawn.jitter.order[:2].tolist() == GOLDEN_ORDERS
    torch.testing.assert_close(drawn.jitter.factors[0], torch.tensor(GOLDEN_FACTORS), atol=1e-6, rtol=0)


def test_a_sample_is_drawn_alike_in_any_batch() -> None:
    whole = _draw(64)
    rows = torch.tensor([63, 0, 17, 17, 5])
    for part, alone in zip(_tensors(whole), _tensors(_draw(indices=rows)), strict=True):
        assert torch.equal(part[rows], alone)


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"view": 1}, {"indices": torch.arange(256) + 256}])
def test_each_counter_changes_every_decision(change: dict[str, Any]) -> None:
    for one, other in zip(_tensors(_draw()), _tensors(_draw(**change)), strict=True):
        assert not torch.equal(one, other)


def test_decisions_are_independent_of_each_other() -> None:
    drawn = _draw(20000)
    assert drawn.jitter is not None
    assert drawn.grey is not None
    assert drawn.sigma is not None
    assert drawn.solarise is not None
    parts = [*drawn.box.T, drawn.flip, drawn.jitter.mask, *drawn.jitter.factors.T, drawn.grey, drawn.sigma > 0]
    parts += [drawn.solarise, _draw(20000, view=1).flip, _draw(20000, view=1).box[:, 2]]
    correlation = torch.corrcoef(torch.stack([part.double() for part in parts])).fill_diagonal_(0.0)
    correlation[:4, :4] = 0.0  # height and width share the area and bound the place
    assert correlation.abs().max() < 4 / math.sqrt(20000) + 0.01


def test_crops_follow_torchvisions_law() -> None:
    box = _draw(20000, source=(224, 224)).box.double()
    top, left, height, width = box.unbind(1)
    share, ratio = height * width / 224**2, width / height
    assert ((top >= 0) & (top + height <= 224) & (left >= 0) & (left + width <= 224)).all()
    assert share.min() > 0.195
    assert share.max() <= 1.0
    assert 0.73 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 1.36
    # the same law by an independent scalar simulation
    assert _quantiles(share) == pytest.approx(SHARE_QUANTILES, abs=0.012)
    assert float(ratio.log().mean()) == pytest.approx(0.0, abs=0.006)
    room_down = 224 - height
    place = (top / room_down)[room_down > 20]
    assert float(place.mean()) == pytest.approx(0.5, abs=0.01)
    assert place.min() == 0.0
    assert place.max() == 1.0


@pytest.mark.parametrize("source", [(28, 28), (20, 33), (64, 48)])
def test_boxes_are_those_of_the_scalar_law_on_the_same_draws(source: tuple[int, int]) -> None:
    """torchvision's own loop, written with Python numbers, fed with our uniform draws."""
    height, width = source
    boxes = _draw(120, {**FULL, "scale": [0.3, 1.0]}, source=source).box.tolist()
    later = 0
    for index, box in enumerate(boxes):
        key = hash64(0, "view", 0, 0, torch.tensor(index))
        for attempt in range(10):
            area, ratio, down, right = (
                float(uniform(hash64(key, "crop", torch.tensor(attempt)), torch.tensor(k))) for k in range(4)
            )
            target = height * width * (0.3 + 0.7 * area)
            aspect = math.exp(math.log(0.75) + ratio * (math.log(4 / 3) - math.log(0.75)))
            w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if 0 < w <= width and 0 < h <= height:
                assert box == [int(down * (height - h + 1)), int(right * (width - w + 1)), h, w]
                later += attempt > 0
                break
    assert later > 4


def test_source_that_no_try_fits_gets_the_central_crop() -> None:
    wide = _draw(8, {**FULL, "scale": [1.0, 1.0]}, source=(10, 100)).box
    assert wide.tolist() == [[0, 43, 10, 13]] * 8
    tall = _draw(8, {**FULL, "scale": [1.0, 1.0]}, source=(100, 10)).box
    assert tall.tolist() == [[43, 0, 13, 10]] * 8
    whole = _draw(8, {**FULL, "scale": [1.0, 1.0], "ratio": [0.5, 0.5000001]}, source=(28, 28)).box
    assert whole.tolist() == [[0, 7, 28, 14]] * 8


def test_later_tries_serve_where_the_first_does_not_fit() -> None:
    """Large crops often miss a 28 px source at the first try; few samples should need the fallback."""
    box = _draw(4000, {**FULL, "scale": [0.8, 1.0]}).box
    assert (box[:, 2:] <= 28).all()
    whole = (box[:, 2] == 28) & (box[:, 3] == 28)
    assert whole.double().mean() < 0.08


def test_shares_and_ranges_of_the_other_decisions() -> None:
    drawn = _draw(20000)
    assert drawn.jitter is not None
    assert drawn.grey is not None
    assert drawn.sigma is not None
    assert drawn.solarise is not None
    for part, share in ((drawn.flip, 0.5), (drawn.jitter.mask, 0.8), (drawn.grey, 0.2), (drawn.solarise, 0.2)):
        assert float(part.double().mean()) == pytest.approx(share, abs=0.015)
    blurred = drawn.sigma[drawn.sigma > 0]
    assert len(blurred) / 20000 == pytest.approx(0.5, abs=0.015)
    assert 0.1 <= blurred.min() < 0.11
    assert 1.99 < blurred.max() <= 2.0
    for column, (low, high) in enumerate([(0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1)]):
        factor = drawn.jitter.factors[:, column]
        assert float(factor.min()) == pytest.approx(low, abs=2e-3)
        assert float(factor.max()) == pytest.approx(high, abs=2e-3)
        assert float(factor.mean()) == pytest.approx((low + high) / 2, abs=6e-3)
    assert torch.equal(drawn.jitter.order.sort(dim=1).values, torch.arange(4).expand(20000, 4))
    codes = (drawn.jitter.order * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = torch.unique(codes, return_counts=True)[1]
    assert len(counts) == 24
    assert (counts - 20000 / 24).abs().max() < 5 * math.sqrt(20000 / 24)


def test_parts_of_probability_zero_are_not_drawn_and_change_nothing_else() -> None:
    off = {**FULL, "grey": 0.0}
    for part in ("jitter", "blur", "solarise"):
        off[part] = {**FULL[part], "probability": 0.0}
    drawn, full = _draw(mapping=off), _draw()
    assert (drawn.jitter, drawn.grey, drawn.sigma, drawn.solarise) == (None, None, None, None)
    assert torch.equal(drawn.box, full.box)
    assert torch.equal(drawn.flip, full.flip)


def _quantiles(values: Tensor) -> list[float]:
    return [float(quantile) for quantile in torch.quantile(values, torch.tensor([0.1, 0.5, 0.9], dtype=values.dtype))]


def test_sizes_of_the_images_one_by_one_are_the_same_draws() -> None:
    """One pair for all, the same pair for each, and every image alone: equal bits."""
    for mapping in (FULL, {**FULL, "scale": [0.9, 1.0]}, {**FULL, "scale": [1.0, 1.0], "ratio": [0.5, 0.51]}):
        for source in ((28, 28), (500, 333)):
            one = _draw(200, mapping, source=source)
            each = _draw(200, mapping, source=torch.tensor(source).expand(200, 2))
            for part, other in zip(_tensors(one), _tensors(each), strict=True):
                assert part.dtype == other.dtype
                assert torch.equal(part, other)


def test_images_of_different_sizes_do_not_touch_each_other() -> None:
    sizes = torch.tensor([[28, 28], [375, 500], [500, 333], [10, 100], [100, 10], [1, 1], [224, 224]]).repeat(20, 1)
    for mapping in (FULL, {**FULL, "scale": [1.0, 1.0]}):
        drawn = _draw(len(sizes), mapping, source=sizes)
        for index, size in enumerate(sizes.tolist()):
            alone = _draw(mapping=mapping, source=tuple(size), indices=torch.tensor([index]))
            for part, other in zip(_tensors(drawn), _tensors(alone), strict=True):
                assert torch.equal(part[index : index + 1], other)
        top, left, height, width = drawn.box.unbind(1)
        assert ((top >= 0) & (top + height <= sizes[:, 0]) & (left >= 0) & (left + width <= sizes[:, 1])).all()
        assert ((height > 0) & (width > 0)).all()
