"""BYOL: value and gradient against numpy, the target network's updates."""

import math
from typing import Any

import pytest
import torch
from toy_method import (
    CLOCK,
    IMAGES,
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

from polygrain.methods.byol import BYOL, METHOD
from polygrain.nn.clock import Clock
from polygrain.views.batch import Batch

VALUES = {"hidden": 7, "embedding": 4, "predictor": True, "momentum": 0.9, "momentum_end": 1.0, "asymmetric": False}


def method(**changes: Any) -> Any:
    net = built(BYOL, **{**VALUES, **changes})
    moved_apart(net, "target_backbone", "target_projector")
    return net


def oracle(net: Any, given: Batch) -> float:
    """Squared distances of unit rows, prediction of one view to target of the other, summed over both orders."""
    p = [head(net.predictor, head(net.projector, pooled(net.backbone, view))) for view in given.views]
    t = [head(net.target_projector, pooled(net.target_backbone, view)) for view in given.views]
    return float(sum(((unit(p[a]) - unit(t[b])) ** 2).sum(1).mean() for a, b in ((0, 1), (1, 0))))


@pytest.mark.parametrize("predictor", [True, False])
def test_value_and_gradient_against_numpy(predictor: bool) -> None:
    check_value_and_gradient(method(predictor=predictor), batch(), oracle)


def test_the_target_takes_no_gradient_and_is_not_trained() -> None:
    net = method()
    loss_and_gradient(net, batch())
    targets = [p for name, p in net.named_parameters() if name.startswith("target_")]
    assert targets
    assert all(p.grad is None and not p.requires_grad for p in targets)
    groups = net.parameter_groups()
    assert {group["name"]: len(group["params"]) for group in groups} == {"decayed": 5, "not_decayed": 7}


def test_each_network_sees_each_view_in_a_pass_of_its_own() -> None:
    net = method()
    net(batch(), CLOCK)
    assert net.backbone.calls == net.target_backbone.calls == [IMAGES, IMAGES]
    assert net.backbone.stem_norm.num_batches_tracked == net.target_projector[1].num_batches_tracked == 2
    assert net.views(CLOCK) == ("global", "global")
    assert method(asymmetric=True).views(CLOCK) == ("global_a", "global_b")


@pytest.mark.parametrize(("at", "expected"), [(0, 0.9), (5, 0.95), (9, 1 - 0.1 * (math.cos(math.pi * 0.9) + 1) / 2)])
def test_the_target_follows_with_the_momentum_of_the_step(at: int, expected: float) -> None:
    net = method()
    before = {name: value.clone() for name, value in net.named_parameters()}
    statistics = net.target_backbone.stem_norm.running_mean.clone()
    net.after_step(Clock(seed=0, step=at, steps=10, steps_per_epoch=5))
    for name, value in net.named_parameters():
        if name.startswith("target_"):
            online = before[name.removeprefix("target_")]
            torch.testing.assert_close(value, expected * before[name] + (1 - expected) * online, rtol=1e-12, atol=1e-14)
        else:
            assert torch.equal(value, before[name])
    assert torch.equal(net.target_backbone.stem_norm.running_mean, statistics)


def test_momentum_0_copies_and_1_keeps() -> None:
    copied, kept = method(momentum=0.0, momentum_end=0.0), method(momentum=1.0)
    before = kept.target_backbone.stem.weight.clone()
    for net in (copied, kept):
        net.after_step(CLOCK)
    assert torch.equal(copied.target_backbone.stem.weight, copied.backbone.stem.weight)
    assert torch.equal(kept.target_backbone.stem.weight, before)


def test_order_and_labels_do_not_matter() -> None:
    check_order_and_labels_do_not_matter(method)
    loss, _ = loss_and_gradient(method(), batch())
    other, _ = loss_and_gradient(method(), swapped(batch()))
    torch.testing.assert_close(other, loss, rtol=1e-12, atol=0)
    assert METHOD is BYOL
