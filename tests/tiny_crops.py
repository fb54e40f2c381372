"""A small network for crops of any size, made-up crops for it, and its forward pass with a head in numpy."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from polygrain.backbones.contract import Backbone, Encoded
from polygrain.nn.clock import Clock
from polygrain.nn.random import hash64
from polygrain.views.batch import Batch

IMAGES = 6
EPOCH = 4

Array = Any  # numpy's own type says nothing of shapes


class Tiny(Backbone):
    """Linear in the means of four blocks, then batch norm over the crops of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 5
        self.linear = nn.Linear(4, 5)
        self.batch_norm = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Encoded:
        pooled = self.batch_norm(self.linear(adaptive_avg_pool2d(x, 2).flatten(1)))
        return Encoded(pooled[:, None], pooled[:, :, None, None], pooled)


def clock(step: int, steps: int = 3 * EPOCH) -> Clock:
    return Clock(seed=3, step=step, steps=steps, steps_per_epoch=EPOCH)


def crop(step: int, position: int, name: str) -> Tensor:
    """The crop at one position of a step's views, all images of the batch."""
    generator = torch.Generator().manual_seed(int(hash64(step, position, name) % 2**31))
    side = 4 if name.startswith("local") else 8
    return torch.randn(IMAGES, 1, side, side, dtype=torch.float64, generator=generator)


def batch(step: int, names: Sequence[str], rows: slice | Tensor = slice(None)) -> Batch:
    """A step's crops; an epoch shows all but two of 26 images, in an order of its own (unequal over two processes)."""
    views = [crop(step, position, name)[rows] for position, name in enumerate(names)]
    order = 100 + np.random.default_rng(12 + step // EPOCH).permutation(IMAGES * EPOCH + 2)
    start = step % EPOCH * IMAGES
    index = torch.from_numpy(order[start : start + IMAGES])
    return Batch(views, [], index[rows], (torch.arange(IMAGES) % 3)[rows])


def share(rank: int, processes: int) -> slice:
    """The images of one process."""
    size = IMAGES // processes
    return slice(rank * size, (rank + 1) * size)


def gradient(net: nn.Module, loss: Tensor) -> Tensor:
    """The gradient of all trained parameters as one vector; 0 where the loss reaches none."""
    net.zero_grad()
    loss.backward()
    trained = [p for p in net.parameters() if p.requires_grad]
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])


def arrays(net: nn.Module) -> dict[str, Array]:
    return {name: p.detach().numpy().copy() for name, p in net.named_parameters()}


def standard(x: Array) -> Array:
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def features(p: Mapping[str, Array], views: Sequence[Tensor], prefix: str = "backbone.") -> Array:
    """Pooled rows of the crops in their order: one batch norm for each size."""
    means = [x.numpy()[:, 0].reshape(len(x), 2, x.shape[-1] // 2, 2, -1).mean((2, 4)).reshape(len(x), 4) for x in views]
    rows = [mean @ p[f"{prefix}linear.weight"].T + p[f"{prefix}linear.bias"] for mean in means]
    pooled = []
    for side in dict.fromkeys(x.shape[-1] for x in views):
        same = np.concatenate([row for row, x in zip(rows, views, strict=True) if x.shape[-1] == side])
        pooled.append(standard(same) * p[f"{prefix}batch_norm.weight"] + p[f"{prefix}batch_norm.bias"])
    return np.concatenate(pooled)


def two_layers(p: Mapping[str, Array], rows: Array, prefix: str = "projector.") -> Array:
    """A head of two layers with batch norm between them and no bias before it."""
    rows = standard(rows @ p[f"{prefix}0.weight"].T) * p[f"{prefix}1.weight"] + p[f"{prefix}1.bias"]
    return np.maximum(rows, 0) @ p[f"{prefix}3.weight"].T + p[f"{prefix}3.bias"]


def log_softmax(x: Array) -> Array:
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def slope(value: Any, start: Mapping[str, Array], names: Sequence[str]) -> tuple[float, Tensor]:
    """The derivative of `value(parameters)` along a random direction of the named ones, and that direction."""
    generator = np.random.default_rng(5)
    direction = {name: generator.standard_normal(start[name].shape) for name in names}
    ends = [value({n: a + sign * 1e-6 * direction.get(n, 0.0) for n, a in start.items()}) for sign in (1, -1)]
    return (ends[0] - ends[1]) / 2e-6, torch.cat([torch.tensor(direction[name]).flatten() for name in names])
