"""The pre-training subset, in the order and with the draws that the counters say."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polygrain.data.packed import Packed, open_packed
from polygrain.nn.clock import Clock
from polygrain.nn.random import permutation
from polygrain.provenance.errors import UserError
from polygrain.views.batch import Batch, make_batch, plain_view
from polygrain.views.recipe import Recipe

Pass = Callable[..., Iterator[tuple[Tensor, Tensor, Tensor]]]


class PretrainingData:
    """A class-balanced subset of the training split, in memory as uint8; a batch is a pure function of the clock."""

    def __init__(self, root: Path, config: dict[str, Any]) -> None:
        self.packed: Packed = open_packed(root)
        self.positions = torch.from_numpy(
            np.ascontiguousarray(self.packed.subset("train", config["pretrain"]["images"]))
        )
        self.batch_size: int = config["pretrain"]["batch"]
        self.input_size: int = config["input_size"]
        self.seed: int = config["seed"]
        self.recipes = {name: Recipe.from_mapping(recipe) for name, recipe in config["augmentation"].items()}
        self.device = torch.device(config["pretrain"]["device"])
        self.images = self._load(self.positions.numpy())
        self.labels = self._labels(self.positions.numpy())
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass; the rest of the subset waits for the next shuffle."""
        return len(self.positions) // self.batch_size

    @property
    def channels(self) -> int:
        """Channels of the stored images."""
        return int(self.images.shape[1])

    def batch(self, clock: Clock, views: tuple[str, ...]) -> Batch:
        """The batch of one step, with one augmented view per name in `views`.

        Raises UserError on an unknown view recipe.
        """
        missing = [name for name in views if name not in self.recipes]
        if missing:
            raise UserError(
                f"augmentation: no recipe named '{missing[0]}'; there are {', '.join(sorted(self.recipes))}"
            )
        if clock.epoch != self._order[0]:
            self._order = (clock.epoch, permutation(len(self.positions), self.seed, "order", clock.epoch))
        start = clock.step_in_epoch * self.batch_size
        rows = self._order[1][start : start + self.batch_size]
        return make_batch(
            self.images[rows.to(self.device)],
            self.labels[rows.to(self.device)],
            self.positions[rows].to(self.device),
            [self.recipes[name] for name in views],
            seed=self.seed,
            epoch=clock.epoch,
            mean=self.packed.mean,
            std=self.packed.std,
        )

    def plain_pass(self, split: str = "pretrain") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Unaugmented images, indices and labels (for monitoring, or for a control that says so) in the stored order.

        `split` is `pretrain` (the subset) or `validation` (held out of training).
        """
        if split == "pretrain":
            positions, images, labels = self.positions, self.images, self.labels
        else:
            held_out = self.packed.split(split)
            positions, images, labels = (
                torch.from_numpy(held_out),
                self._load(held_out),
                self._labels(held_out),
            )
        for start in range(0, len(positions), self.batch_size):
            part = slice(start, start + self.batch_size)
            view = plain_view(images[part], self.input_size, self.packed.mean, self.packed.std)
            yield view, positions[part].to(self.device), labels[part]

    def _load(self, positions: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(self.packed.images[positions])).to(self.device)

    def _labels(self, positions: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(self.packed.labels[positions], dtype=np.int64)).to(self.device)
