"""Stochastic depth whose draws are pure functions of (seed, step, place), without a generator."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from polygrain.nn.distributed import world
from polygrain.nn.random import uniform


class DropPath(nn.Module):
    """In training, drop a residual branch for whole samples with probability `rate`; divide what is kept by 1 - rate.

    A draw depends on `key` = (seed, step), on `place` (the branch's name), on the number of batches since the key was
    set (so two views differ) and on the row among all processes. A batch holds crops of `images` images, crop by crop.
    """

    def __init__(self, rate: float, place: str) -> None:
        super().__init__()
        self.rate, self.place = rate, place
        self.key: tuple[int, int] | None = None
        self.images = self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] to the same shape. Raises RuntimeError in training when no key was set."""
        if not self.training or self.rate == 0.0:
            return x
        if self.key is None:
            raise RuntimeError("drop path has no key for its draws; call set_drop_path_key before each training step")
        rank, processes = world()
        row = torch.arange(len(x), device=x.device)
        rows = (row // self.images * processes + rank) * self.images + row % self.images
        kept = uniform(*self.key, "drop path", self.place, self.passes, rows) >= self.rate
        self.passes += 1
        return x * (kept.to(x.dtype) / (1.0 - self.rate)).view(-1, *[1] * (x.ndim - 1))


def set_drop_path_key(module: nn.Module, seed: int, step: int, images: int) -> None:
    """Give every DropPath in `module` the seed, the step and the number of images in a process's batch."""
    for part in module.modules():
        if isinstance(part, DropPath):
            part.key, part.images, part.passes = (seed, step), images, 0


def remove_drop_path(module: nn.Module) -> None:
    """Set the rate of every DropPath in `module` to 0, for good: of a teacher, say."""
    for part in _drop_paths(module):
        part.rate = 0.0


@contextmanager
def drop_path_off(module: nn.Module) -> Iterator[None]:
    """Keep every branch while this lasts; all else stays in training mode."""
    for part in _drop_paths(module):
        part.eval()
    yield
    for part in _drop_paths(module):
        part.train(module.training)


def _drop_paths(module: nn.Module) -> list[DropPath]:
    return [part for part in module.modules() if isinstance(part, DropPath)]
