"""What tests of a whole method need: a tiny backbone, a batch, layers in numpy, gradients, two processes and one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from two_processes import WORLD

from polygrain.backbones.contract import Backbone, Encoded, from_map
from polygrain.nn.batch_norm import synchronise
from polygrain.nn.clock import Clock
from polygrain.views.batch import Batch

CLOCK = Clock(seed=0, step=3, steps=10, steps_per_epoch=5)
IMAGES = 6


class Tiny(Backbone):
    """One convolution with batch norm; counts the images of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 5
        self.stem = nn.Conv2d(1, 5, 3, stride=2)
        self.stem_norm = nn.BatchNorm2d(5)
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Encoded:
        self.calls.append(len(x))
        return from_map(torch.relu(self.stem_norm(self.stem(x))))


def built(kind: Callable[..., nn.Module], **values: Any) -> Any:
    """A method on the tiny backbone, in double precision, always with the same start."""
    torch.manual_seed(0)
    return synchronise(kind(Tiny(), **values)).double()


def batch(images: int = IMAGES, rows: slice | Tensor = slice(None)) -> Batch:
    """Two views of noise, the same for any selection of rows."""
    x = torch.randn(2, images, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels, indices = torch.arange(images) % 3, torch.arange(images)
    return Batch([x[0][rows], x[1][rows]], [], indices[rows], labels[rows])


def swapped(given: Batch) -> Batch:
    return Batch(given.views[::-1], [], given.indices, given.labels_for_monitoring)


def moved_apart(net: Any, *names: str) -> None:
    """Change every parameter of the moving-average parts, so that a mistaken network gives another value."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name in names:
            for p in getattr(net, name).parameters():
                p.add_(0.3 * torch.randn(p.shape, dtype=p.dtype, generator=generator))


def loss_and_gradient(net: Any, given: Batch, clock: Clock = CLOCK) -> tuple[Tensor, Tensor]:
    """The one term of a method's loss, and its gradient in all trainable parameters, flat."""
    losses, monitors = net(given, clock)
    assert list(losses) == ["instance"]
    assert not any(value.requires_grad for value in monitors.values())
    net.zero_grad()
    losses["instance"].backward()
    return losses["instance"].detach(), torch.cat([p.grad.flatten() for p in trained(net)])


def trained(net: nn.Module) -> list[nn.Parameter]:
    return [p for p in net.parameters() if p.requires_grad]


# ---- the same in numpy


def pooled(backbone: Any, view: Tensor) -> np.ndarray:
    """Mean over the map of ReLU of the batch-normalised convolution, all in numpy."""
    w, b = (p.detach().numpy() for p in (backbone.stem.weight, backbone.stem.bias))
    windows = np.lib.stride_tricks.sliding_window_view(view.numpy()[:, 0], (3, 3), axis=(1, 2))[:, ::2, ::2]
    maps = np.einsum("nhwij,cij->nchw", windows, w[:, 0]) + b[:, None, None]
    mean, var = maps.mean((0, 2, 3), keepdims=True), maps.var((0, 2, 3), keepdims=True)
    gain, shift = (p.detach().numpy()[:, None, None] for p in (backbone.stem_norm.weight, backbone.stem_norm.bias))
    return np.asarray(np.maximum((maps - mean) / np.sqrt(var + 1e-5) * gain + shift, 0).mean((2, 3)))


def head(module: nn.Module, x: np.ndarray) -> np.ndarray:
    """A head's layers in turn: linear, batch norm of the batch's own statistics, ReLU; the identity if it has none."""
    for layer in module.children():
        p = {name: value.detach().numpy() for name, value in layer.named_parameters()}
        if isinstance(layer, nn.Linear):
            x = x @ p["weight"].T + p.get("bias", 0.0)
        elif isinstance(layer, nn.ReLU):
            x = np.maximum(x, 0)
        else:
            x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * p.get("weight", 1.0) + p.get("bias", 0.0)
    return x


def unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def check_value_and_gradient(net: Any, given: Batch, oracle: Callable[[Any, Batch], float]) -> None:
    """The loss is the oracle's, and its gradient along a drawn direction is the oracle's by central differences.

    An oracle holds what carries no gradient at its first value by itself.
    """
    loss, gradient = loss_and_gradient(net, given)
    assert loss.item() == pytest.approx(oracle(net, given), rel=1e-11)
    direction = torch.randn(gradient.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    start = nn.utils.parameters_to_vector(trained(net)).detach()
    values = []
    for sign in (1, -1):
        nn.utils.vector_to_parameters(start + sign * 1e-6 * direction, trained(net))
        values.append(oracle(net, given))
    nn.utils.vector_to_parameters(start, trained(net))
    assert (values[0] - values[1]) / 2e-6 == pytest.approx((gradient @ direction).item(), rel=1e-5)


# ---- what holds for every method


def check_order_and_labels_do_not_matter(make: Callable[[], Any]) -> None:
    loss, gradient = loss_and_gradient(make(), batch())
    other_loss, other_gradient = loss_and_gradient(make(), batch(rows=torch.tensor([4, 2, 0, 5, 1, 3])))
    torch.testing.assert_close(other_loss, loss, rtol=1e-11, atol=0)
    torch.testing.assert_close(other_gradient, gradient, rtol=0, atol=1e-10)
    given = batch()
    relabelled = Batch(given.views, [], given.indices, 2 - given.labels_for_monitoring)
    other_loss, other_gradient = loss_and_gradient(make(), relabelled)
    assert torch.equal(loss, other_loss)
    assert torch.equal(gradient, other_gradient)
    assert make().uses_labels is False


def step(net: Any, given: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """A step's loss and gradient, and the state that it leaves, with the parameters not yet moved by an optimiser."""
    if hasattr(net, "before_step"):
        net.before_step(CLOCK)
    loss, gradient = loss_and_gradient(net, given)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(gradient)
        gradient /= WORLD
    if hasattr(net, "after_step"):
        net.after_step(CLOCK)
    return loss, gradient, {name: value.clone() for name, value in net.state_dict().items()}
