"""SimCLR as a module: what it feeds to NT-Xent, what moves, what does not matter, and two processes against one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from two_processes import WORLD, run_in_two

from polygrain.backbones.contract import Backbone, Encoded, from_map
from polygrain.methods.simclr import METHOD, SimCLR
from polygrain.nn.batch_norm import synchronise
from polygrain.nn.clock import Clock
from polygrain.views.batch import Batch

CLOCK = Clock(seed=0, step=0, steps=10, steps_per_epoch=5)
IMAGES = 6


class Tiny(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.width = 5
        self.convolution = nn.Conv2d(1, 5, 3, stride=2)
        self.norm = nn.BatchNorm2d(5)
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Encoded:
        self.calls.append(len(x))
        return from_map(torch.relu(self.norm(self.convolution(x))))


def method(temperature: float = 0.3) -> SimCLR:
    torch.manual_seed(0)
    return synchronise(SimCLR(Tiny(), temperature=temperature, layers=2, hidden=7, embedding=4)).double()  # type: ignore[return-value]


def batch(images: int = IMAGES, rows: slice | Tensor = slice(None)) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, images, 1, 8, 8, dtype=torch.float64, generator=generator)
    labels, indices = torch.arange(images) % 3, torch.arange(images)
    return Batch([x[0][rows], x[1][rows]], [], indices[rows], labels[rows])


def loss_and_gradient(net: SimCLR, given: Batch) -> tuple[Tensor, Tensor]:
    losses, _ = net(given, CLOCK)
    net.zero_grad()
    losses["instance"].backward()
    return losses["instance"].detach(), torch.cat([p.grad.flatten() for p in net.parameters()])


def oracle(net: SimCLR, given: Batch) -> float:
    """Backbone feature to loss in numpy float64: joint batch norm over both views, ReLU, unit rows, equation 1."""
    with torch.no_grad():
        h = net.backbone(torch.cat(given.views)).pooled.numpy()
    part = {name: p.detach().numpy() for name, p in net.projector.named_parameters()}
    a = h @ part["0.weight"].T
    a = (a - a.mean(0)) / np.sqrt(a.var(0) + 1e-5) * part["1.weight"] + part["1.bias"]
    z = np.maximum(a, 0) @ part["3.weight"].T + part["3.bias"]
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    rows = len(z)
    total = 0.0
    for i in range(rows):
        terms = [np.exp(z[i] @ z[j] / net.temperature) for j in range(rows)]
        total -= np.log(terms[(i + rows // 2) % rows] / (sum(terms) - terms[i])) / rows
    return total


@pytest.mark.parametrize("temperature", [0.1, 0.3, 1.0])
def test_value_against_numpy(temperature: float) -> None:
    net, given = method(temperature), batch()
    loss, _ = loss_and_gradient(net, given)
    assert loss.item() == pytest.approx(oracle(net, given), rel=1e-12)


def test_gradient_against_finite_differences() -> None:
    net, given = method(), batch()
    _, gradient = loss_and_gradient(net, given)
    direction = torch.randn(gradient.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    start = nn.utils.parameters_to_vector(net.parameters()).detach()
    values = []
    for sign in (1, -1):
        nn.utils.vector_to_parameters(start + sign * 1e-6 * direction, net.parameters())
        values.append(oracle(net, given))
    assert (values[0] - values[1]) / 2e-6 == pytest.approx((gradient @ direction).item(), rel=1e-6)


def test_both_views_pass_the_network_once_and_together() -> None:
    net = method()
    net(batch(), CLOCK)
    assert net.backbone.calls == [2 * IMAGES]
    assert net.views(CLOCK) == ("global", "global")


def test_order_and_views_do_not_matter() -> None:
    loss, gradient = loss_and_gradient(method(), batch())
    given = batch()
    for other in (
        batch(rows=torch.tensor([4, 2, 0, 5, 1, 3])),
        Batch(given.views[::-1], [], given.indices, given.labels_for_monitoring),
    ):
        other_loss, other_gradient = loss_and_gradient(method(), other)
        torch.testing.assert_close(other_loss, loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(other_gradient, gradient, rtol=0, atol=1e-12)


def test_collapse_gives_ln_2b_minus_1() -> None:
    net = method()
    for part in (net.projector[3].weight,):
        nn.init.zeros_(part)
    losses, monitors = net(batch(), CLOCK)
    assert losses["instance"].item() == pytest.approx(np.log(2 * IMAGES - 1), rel=1e-12)
    assert monitors["spread"].item() == pytest.approx(0.0, abs=1e-12)


def test_labels_and_indices_change_no_bit() -> None:
    given = batch()
    loss, gradient = loss_and_gradient(method(), given)
    other = Batch(given.views, [], given.indices.flip(0), 2 - given.labels_for_monitoring)
    other_loss, other_gradient = loss_and_gradient(method(), other)
    assert torch.equal(loss, other_loss)
    assert torch.equal(gradient, other_gradient)
    assert METHOD.uses_labels is False


def test_what_is_trained_and_what_is_reported() -> None:
    net = method()
    groups = net.parameter_groups()
    assert {group["name"]: len(group["params"]) for group in groups} == {"decayed": 3, "not_decayed": 6}
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))
    assert all(name.startswith(("backbone.", "projector.")) for name in net.state_dict())
    losses, monitors = net(batch(), CLOCK)
    assert list(losses) == ["instance"]
    assert not any(value.requires_grad for value in monitors.values())


def test_it_learns_to_tell_images_apart() -> None:
    net, given = method(), batch(24)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    first = None
    for _ in range(40):
        loss = net(given, CLOCK)[0]["instance"]
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first - 0.2


def work(rank: int) -> Any:
    net = method()
    share = IMAGES // WORLD
    loss, gradient = loss_and_gradient(net, batch(rows=slice(rank * share, (rank + 1) * share)))
    torch.distributed.all_reduce(gradient)
    return loss, gradient / WORLD, dict(net.named_buffers())


def test_two_processes_equal_one(tmp_path: Path) -> None:
    net = method()
    loss, gradient = loss_and_gradient(net, batch())
    for shared_loss, shared_gradient, buffers in run_in_two(work, tmp_path):
        torch.testing.assert_close(shared_loss, loss, rtol=1e-10, atol=0)
        torch.testing.assert_close(shared_gradient, gradient, rtol=0, atol=1e-10)
        for name, value in net.named_buffers():
            torch.testing.assert_close(buffers[name], value, rtol=1e-10, atol=1e-12)
