"""Clipping against the formula factor = maximum / (norm + 1e-6)."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from polygrain.nn.clip import clip_each, clip_global


def parameters() -> list[nn.Parameter]:
    values = [[3.0, 4.0], [0.0, 12.0], [0.01, 0.0]]
    made = [nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in values]
    for parameter, value in zip(made, values, strict=True):
        parameter.grad = torch.tensor(value, dtype=torch.float64)
    return [*made, nn.Parameter(torch.zeros(3))]  # the last one has no gradient


def gradients(made: list[nn.Parameter]) -> np.ndarray:
    return np.concatenate([p.grad.numpy() for p in made if p.grad is not None])


def test_global_norm() -> None:
    made = parameters()
    before, norm = gradients(made), math.sqrt(25 + 144 + 0.0001)
    assert float(clip_global(made, 1.0)) == pytest.approx(norm, rel=1e-15)
    np.testing.assert_allclose(gradients(made), before / (norm + 1e-6), rtol=1e-14)


def test_each_tensor() -> None:
    made = parameters()
    assert float(clip_each(made, 3.0)) == pytest.approx(math.sqrt(169.0001), rel=1e-15)
    expected = [9 / (5 + 1e-6), 12 / (5 + 1e-6), 0.0, 36 / (12 + 1e-6), 0.01, 0.0]
    np.testing.assert_allclose(gradients(made), expected, rtol=1e-14)


@pytest.mark.parametrize("clip", [clip_global, clip_each])
@pytest.mark.parametrize("maximum", [13.1, math.inf])
def test_short_gradients_keep_their_bits(clip, maximum: float) -> None:  # type: ignore[no-untyped-def]
    made = parameters()
    before = gradients(made)
    clip(made, maximum)
    np.testing.assert_array_equal(gradients(made), before)


@pytest.mark.parametrize("clip", [clip_global, clip_each])
def test_no_gradient_at_all(clip) -> None:  # type: ignore[no-untyped-def]
    assert float(clip([nn.Parameter(torch.ones(2))], 1.0)) == 0.0


@pytest.mark.parametrize("clip", [clip_global, clip_each])
def test_a_non_finite_gradient_shows_in_the_norm(clip) -> None:  # type: ignore[no-untyped-def]
    made = parameters()
    made[0].grad = torch.tensor([math.nan, 1.0], dtype=torch.float64)
    assert math.isnan(float(clip(made, 1.0)))
