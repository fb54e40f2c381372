"""MoCo v3: value and gradient against numpy, the key network's updates, the frozen first layer, collapse."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from toy_method import (
    CLOCK,
    IMAGES,
    Tiny,
    batch,
    built,
    check_order_and_labels_do_not_matter,
    check_value_and_gradient,
    head,
    loss_and_gradient,
    moved_apart,
    pooled,
    swapped,
    unit,
)

from polygrain.methods.moco_v3 import MoCoV3
from polygrain.nn.clock import Clock
from polygrain.provenance.errors import UserError
from polygrain.views.batch import Batch

VALUES = {
    "layers": 3, "hidden": 7, "embedding": 4, "temperature": 0.3, "momentum": 0.9, "momentum_end": 1.0,
    "predictor": True, "frozen_embedding": False, "asymmetric": False,
}  # fmt: skip


def method(**changes: Any) -> Any:
    net = built(MoCoV3, **{**VALUES, **changes})
    moved_apart(net, "key_backbone", "key_projector")
    return net


def oracle(net: Any, given: Batch) -> float:
    """Log shares of each query's own key among all keys of the other view, times 2 t, summed over both orders."""
    q = [unit(head(net.predictor, head(net.projector, pooled(net.backbone, view)))) for view in given.views]
    k = [unit(head(net.key_projector, pooled(net.key_backbone, view))) for view in given.views]
    total = 0.0
    for a, b in ((0, 1), (1, 0)):
        for i in range(IMAGES):
            shares = np.exp(k[b] @ q[a][i] / net.temperature)
            total -= 2 * net.temperature * np.log(shares[i] / shares.sum()) / IMAGES
    return float(total)


@pytest.mark.parametrize(("temperature", "predictor", "layers"), [(0.3, True, 3), (1.0, True, 2), (0.2, False, 2)])
def test_value_and_gradient_against_numpy(temperature: float, predictor: bool, layers: int) -> None:
    check_value_and_gradient(method(temperature=temperature, predictor=predictor, layers=layers), batch(), oracle)


@pytest.mark.parametrize(("at", "expected"), [(0, 0.9), (5, 0.95), (9, 1 - 0.1 * (math.cos(math.pi * 0.9) + 1) / 2)])
def test_the_key_network_moves_before_the_step_with_its_momentum(at: int, expected: float) -> None:
    net = method()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.before_step(Clock(seed=0, step=at, steps=10, steps_per_epoch=5))
    for name, value in net.state_dict().items():
        wanted = before[name]
        if name.startswith("key_") and name in dict(net.named_parameters()):
            wanted = expected * wanted + (1 - expected) * before[name.replace("key_", "", 1)]
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-14)


def test_keys_take_no_gradient_and_each_network_sees_each_view_alone() -> None:
    net = method()
    loss_and_gradient(net, batch())
    assert all(p.grad is None for name, p in net.named_parameters() if name.startswith("key_"))
    assert net.backbone.calls == net.key_backbone.calls == [IMAGES, IMAGES]
    assert [net.projector[-1].affine, net.predictor[-1].affine] == [False, False]
    assert net.views(CLOCK) == ("global", "global")
    assert method(asymmetric=True).views(CLOCK) == ("global_a", "global_b")


def test_a_frozen_first_layer_is_not_trained_and_the_rest_is() -> None:
    net = method(frozen_embedding=True)
    _, gradient = loss_and_gradient(net, batch())
    assert gradient.any()
    names = {name for name, p in net.named_parameters() if p.grad is not None}
    assert not {"backbone.stem.weight", "backbone.stem.bias"} & names
    assert "backbone.stem_norm.weight" in names
    counts = [sum(len(group["params"]) for group in one.parameter_groups()) for one in (method(), net)]
    assert counts[0] - counts[1] == 2
    stemless = Tiny()
    stemless.stem = None
    with pytest.raises(UserError, match="backbone tiny has no known first layer; set it to false"):
        MoCoV3(stemless, **{**VALUES, "frozen_embedding": True})


@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
def test_collapse_gives_four_t_ln_of_the_batch(temperature: float) -> None:
    net = method(temperature=temperature)
    net.predictor[-2].weight.data.zero_()
    losses, _ = net(batch(), CLOCK)
    assert losses["instance"].item() == pytest.approx(4 * temperature * math.log(IMAGES), rel=1e-12)


def test_order_and_labels_do_not_matter() -> None:
    check_order_and_labels_do_not_matter(method)
    loss, gradient = loss_and_gradient(method(), batch())
    other_loss, other_gradient = loss_and_gradient(method(), swapped(batch()))
    torch.testing.assert_close(other_loss, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(other_gradient, gradient, rtol=0, atol=1e-12)
