"""NT-Xent: numpy oracle of value and gradient, golden values, invariances, collapse."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from polygrain.nn.contrastive import nt_xent


def oracle(z: np.ndarray, temperature: float) -> tuple[float, np.ndarray]:
    """Loss of stacked rows [2B, D] and its gradient, from the written formula, float64."""
    rows = len(z)
    length = np.linalg.norm(z, axis=1, keepdims=True)
    unit = z / length
    partner = (np.arange(rows) + rows // 2) % rows
    loss, by_similarity = 0.0, np.zeros((rows, rows))
    for i in range(rows):
        others = [j for j in range(rows) if j != i]
        terms = {j: math.exp(unit[i] @ unit[j] / temperature) for j in others}
        total = sum(terms.values())
        loss -= math.log(terms[partner[i]] / total) / rows
        for j in others:
            by_similarity[i, j] = (terms[j] / total - (j == partner[i])) / temperature / rows
    by_unit = (by_similarity + by_similarity.T) @ unit
    return loss, (by_unit - (by_unit * unit).sum(1, keepdims=True) * unit) / length


def views(images: int = 5, width: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, images, width, dtype=torch.float64, generator=generator)
    return z[0].requires_grad_(), z[1].requires_grad_()


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_value_and_gradient(temperature: float) -> None:
    z_1, z_2 = views()
    loss = nt_xent(z_1, z_2, temperature)
    loss.backward()
    value, gradient = oracle(torch.cat([z_1, z_2]).detach().numpy(), temperature)
    assert loss.item() == pytest.approx(value, rel=1e-13)
    np.testing.assert_allclose(torch.cat([z_1.grad, z_2.grad]).numpy(), gradient, atol=1e-13)


def test_golden_of_wcl() -> None:
    def unit(*degrees: float) -> Tensor:
        angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    loss = nt_xent(unit(0, 8, 20, 95, 103, 200), unit(5, 60, 25, 90, 110, 205), 0.1)
    assert float(loss) == pytest.approx(1.429603, abs=5e-7)


def test_golden_of_mncl() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    assert float(nt_xent(eye, eye, 1.0)) == pytest.approx(math.log(math.e + 6) - 1, rel=1e-14)
    assert float(nt_xent(eye, eye, 1.0)) == pytest.approx(1.16542, abs=5e-6)
    p, targets = torch.eye(2).double(), torch.tensor([[0.8, 0.6], [0.0, 1.0]]).double()
    assert float(nt_xent(p, targets, 1.0)) == pytest.approx(0.75877, abs=5e-6)


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.3), views(3, 3))


@pytest.mark.parametrize("images", [1, 2, 8, 64])
def test_collapse(images: int) -> None:
    z = torch.ones(images, 3, dtype=torch.float64)
    assert float(nt_xent(z, z, 0.1)) == pytest.approx(math.log(2 * images - 1), abs=1e-12)


def test_invariances() -> None:
    z_1, z_2 = views()
    loss = nt_xent(z_1, z_2, 0.2)
    order = torch.tensor([3, 0, 4, 1, 2])
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    lengths = torch.tensor([0.1, 5.0, 1.0, 2.0, 30.0], dtype=torch.float64)[:, None]
    for other in (
        nt_xent(z_1[order], z_2[order], 0.2),
        nt_xent(z_2, z_1, 0.2),
        nt_xent(z_1 * lengths, z_2 * 7, 0.2),
        nt_xent(z_1 @ turn, z_2 @ turn, 0.2),
    ):
        torch.testing.assert_close(other, loss, rtol=1e-13, atol=0)


def test_the_pairing_and_the_temperature_matter() -> None:
    z_1, z_2 = (z.detach() for z in views())
    loss = nt_xent(z_1, z_2, 0.2)
    assert abs(float(nt_xent(z_1, z_2.roll(1, 0), 0.2) - loss)) > 0.001
    assert abs(float(nt_xent(z_1, z_2, 0.25) - loss)) > 0.01


def test_float32_survives_a_small_temperature() -> None:
    z_1, z_2 = (z.detach() for z in views())
    exact = nt_xent(z_1, z_2, 0.005)
    assert float(nt_xent(z_1.float(), z_2.float(), 0.005)) == pytest.approx(float(exact), rel=1e-4)
