"""Parts of methods with two views: known cosines, who is decayed, sizes of queues, what the monitors are of."""

import numpy as np
import pytest
import torch
from torch import nn

from polygrain.nn.monitors import alignment, effective_rank, spread
from polygrain.nn.two_views import mean_cosine, pair_monitors, queue_rows, recipes, trained_groups
from polygrain.provenance.errors import UserError


def rows(seed: int, count: int = 8) -> torch.Tensor:
    return torch.randn(count, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_cosines_that_are_known() -> None:
    """Equal rows 1, whatever their length; opposite -1; orthogonal 0; both sides may be exchanged (lightly's case)."""
    x, y = rows(0), rows(1)
    across = y - (y * x).sum(1, keepdim=True) / (x * x).sum(1, keepdim=True) * x
    for other, expected in ((3 * x, 1.0), (-x, -1.0), (across, 0.0)):
        assert mean_cosine(x, other).item() == pytest.approx(expected, abs=1e-14)
    for count in range(1, 20):
        assert mean_cosine(rows(0, count), rows(1, count)).item() == mean_cosine(rows(1, count), rows(0, count)).item()
    a, b = x.numpy(), y.numpy()
    by_row = [a[i] @ b[i] / np.linalg.norm(a[i]) / np.linalg.norm(b[i]) for i in range(8)]
    assert mean_cosine(x, y).item() == pytest.approx(np.mean(by_row), rel=1e-12)


def test_gradient_of_the_cosine_in_closed_form_on_both_sides() -> None:
    """d cos(p, z) / dp = (unit(z) - cos unit(p)) / |p|, which is orthogonal to p."""
    p, z = rows(0).requires_grad_(), rows(1).requires_grad_()
    mean_cosine(p, z).backward()
    for one, other in ((p, z), (z, p)):
        a, b = (x.detach().numpy() / np.linalg.norm(x.detach().numpy(), axis=1, keepdims=True) for x in (one, other))
        cosine = (a * b).sum(1, keepdims=True)
        expected = (b - cosine * a) / np.linalg.norm(one.detach().numpy(), axis=1, keepdims=True) / 8
        np.testing.assert_allclose(one.grad.numpy(), expected, rtol=1e-10, atol=1e-15)


def test_all_or_only_matrices_are_decayed_and_frozen_ones_are_in_no_group() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    net[2].requires_grad_(False)
    told = [
        [(g["name"], len(g["params"]), g["decay"]) for g in trained_groups(net, decay_all=a)] for a in (False, True)
    ]
    assert told == [[("decayed", 1, True), ("not_decayed", 3, False)], [("decayed", 4, True)]]


def test_a_queue_has_rows_or_a_share_of_the_images() -> None:
    assert [queue_rows(q, images=1000, batch=64) for q in (0.256, 0.01, 64, 1000)] == [256, 64, 64, 1000]
    for wrong in (63, 1001):
        with pytest.raises(UserError, match=rf"queue: {wrong} rows, must be from 64 \(batch\) to 1000 \(images\)"):
            queue_rows(wrong, images=1000, batch=64)


def test_monitors_are_of_both_views_and_of_the_first() -> None:
    x, y = rows(0).requires_grad_(), rows(1)
    found = pair_monitors(x, y)
    assert found == {"alignment": alignment(x, y), "spread": spread(x), "rank": effective_rank(x)}
    assert not any(value.requires_grad for value in found.values())
    assert recipes(True) == ("global_a", "global_b")
    assert recipes(False) == ("global", "global")
