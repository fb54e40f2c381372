"""MoCo v2: value and gradient against numpy, the queue and the key network that a step leaves, known values."""

import math
from typing import Any

import numpy as np
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
    unit,
)

from polygrain.methods.moco_v2 import MoCoV2
from polygrain.nn.pairs import info_nce
from polygrain.provenance.errors import UserError
from polygrain.views.batch import Batch

QUEUE = 15  # no multiple of the batch, so that a push crosses the end
VALUES = {
    "images": 30, "batch": IMAGES, "layers": 2, "hidden": 7, "embedding": 4, "temperature": 0.3, "queue": QUEUE,
    "momentum": 0.9, "decay_all": False,
}  # fmt: skip


def method(**changes: Any) -> Any:
    net = built(MoCoV2, **{**VALUES, **changes})
    moved_apart(net, "key_backbone", "key_projector")
    return net


def keys(net: Any, given: Batch) -> np.ndarray:
    return unit(head(net.key_projector, pooled(net.key_backbone, given.views[1])))


def oracle(net: Any, given: Batch) -> float:
    """Each query's own key among it and all rows of the queue, sum by sum."""
    q, k, queue = unit(head(net.projector, pooled(net.backbone, given.views[0]))), keys(net, given), net.queue.rows
    total = 0.0
    for i in range(len(q)):
        own = np.exp(q[i] @ k[i] / net.temperature)
        total -= np.log(own / (own + sum(np.exp(q[i] @ row / net.temperature) for row in queue.numpy()))) / len(q)
    return float(total)


@pytest.mark.parametrize(("layers", "temperature"), [(2, 0.3), (1, 0.07)])
def test_value_and_gradient_against_numpy(layers: int, temperature: float) -> None:
    check_value_and_gradient(method(layers=layers, temperature=temperature), batch(), oracle)


def test_keys_enter_the_queue_after_the_step_and_round_its_end() -> None:
    net, given = method(), batch()
    expected, start = net.queue.rows.numpy().copy(), net.queue.rows.clone()
    own = keys(net, given)
    for push in range(3):
        net(given, CLOCK)
        assert int(net.queue.pointer) == push * IMAGES
        net.after_step(CLOCK)
        expected[[(push * IMAGES + row) % QUEUE for row in range(IMAGES)]] = own
        np.testing.assert_allclose(net.queue.rows.numpy(), expected, rtol=1e-11)
    assert not torch.equal(net.queue.rows[3:], start[3:])
    assert int(net.queue.pointer) == 3 * IMAGES - QUEUE
    assert set(net.state_dict()) >= {"queue.rows", "queue.pointer", "key_projector.0.weight"}


def test_the_key_network_moves_before_the_step_and_by_parameters_only() -> None:
    net = method()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.before_step(CLOCK)
    for name, value in net.state_dict().items():
        expected = before[name]
        if name.startswith("key_") and name in dict(net.named_parameters()):
            expected = 0.9 * expected + 0.1 * before[name.replace("key_", "", 1)]
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)


def test_keys_take_no_gradient_and_each_network_sees_one_view() -> None:
    net = method()
    loss_and_gradient(net, batch())
    assert all(p.grad is None for name, p in net.named_parameters() if name.startswith("key_"))
    assert net.backbone.calls == net.key_backbone.calls == [IMAGES]
    assert net.views(CLOCK) == ("global", "global")


def test_what_is_decayed() -> None:
    sizes = [{g["name"]: len(g["params"]) for g in method(decay_all=all_).parameter_groups()} for all_ in (False, True)]
    assert sizes == [{"decayed": 3, "not_decayed": 5}, {"decayed": 8}]


@pytest.mark.parametrize("rows", [1, 2, 8, 17])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
def test_equal_rows_give_ln_of_the_queue_and_one(rows: int, temperature: float) -> None:
    """lightly's case of a memory bank that holds what the queries are: all pairs are equally similar."""
    same = torch.ones(1, 4, 1, dtype=torch.float64) * torch.tensor([0.6, 0.8], dtype=torch.float64)
    queue = same[0, :1].expand(rows, 2)
    assert info_nce(same, same, queue, temperature).item() == pytest.approx(math.log(rows + 1), rel=1e-12)


def test_top1_counts_keys_above_all_of_the_queue() -> None:
    net, given = method(), batch()
    q, k = unit(head(net.projector, pooled(net.backbone, given.views[0]))), keys(net, given)
    net.queue.rows[:] = torch.from_numpy(k[2])  # the third key itself is no larger than the queue's
    hits = [q[i] @ k[i] > max(q[i] @ row for row in net.queue.rows.numpy()) for i in range(IMAGES)]
    assert 0 < sum(hits) < IMAGES
    assert net(given, CLOCK)[1]["instance_top1"].item() == pytest.approx(np.mean(hits), rel=1e-6)


def test_order_and_labels_do_not_matter() -> None:
    check_order_and_labels_do_not_matter(method)


def test_a_queue_below_one_is_a_share_of_the_images_and_at_least_a_batch() -> None:
    assert len(method(queue=0.5).queue.rows) == 15
    assert len(method(queue=0.1).queue.rows) == IMAGES
    for wrong in (5, 31):
        with pytest.raises(UserError, match=f"method.values.queue: {wrong} rows, must be from 6"):
            method(queue=wrong)
