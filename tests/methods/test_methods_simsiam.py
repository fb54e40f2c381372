"""SimSiam: value and gradient against numpy, where the gradient stops, groups of parameters, collapse."""

from typing import Any

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
    unit,
)

from polygrain.methods.simsiam import SimSiam
from polygrain.views.batch import Batch

VALUES = {
    "layers": 3, "hidden": 7, "embedding": 4, "predictor_hidden": 3, "predictor": True, "stop_gradient": True,
    "predictor_constant": True, "decay_all": False,
}  # fmt: skip


def method(**changes: Any) -> Any:
    return built(SimSiam, **{**VALUES, **changes})


class Oracle:
    """Minus the mean cosine, both orders, half each; without gradient the projections stay those of the first call."""

    def __init__(self, stop: bool) -> None:
        self.stop, self.first = stop, None

    def __call__(self, net: Any, given: Batch) -> float:
        z = [head(net.projector, pooled(net.backbone, view)) for view in given.views]
        p = [unit(head(net.predictor, rows)) for rows in z]
        if self.first is None or not self.stop:
            self.first = [unit(rows) for rows in z]
        return float(-sum((p[a] * self.first[b]).sum(1).mean() for a, b in ((0, 1), (1, 0))) / 2)


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("predictor", [True, False])
def test_value_and_gradient_against_numpy(predictor: bool, stop: bool) -> None:
    check_value_and_gradient(method(predictor=predictor, stop_gradient=stop), batch(), Oracle(stop))


def test_each_view_passes_alone() -> None:
    net = method()
    net(batch(), CLOCK)
    assert net.backbone.calls == [IMAGES, IMAGES]
    assert net.predictor[1].num_batches_tracked == 2
    assert net.views(CLOCK) == ("global", "global")


def test_the_projector_ends_with_a_plain_batch_norm() -> None:
    net = method()
    *_, linear, norm = net.projector
    assert (linear.bias, norm.affine) == (None, False)
    assert isinstance(net.predictor[-1], nn.Linear)


def test_the_predictor_keeps_its_rate_and_all_may_be_decayed() -> None:
    def told(**changes: Any) -> dict[str, tuple[int, bool, bool]]:
        groups = method(**changes).parameter_groups()
        return {group["name"]: (len(group["params"]), group["decay"], group["lr_constant"]) for group in groups}

    assert told() == {
        "network_decayed": (4, True, False),
        "network_not_decayed": (7, False, False),
        "predictor_decayed": (2, True, True),
        "predictor_not_decayed": (3, False, True),
    }
    assert told(decay_all=True, predictor_constant=False) == {
        "network_decayed": (11, True, False),
        "predictor_decayed": (5, True, False),
    }
    assert told(decay_all=True, predictor=False) == {"network_decayed": (11, True, False)}


def test_collapse_gives_minus_one_and_spread_zero() -> None:
    net = method(layers=1)
    net.predictor[-1].weight.data.zero_()
    net.projector[-1] = nn.Identity()
    net.projector[0].weight.data.zero_()
    net.projector[0].bias = nn.Parameter(torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64))
    net.predictor[-1].bias.data = 2 * net.projector[0].bias.data
    losses, monitors = net(batch(), CLOCK)
    assert losses["instance"].item() == pytest.approx(-1.0, abs=1e-14)
    assert monitors["spread"].item() == pytest.approx(0.0, abs=1e-12)


def test_order_and_labels_do_not_matter() -> None:
    check_order_and_labels_do_not_matter(method)
    loss, gradient = loss_and_gradient(method(), batch())
    other_loss, other_gradient = loss_and_gradient(method(), swapped(batch()))
    torch.testing.assert_close(other_loss, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(other_gradient, gradient, rtol=0, atol=1e-12)
