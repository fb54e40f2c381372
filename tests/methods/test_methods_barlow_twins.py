"""Barlow Twins: value and gradient against numpy, the closed form of the gradient, invariances, groups, collapse."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from toy_method import (
    CLOCK,
    IMAGES,
    batch,
    built,
    check_order_and_labels_do_not_matter,
    check_value_and_gradient,
    head,
    loss_and_gradient,
    pooled,
    swapped,
)

from polygrain.methods.barlow_twins import BarlowTwins, redundancy
from polygrain.views.batch import Batch

VALUES = {
    "layers": 3, "hidden": 7, "embedding": 4, "off_diagonal": 0.3, "free_rate": 0.024, "asymmetric": False,
}  # fmt: skip


def method(**changes: Any) -> Any:
    return built(BarlowTwins, **{**VALUES, **changes})


def correlation(z_1: np.ndarray, z_2: np.ndarray) -> np.ndarray:
    """Of every number of one view with every number of the other, entry by entry."""
    width = z_1.shape[1]
    return np.array([[(z_1[:, d] * z_2[:, e]).mean() for e in range(width)] for d in range(width)])


def from_correlation(c: np.ndarray, weight: float) -> float:
    width = range(len(c))
    return float(
        sum((1 - c[d, d]) ** 2 for d in width) + weight * sum(c[d, e] ** 2 for d in width for e in width if d != e)
    )


def oracle(net: Any, given: Batch) -> float:
    z = [head(net.projector, pooled(net.backbone, view)) for view in given.views]
    return from_correlation(correlation(*z), net.off_diagonal)


def rows(seed: int, images: int = 8, width: int = 5) -> torch.Tensor:
    return torch.randn(images, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("layers", "weight"), [(3, 0.3), (2, 0.005)])
def test_value_and_gradient_against_numpy(layers: int, weight: float) -> None:
    check_value_and_gradient(method(layers=layers, off_diagonal=weight), batch(), oracle)


def test_the_gradient_of_the_loss_in_closed_form() -> None:
    """dL/dC is 2 (C - I) on the diagonal and 2 a C beside it; dL/dZ_v = Z_w (dL/dC)^T / B."""
    z_1, z_2 = rows(0).requires_grad_(), rows(1)
    redundancy(z_1, z_2, 0.1).backward()
    c = correlation(z_1.detach().numpy(), z_2.numpy())
    inner = 2 * 0.1 * c
    np.fill_diagonal(inner, 2 * (np.diagonal(c) - 1))
    np.testing.assert_allclose(z_1.grad.numpy(), z_2.numpy() @ inner.T / 8, rtol=1e-11)


def test_embeddings_that_are_scaled_and_shifted_are_the_same() -> None:
    """The published cases of lightly: batch norm of both views, and no effect of 2 x + 4; equal white views give 0."""
    norm = nn.BatchNorm1d(5, affine=False, eps=1e-30).double()
    x = rows(2)
    once, moved = redundancy(norm(x), norm(x), 0.005), redundancy(norm(x), norm(2 * x + 4), 0.005)
    assert moved.item() == pytest.approx(once.item(), rel=1e-12)
    white = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    assert redundancy(white, white, 0.005).item() == 0.0
    assert redundancy(white, -white, 0.005).item() == 8.0
    assert redundancy(white, white.flip(1), 0.005).item() == pytest.approx(2 + 0.005 * 2)


def test_collapse_gives_the_width() -> None:
    net = method()
    net.projector[-2].weight.data.zero_()
    losses, monitors = net(batch(), CLOCK)
    assert losses["instance"].item() == pytest.approx(4.0, abs=1e-12)
    assert monitors["spread"].item() == pytest.approx(0.0, abs=1e-12)


def test_each_view_passes_alone_and_is_normalised_at_the_end() -> None:
    net = method()
    net(batch(), CLOCK)
    assert net.backbone.calls == [IMAGES, IMAGES]
    *_, linear, norm = net.projector
    assert (linear.bias, norm.affine, int(norm.num_batches_tracked)) == (None, False, 2)
    assert net.views(CLOCK) == ("global", "global")
    assert method(asymmetric=True).views(CLOCK) == ("global_a", "global_b")


def test_biases_and_norms_have_their_own_rate() -> None:
    groups = [(g["name"], len(g["params"]), g["decay"], g["lr_scale"]) for g in method().parameter_groups()]
    assert groups == [("decayed", 4, True, 1.0), ("not_decayed", 7, False, 0.024)]


def test_order_and_labels_do_not_matter() -> None:
    check_order_and_labels_do_not_matter(method)
    loss, gradient = loss_and_gradient(method(), batch())
    other_loss, other_gradient = loss_and_gradient(method(), swapped(batch()))
    torch.testing.assert_close(other_loss, loss, rtol=1e-11, atol=0)
    torch.testing.assert_close(other_gradient, gradient, rtol=0, atol=1e-10)
