"""The pre-training images, in an order and with draws that depend on counters only."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from polygrain.data.load import format_of, open_data, statistics
from polygrain.data.packed import DataSet
from polygrain.nn.clock import Clock
from polygrain.nn.random import permutation
from polygrain.provenance.errors import UserError
from polygrain.train.images.contract import Images, Request, Setting
from polygrain.views.batch import Batch
from polygrain.views.recipe import ViewRecipe, read_recipes

if TYPE_CHECKING:  # types decide no output: they stay out of the code hash
    from polygrain.config.typed import Pretrain

Views = Callable[[Clock], tuple[str, ...]]


class PretrainingData:
    """The subset of the data set that a run trains on; a batch is a pure function of the clock.

    Pixels of equal size are held in memory; encoded images are decoded ahead of time by `pretrain.workers` processes.
    The subset is the first `pretrain.images` of `pretrain.split`: `train`, `unlabelled` or `train+unlabelled`.
    """

    def __init__(self, root: Path, config: "Pretrain") -> None:
        pretrain = config["pretrain"]
        self.data: DataSet = open_data(root)
        self.positions = torch.from_numpy(chosen(self.data, pretrain["split"], pretrain["images"]))
        self.batch_size: int = pretrain["batch"]
        self.seed: int = config["seed"]
        self.recipes = read_recipes(config["augmentation"])
        self.device = torch.device(pretrain["device"])
        self.mean, self.std = statistics(self.data, config["statistics"])
        self.labels = self._labels(self.positions)
        setting = Setting(
            self.positions, self.labels, self.seed, config["input_size"], self.mean, self.std, self.device
        )
        self.images = _images(self.data, setting, pretrain["workers"], self.batch_size)
        self._orders: dict[int, Tensor] = {}
        self._stream: Iterator[Batch] = iter(())
        self._next: tuple[Clock, tuple[str, ...]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass; the rest of the subset is left out of this epoch."""
        return len(self.positions) // self.batch_size

    @property
    def channels(self) -> int:
        """Channels of the stored images."""
        return len(self.mean)

    def batch(self, clock: Clock, views: tuple[str, ...], ahead: Views | None = None) -> Batch:
        """The batch of one step, with one augmented view per name in `views`.

        Workers already prepare the next steps. `ahead` predicts their views (default: the same); a wrong prediction
        only costs time. Raises UserError on an unknown recipe and on a damaged image.
        """
        ahead = ahead or (lambda _: views)
        if self._next != (clock, views):
            self._stop()
            later = (replace(clock, step=step) for step in range(clock.step + 1, clock.steps))
            wanted = chain([(clock, views)], ((step, ahead(step)) for step in later))
            self._stream = self.images.batches(self._requests(wanted))
        self._next = None  # after an error, and after the last step, the stream has ended
        batch = next(self._stream)
        if clock.step + 1 < clock.steps:
            following = replace(clock, step=clock.step + 1)
            self._next = (following, ahead(following))
        return batch

    def augmented_pass(self, clock: Clock, views: tuple[str, ...]) -> Iterator[Batch]:
        """The batches of the epoch of `clock`, from its first, as `batch` would give them with these view recipes."""
        self._stop()
        first = clock.step - clock.step_in_epoch
        wanted = ((replace(clock, step=first + step), views) for step in range(clock.steps_per_epoch))
        yield from self.images.batches(self._requests(wanted))

    def plain_pass(self, split: str = "pretrain") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Unaugmented images, indices and labels (for monitoring and controls only) in the stored order.

        `split` is `pretrain` (the subset) or `validation`. Encoded images show the central 224 / 256 of the shorter
        side.
        """
        self._stop()
        subset = split == "pretrain"
        positions = self.positions if subset else torch.from_numpy(self.data.split(split))
        labels = self.labels if subset else self._labels(positions)
        parts = [positions[start : start + self.batch_size] for start in range(0, len(positions), self.batch_size)]
        start = 0
        for part, view in zip(parts, self.images.plain(parts, subset=subset), strict=True):
            yield view, part.to(self.device), labels[start : start + len(part)]
            start += len(part)

    def _stop(self) -> None:
        """End the preparation of next steps, which frees its workers."""
        self._stream, self._next = iter(()), None

    def _recipes(self, views: tuple[str, ...]) -> tuple[ViewRecipe, ...]:
        missing = [name for name in views if name not in self.recipes]
        if missing:
            raise UserError(
                f"augmentation: no recipe named '{missing[0]}'; there are {', '.join(sorted(self.recipes))}"
            )
        return tuple(self.recipes[name] for name in views)

    def _requests(self, wanted: Iterable[tuple[Clock, tuple[str, ...]]]) -> Iterator[Request]:
        for clock, views in wanted:
            start = clock.step_in_epoch * self.batch_size
            rows = self._order(clock.epoch)[start : start + self.batch_size]
            yield Request(rows, clock.epoch, self._recipes(views))

    def _order(self, epoch: int) -> Tensor:
        """The subset's rows in an epoch's order; two epochs are kept, as workers prepare the next one."""
        if epoch not in self._orders:
            self._orders = dict(list(self._orders.items())[-1:])
            self._orders[epoch] = permutation(len(self.positions), self.seed, "order", epoch)
        return self._orders[epoch]

    def _labels(self, positions: Tensor) -> Tensor:
        return torch.from_numpy(np.array(self.data.labels[positions.numpy()], dtype=np.int64)).to(self.device)


def _images(data: DataSet, setting: Setting, workers: int, batch_size: int) -> Images:
    images: Images = import_module(f"polygrain.train.images.{format_of(data)}").images_of(
        data, setting, workers, batch_size
    )
    return images


def chosen(data: DataSet, split: str, images: int | None) -> np.ndarray:
    """Positions, int64, of the first `images` images (None: all) of `split`, or of several joined by +.

    Raises UserError when there are fewer, or no such split.
    """
    if "+" not in split:
        return np.ascontiguousarray(data.subset(split, images))
    positions = np.concatenate([data.split(part) for part in split.split("+")])
    if images is not None and images > len(positions):
        raise UserError(
            f"{data.manifest['name']}: {images} images of {split} asked, there are {len(positions)};"
            " lower pretrain.images"
        )
    return positions[:images]
