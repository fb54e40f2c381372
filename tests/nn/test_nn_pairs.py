"""Losses of crops with views against plain loops, their gradients and limits; which pairs are averaged."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from polygrain.nn.pairs import cross_entropies, info_nce, over_pairs


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def test_losses_against_loops_and_when_collapsed() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, noise = (
        unit(torch.randn(*s, dtype=torch.float64, generator=generator)) for s in ((3, 5, 4), (2, 5, 4), (7, 4))
    )
    logits, share = torch.randn(3, 5, 6, dtype=torch.float64, generator=generator), torch.rand(2, 5, 6).double()
    nce, cross = np.zeros((2, 3)), np.zeros((2, 3))
    for t in range(2):
        for s in range(3):
            for b in range(5):
                own = np.exp(q[s, b].numpy() @ k[t, b].numpy() / 0.3)
                nce[t, s] -= np.log(own / (own + np.exp(noise.numpy() @ q[s, b].numpy() / 0.3).sum())) / 5
                z = np.exp(logits[s, b].numpy() / 0.3)
                cross[t, s] -= share[t, b].numpy() @ np.log(z / z.sum()) / 5
    np.testing.assert_allclose(info_nce(q, k, noise, 0.3), nce, rtol=1e-12)
    np.testing.assert_allclose(cross_entropies(logits, share, 0.3), cross, rtol=1e-12)
    live = q.requires_grad_(), logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: info_nce(a, k, noise, 0.3).sum() + cross_entropies(b, share, 0.3).sum(), live
    )
    same = unit(torch.ones(4, 5, 4, dtype=torch.float64))
    torch.testing.assert_close(
        info_nce(same, same[:2], same[0, 0].expand(7, 4), 0.2), torch.full((2, 4), math.log(8.0)).double()
    )
    even = torch.full((2, 5, 6), 1 / 6, dtype=torch.float64)
    torch.testing.assert_close(cross_entropies(0 * logits, even, 0.1), torch.full((2, 3), math.log(6.0)).double())
    far = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)  # logits of 1000 and -1000 stay finite
    assert info_nce(far, -far, far[0], 1e-3).item() == pytest.approx(2000.0)
    assert info_nce(far, far, -far[0], 1e-3).item() == 0.0


def test_two_and_twenty_pairs() -> None:
    """Ten small crops: pairs of one index are left out; (1, 2) and (2, 1) weigh as much as the other 20 together."""
    losses = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)
    (weight,) = torch.autograd.grad(over_pairs(losses, "half"), losses)
    assert int((weight != 0).sum()) == 2 + 20
    assert weight[0, 0] == weight[1, 1] == 0
    torch.testing.assert_close(weight[[0, 1], [1, 0]], torch.full((2,), 0.25).double())
    torch.testing.assert_close(weight[:, 2:], torch.full((2, 10), 1 / 40).double())
    (flat,) = torch.autograd.grad(over_pairs(losses, "flat"), losses)
    torch.testing.assert_close(flat, (weight != 0).double() / 22)
    for pairs in ("half", "flat"):
        (none,) = torch.autograd.grad(over_pairs(losses[:, :2], pairs), losses)
        assert none[:, :2].tolist() == [[0.0, 0.5], [0.5, 0.0]]
