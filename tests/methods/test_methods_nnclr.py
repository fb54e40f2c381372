"""NNCLR: value and gradient against numpy, what is a neighbour, the queue that a step leaves, collapse."""

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
    pooled,
    swapped,
    unit,
)

from polygrain.methods.nnclr import NNCLR
from polygrain.views.batch import Batch

QUEUE = 15  # no multiple of the batch, so that a push crosses the end
VALUES = {
    "images": 30, "batch": IMAGES, "hidden": 7, "embedding": 4, "predictor_hidden": 3, "temperature": 0.3,
    "neighbour": True, "queue": QUEUE,
}  # fmt: skip


def fresh(**changes: Any) -> Any:
    return built(NNCLR, **{**VALUES, **changes})


def method(**changes: Any) -> Any:
    """With a queue of which nine rows are written."""
    net = fresh(**changes)
    if net.queue is not None:
        rows = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        net.queue.push(rows / rows.norm(dim=1, keepdim=True))
        net.queue_indices.push(torch.full((9, 1), -1.0))
    return net


def projections(net: Any, given: Batch) -> list[np.ndarray]:
    return [head(net.projector, pooled(net.backbone, view)) for view in given.views]


class Oracle:
    """Neighbours by a plain loop over written rows, and the log of shares term by term; neighbours stay the first."""

    def __init__(self) -> None:
        self.found: list[np.ndarray] = []

    def neighbours(self, net: Any, z: list[np.ndarray]) -> list[np.ndarray]:
        if net.queue is None or not net.queue.written.any():
            return [unit(rows) for rows in z]
        bank = net.queue.rows.numpy()[net.queue.written.numpy()]
        return [np.stack([max(bank, key=lambda row, of=of: row @ of) for of in unit(rows)]) for rows in z]

    def __call__(self, net: Any, given: Batch) -> float:
        z = projections(net, given)
        p = [unit(head(net.predictor, rows)) for rows in z]
        self.found = self.found or self.neighbours(net, z)
        total = 0.0
        for n, q in ((self.found[0], p[1]), (self.found[1], p[0])):
            for i in range(len(n)):
                shares = np.exp(q @ n[i] / net.temperature)
                total -= np.log(shares[i] / shares.sum()) / len(n) / 2
        return float(total)


@pytest.mark.parametrize("make", [method, fresh], ids=["queue", "empty"])
@pytest.mark.parametrize("neighbour", [True, False])
def test_value_and_gradient_against_numpy(make: Any, neighbour: bool) -> None:
    check_value_and_gradient(make(neighbour=neighbour), batch(), Oracle())


def test_noise_is_no_neighbour() -> None:
    net = method()
    net.queue.rows[9:] = torch.from_numpy(unit(projections(net, batch())[0]))  # it would win each search
    loss, _ = loss_and_gradient(net, batch())
    assert loss.item() == pytest.approx(Oracle()(net, batch()), rel=1e-11)
    net.queue.written[9:] = True
    other, _ = loss_and_gradient(net, batch())
    assert other.item() == pytest.approx(Oracle()(net, batch()), rel=1e-11)
    assert other.item() != pytest.approx(loss.item(), rel=1e-3)


def test_of_equal_neighbours_the_first_place_wins() -> None:
    net = method()
    net.queue.rows[:9] = net.queue.rows[0].clone()
    net.queue_indices.rows[:9, 0] = torch.arange(9, dtype=torch.float64)
    found, own = net._look_up(torch.eye(4, dtype=torch.float64), torch.zeros(4, dtype=torch.int64))
    assert torch.equal(found, net.queue.rows[:1].expand(4, 4))
    assert own.all()


def test_the_first_views_embeddings_enter_the_queue_after_the_step() -> None:
    net, given = fresh(), batch()
    z = unit(projections(net, given)[0])
    for push in range(3):
        net(given, CLOCK)
        assert int(net.queue.pointer) == push * IMAGES
        net.after_step(CLOCK)
        place = [(push * IMAGES + row) % QUEUE for row in range(IMAGES)]
        np.testing.assert_allclose(net.queue.rows[place].numpy(), z, rtol=1e-11)
        assert torch.equal(net.queue_indices.rows[place, 0], given.indices.double())
    assert bool(net.queue.written.all())
    assert net(given, CLOCK)[1]["neighbour_self"].item() == 1.0
    assert net(Batch(given.views, [], given.indices + 50, given.indices), CLOCK)[1]["neighbour_self"].item() == 0.0


def test_without_neighbours_there_is_no_queue() -> None:
    net = fresh(neighbour=False)
    net(batch(), CLOCK)
    net.after_step(CLOCK)
    assert not any(name.startswith("queue") for name in net.state_dict())


def test_collapse_gives_ln_of_the_batch() -> None:
    net = method()
    net.predictor[-1].weight.data.zero_()
    losses, _ = net(batch(), CLOCK)
    assert losses["instance"].item() == pytest.approx(math.log(IMAGES), rel=1e-12)


def test_each_view_passes_alone() -> None:
    net = method()
    net(batch(), CLOCK)
    assert net.backbone.calls == [IMAGES, IMAGES]
    assert net.projector[-1].affine
    assert net.views(CLOCK) == ("global", "global")
    assert {group["name"]: len(group["params"]) for group in net.parameter_groups()} == {
        "decayed": 6,
        "not_decayed": 12,
    }


def test_order_and_labels_do_not_matter() -> None:
    check_order_and_labels_do_not_matter(method)
    loss, gradient = loss_and_gradient(method(), batch())
    other_loss, other_gradient = loss_and_gradient(method(), swapped(batch()))
    torch.testing.assert_close(other_loss, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(other_gradient, gradient, rtol=0, atol=1e-12)
