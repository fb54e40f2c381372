"""The pre-training images, in the order and with the draws that the counters say."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from polygrain.data.encoded import Encoded, open_data, statistics
from polygrain.data.packed import DataSet, Packed
from polygrain.nn.clock import Clock
from polygrain.nn.random import permutation
from polygrain.provenance.errors import UserError
from polygrain.train.loader import Cut, Job, Loader
from polygrain.views.batch import Batch, draw_views, finish_batch, make_batch, plain_view
from polygrain.views.draw import Drawn
from polygrain.views.randaugment import fill_of
from polygrain.views.recipe import ViewRecipe, read_recipes

Views = Callable[[Clock], tuple[str, ...]]

# ImageNet's evaluation view shows the central 224 of 256 px; the unaugmented view of an encoded image likewise
_WHOLE = 256 / 224


@dataclass(frozen=True)
class Request:
    """One batch to make: rows of the pre-training subset, int64 [B], the epoch, and a recipe per view."""

    rows: Tensor
    epoch: int
    recipes: tuple[ViewRecipe, ...]


class Images(Protocol):
    """The pre-training subset in one of its formats."""

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Yield the batches asked for; the next requests may be taken before a batch is."""
        ...

    def plain(self, parts: Sequence[Tensor], *, subset: bool) -> Iterator[Tensor]:
        """Yield unaugmented views, float32 [b, C, size, size], of the positions in each part."""
        ...


@dataclass(frozen=True)
class Setting:
    """What both formats need to know: positions int64 [N] of the subset, its labels [N], and how views are made."""

    positions: Tensor
    labels: Tensor
    seed: int
    size: int
    mean: list[float]
    std: list[float]
    device: torch.device


class PretrainingData:
    """The subset of the data set that a run trains on; a batch is a pure function of the clock.

    Arrays of pixels are held in memory; encoded images are decoded and cut when their turn comes, `pretrain.workers`
    processes working ahead. `pretrain.split` is `train`, `unlabelled`, or `train+unlabelled` (in this order); the
    subset is its first `pretrain.images` images.
    """

    def __init__(self, root: Path, config: dict[str, Any]) -> None:
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
        """Whole batches in one pass; the rest of the subset waits for the next shuffle."""
        return len(self.positions) // self.batch_size

    @property
    def channels(self) -> int:
        """Channels of the stored images."""
        return len(self.mean)

    def batch(self, clock: Clock, views: tuple[str, ...], ahead: Views | None = None) -> Batch:
        """The batch of one step, with one augmented view per name in `views`.

        Workers go on with the steps that follow. `ahead` says which views those will have (default: the same); a wrong
        guess costs time only. Raises UserError on an unknown view recipe and on a damaged image.
        """
        ahead = ahead or (lambda _: views)
        if self._next != (clock, views):
            self._stop()
            later = (replace(clock, step=step) for step in range(clock.step + 1, clock.steps))
            wanted = chain([(clock, views)], ((step, ahead(step)) for step in later))
            self._stream = self.images.batches(self._requests(wanted))
        self._next = None  # until this batch is there: after a fault, and after the last step, the stream is over
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
        """Unaugmented images, indices and labels (for monitoring, or for a control that says so) in the stored order.

        `split` is `pretrain` (the subset) or `validation` (held out of training). The view of an encoded image is its
        central square, 224 of 256 parts of the shorter side; other images are shown whole.
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
        """End what was begun for the next steps, so that its workers are free."""
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
        """The rows of the subset in the order of an epoch; two epochs are kept, as workers run ahead into the next."""
        if epoch not in self._orders:
            self._orders = dict(list(self._orders.items())[-1:])
            self._orders[epoch] = permutation(len(self.positions), self.seed, "order", epoch)
        return self._orders[epoch]

    def _labels(self, positions: Tensor) -> Tensor:
        return torch.from_numpy(np.array(self.data.labels[positions.numpy()], dtype=np.int64)).to(self.device)


class PixelImages:
    """Images of equal size, the subset in memory as uint8, on the device."""

    def __init__(self, data: Packed, setting: Setting) -> None:
        self.data, self.setting = data, setting
        self.pixels = self._load(setting.positions)

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Yield the batches asked for, each made when its turn comes."""
        setting = self.setting
        for request in requests:
            rows = request.rows.to(setting.device)
            yield make_batch(
                self.pixels[rows],
                setting.labels[rows],
                setting.positions[request.rows].to(setting.device),
                request.recipes,
                seed=setting.seed,
                epoch=request.epoch,
                mean=setting.mean,
                std=setting.std,
            )

    def plain(self, parts: Sequence[Tensor], *, subset: bool) -> Iterator[Tensor]:
        """Yield the whole images, resized to the square."""
        start = 0
        for part in parts:
            pixels = self.pixels[start : start + len(part)] if subset else self._load(part)
            start += len(part)
            yield plain_view(pixels, self.setting.size, self.setting.mean, self.setting.std)

    def _load(self, positions: Tensor) -> Tensor:
        return torch.from_numpy(np.array(self.data.images[positions.numpy()])).to(self.setting.device)


class EncodedImages:
    """Encoded images of any sizes: the loader decodes, cuts, resizes and flips; the rest is done in whole batches."""

    def __init__(self, data: Encoded, setting: Setting, workers: int, batch_size: int) -> None:
        self.data, self.setting = data, setting
        self.loader = Loader(data, workers, batch_size, pin=setting.device.type == "cuda")

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Yield the batches asked for; workers run ahead."""
        setting = self.setting
        begun: deque[tuple[Request, list[Drawn], Tensor]] = deque()

        def jobs() -> Iterator[Job]:
            for request in requests:
                positions = setting.positions[request.rows]
                source = torch.from_numpy(self.data.sizes(positions.numpy()))
                drawn = draw_views(request.recipes, positions, seed=setting.seed, epoch=request.epoch, source=source)
                begun.append((request, drawn, source))
                cuts = (_cut(*each, setting.mean) for each in zip(request.recipes, drawn, strict=True))
                yield Job(positions.numpy(), tuple(cuts))

        for cuts in self.loader.stream(jobs()):
            request, drawn, source = begun.popleft()
            yield finish_batch(
                [cut.to(setting.device, non_blocking=True) for cut in cuts],
                drawn,
                setting.labels[request.rows.to(setting.device)],
                setting.positions[request.rows].to(setting.device),
                request.recipes,
                source=source,
                mean=setting.mean,
                std=setting.std,
            )

    def plain(self, parts: Sequence[Tensor], *, subset: bool) -> Iterator[Tensor]:
        """Yield the central squares."""
        size = self.setting.size
        jobs = (Job(part.numpy(), (Cut(size, resize=round(size * _WHOLE)),)) for part in parts)
        for cuts in self.loader.stream(jobs):
            view = cuts[0].to(self.setting.device, non_blocking=True)
            yield plain_view(view, size, self.setting.mean, self.setting.std)


def _cut(recipe: ViewRecipe, drawn: Drawn, mean: Sequence[float]) -> Cut:
    """What the loader does of a view: all that is done to the decoded image, up to the flip."""
    return Cut(
        recipe.size,
        drawn.box.numpy(),
        drawn.flip.numpy(),
        interpolation=recipe.interpolation,
        randaugment=tuple(part.numpy() for part in drawn.randaugment.parts) if drawn.randaugment else (),
        fill=tuple(fill_of(mean)),
    )


def _images(data: DataSet, setting: Setting, workers: int, batch_size: int) -> Images:
    if isinstance(data, Encoded):
        return EncodedImages(data, setting, workers, batch_size)
    assert isinstance(data, Packed)
    return PixelImages(data, setting)


def chosen(data: DataSet, split: str, images: int | None) -> np.ndarray:
    """Positions of the first `images` images (None: all) of `split`, or of several joined by +, int64.

    Raises UserError when there are fewer, or no such split.
    """
    if "+" not in split:
        return np.ascontiguousarray(data.subset(split, images))
    positions = np.concatenate([data.split(part) for part in split.split("+")])
    if images is not None and images > len(positions):
        raise UserError(
            f"{data.manifest['name']}: {images} images of {split} asked, there are {len(positions)}; ask for fewer"
        )
    return positions[:images]
