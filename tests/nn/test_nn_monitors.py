"""Monitors on representations whose numbers are known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from polygrain.nn.monitors import alignment, effective_rank, spread, uniformity


def sphere(rows: int, width: int) -> Tensor:
    return torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_alignment() -> None:
    z = sphere(6, 4)
    assert float(alignment(z, z * 3)) == pytest.approx(0.0, abs=1e-15)
    assert float(alignment(z, -z)) == pytest.approx(4.0)
    assert float(alignment(torch.eye(2), torch.eye(2).flip(0))) == pytest.approx(2.0)


def test_uniformity_against_pairs() -> None:
    z = sphere(7, 3)
    unit = z.numpy() / np.linalg.norm(z.numpy(), axis=1, keepdims=True)
    pairs = [math.exp(-2 * ((unit[i] - unit[j]) ** 2).sum()) for i in range(7) for j in range(7) if i != j]
    assert float(uniformity(z)) == pytest.approx(math.log(np.mean(pairs)), rel=1e-12)


def test_collapse() -> None:
    z = torch.ones(5, 4, dtype=torch.float64)
    assert float(uniformity(z)) == pytest.approx(0.0, abs=1e-12)
    assert float(spread(z)) == 0.0
    assert float(effective_rank(z)) == 0.0


def test_spread_is_one_on_a_filled_sphere() -> None:
    assert float(spread(sphere(4000, 16))) == pytest.approx(1.0, abs=0.01)


def test_effective_rank_counts_dimensions() -> None:
    z = sphere(4000, 16)
    assert float(effective_rank(z)) == pytest.approx(16, abs=0.1)
    assert float(effective_rank(torch.cat([z[:, :3], torch.zeros(4000, 13)], dim=1))) == pytest.approx(3, abs=0.02)
    line = torch.stack([torch.ones(50), torch.linspace(-1e-3, 1e-3, 50)], dim=1).double()
    assert float(effective_rank(line)) == pytest.approx(1.0, abs=1e-5)


def test_monitors_carry_no_gradient() -> None:
    z = sphere(5, 4).requires_grad_()
    assert not any(value.requires_grad for value in (alignment(z, z + 1), uniformity(z), spread(z), effective_rank(z)))
