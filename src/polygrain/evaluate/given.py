"""What a protocol that runs images through the network gets: the run's encoder, the data sets, the plain view.

A transfer image is shown as in pre-training: resized to the same square, with the same statistics and number of
channels (a grey image is repeated; of a colour image the luminance is used, ITU-R 601).
"""

import copy
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from polygrain.backbones.contract import Backbone, Encoded, split
from polygrain.backbones.droppath import remove_drop_path
from polygrain.backbones.load import load_backbone
from polygrain.data.load import format_of, open_data, statistics
from polygrain.data.packed import DataSet
from polygrain.evaluate.store import ALL, Integers, labelled_rows
from polygrain.provenance.errors import UserError
from polygrain.views.apply import plain_view

if TYPE_CHECKING:
    from polygrain.config.typed import Shown

METADATA = "polygrain"
_NAMED = 4  # tensors that an error message names; the rest is counted
_LUMINANCE = (299, 587, 114)  # thousandths of red, green, blue


class Encoder:
    """A frozen backbone, the data sets to evaluate on, and how it is shown their images; see `__init__`."""

    def __init__(
        self,
        network: Backbone,
        datasets: Mapping[str, DataSet],
        statistics: tuple[Sequence[float], Sequence[float]],
        device: str = "cpu",
        load: Callable[[str], Backbone] | None = None,
        *,
        size: int,
        resize: int | None,
        batch: int,
        workers: int,
        train: int | None,
        validation: int | None,
        test: int | None,
    ) -> None:
        """Keep what is given. statistics: mean and std per channel of the encoder's input. size: side of the view, px.

        load: what loads another network of the checkpoint by its prefix, where there is one.
        resize: for encoded images, the shorter side before the centre is cut out; null, and all other images: the whole
        image becomes the square. batch: images of a forward pass. workers: processes that decode. train, validation,
        test: rows to take from the start of each split, at most; null for all. Raises UserError on values out of range.
        """
        limits = {"train": train, "validation": validation, "test": test}
        if min(size, batch, *(limit for limit in limits.values() if limit is not None)) < 1:
            raise UserError(f"features: size ({size}), batch ({batch}) and limits ({limits}) must be positive or null")
        if resize is not None and resize < size:
            raise UserError(f"features: resize ({resize}) must be at least size ({size}), or null")
        self.network, self.datasets, self.device, self.limits = network.to(device), datasets, device, limits
        self.size, self.resize, self.batch, self.workers = size, resize, batch, workers
        self.mean, self.std = statistics
        self._load = load

    def of_network(self, prefix: str) -> "Encoder":
        """The same with another network of the checkpoint, by its prefix, such as `student.backbone.`.

        Raises UserError where no network of this backbone lies under it.
        """
        if self._load is None:
            raise UserError(f"this encoder is not of a checkpoint: it has no other network '{prefix}'")
        other = copy.copy(self)
        other.network = self._load(prefix).to(self.device)
        return other

    def positions(self, name: str, part: str, subset: str = ALL) -> Integers:
        """Positions of a split's images within its limit, int64 [n], class-balanced in every prefix.

        subset: of the train split, the images whose labels may be used (see `labelled_rows`, also for errors). Raises
        UserError when the split is empty.
        """
        rows = np.asarray(self.datasets[name].split(part)[: self.limits[part]], dtype=np.int64)
        if not len(rows):
            raise UserError(f"{name}, {part} split: no rows; check the data set's splits")
        return rows[: labelled_rows(name, subset, len(rows), self.classes(name))]

    def labels(self, name: str, positions: Integers) -> Integers:
        """Labels of images, int64 [n] in 0..classes-1."""
        return np.asarray(self.datasets[name].labels[positions], dtype=np.int64)

    def classes(self, name: str) -> int:
        """Number of classes of a data set."""
        return len(self.datasets[name].manifest["classes"])

    def views(self, name: str, positions: Integers) -> Iterator[tuple[Integers, Tensor]]:
        """Positions [B] and plain views float32 [B, C, size, size] of images, in their order, batch by batch."""
        for rows, images in self._images(name, positions):
            yield rows, plain_view(images.to(self.device), self.size, self.mean, self.std)

    @torch.no_grad()
    def encoded(self, name: str, positions: Integers) -> Iterator[tuple[Integers, Encoded]]:
        """Frozen tokens, maps and pooled features of images, batch by batch, with their positions [B].

        Every forward pass has the same size (the last batch is filled with copies), so an image's result depends only
        on the image and its index in `positions`, not on other images.
        """
        for rows, images in self._images(name, positions):
            filled = torch.cat([images, images[-1:].expand(self.batch - len(images), *images.shape[1:])])
            whole = self.network(plain_view(filled.to(self.device), self.size, self.mean, self.std))
            yield rows, split(whole, [len(images), self.batch - len(images)])[0]

    def finetunable(self) -> Backbone:
        """A copy of the network whose weights may be trained, in training mode; see `trainable`."""
        return trainable(self.network)

    def _images(self, name: str, positions: Integers) -> Iterator[tuple[Integers, Tensor]]:
        parts = [positions[start : start + self.batch] for start in range(0, len(positions), self.batch)]
        found = images_of(self.datasets[name], parts, self.size, self.resize, self.workers)
        for rows, images in zip(parts, _progress(found, len(parts), name), strict=True):
            yield rows, as_channels(images, len(self.mean))


def trainable(network: Backbone) -> Backbone:
    """A copy of a network whose weights may be trained, in training mode.

    It trains without drop path, which would want a key for its draws before every step. (The detection of Mugs's
    release has a rate of 0.1.)
    """
    copied = copy.deepcopy(network).requires_grad_(True).train()
    remove_drop_path(copied)
    return copied


def encoder_of(config: "Shown", checkpoint: Path, data: Mapping[str, Path], device: str = "cpu") -> Encoder:
    """Load a checkpoint's encoder and open the data sets (`data`: name -> packed folder) to evaluate on.

    config: `backbone` (its name and values), `datasets`, `pretrained` (the data set of pre-training; by default the
    first of `datasets`), `statistics` (mean and std per channel, null for that data set's own) and `features` (keywords
    of `Encoder`). Raises UserError on a damaged checkpoint or data set, or one that does not fit.
    """
    opened = {name: open_data(root) for name, root in data.items()}
    own = opened[config.get("pretrained", config["datasets"][0])]
    mean, std = statistics(own, config["statistics"])
    load = partial(load_encoder, config["backbone"], checkpoint, channels=len(mean))
    judged = {name: opened[name] for name in config["datasets"]}
    return Encoder(load(), judged, (mean, std), device, load, **config["features"])


def load_encoder(
    backbone: Mapping[str, Any], checkpoint: Path, prefix: str | None = None, *, channels: int
) -> Backbone:
    """Build the backbone in evaluation mode and load it. Raises UserError unless all tensors fit.

    prefix: of its tensors in the checkpoint; null for the encoder, whose prefix the checkpoint names.
    """
    encoder = load_backbone(**backbone, channels=channels)
    tensors = read_encoder(checkpoint, prefix)
    misfit = _misfit(encoder.state_dict(), tensors)
    if misfit:
        raise UserError(
            f"{checkpoint}: does not fit backbone {backbone['name']} ({misfit}); pretrain again, or restore the values"
            " that it was made with"
        )
    encoder.load_state_dict(tensors, strict=True)
    convolutional = any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())
    layout = torch.channels_last if convolutional else torch.contiguous_format
    return encoder.to(memory_format=layout).eval().requires_grad_(False)


def _misfit(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Which tensors are missing, unexpected or of another shape; empty when all fit."""
    shared = expected.keys() & given.keys()
    faults = {
        "missing": expected.keys() - given.keys(),
        "unexpected": given.keys() - expected.keys(),
        "of another shape": {key for key in shared if expected[key].shape != given[key].shape},
    }
    return "; ".join(f"{fault}: {_listed(sorted(keys))}" for fault, keys in faults.items() if keys)


def _listed(keys: Sequence[str]) -> str:
    rest = len(keys) - _NAMED
    return ", ".join(keys[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def read_encoder(checkpoint: Path, prefix: str | None = None) -> dict[str, Tensor]:
    """Read the tensors under a prefix, without it; null for that of the encoder. Raises UserError on a damaged file."""
    try:
        with safe_open(checkpoint, framework="pt") as file:
            about = json.loads((file.metadata() or {})[METADATA])
            asked, names = str(about["encoder"]) if prefix is None else prefix, list(file.keys())
            tensors = {key.removeprefix(asked): file.get_tensor(key) for key in names if key.startswith(asked)}
    except FileNotFoundError:
        raise UserError(f"{checkpoint}: not found; pretrain the run first") from None
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        fault = " ".join(str(error).split())
        raise UserError(f"{checkpoint}: not a whole checkpoint ({fault}); restore it, or pretrain again") from None
    if about.get("format") != 1:
        raise UserError(f"{checkpoint}: checkpoint format {about.get('format')}, this version reads 1; pretrain again")
    if not tensors and prefix is None:
        raise UserError(f"{checkpoint}: no tensor under its encoder prefix '{asked}'; pretrain again")
    if not tensors:
        raise UserError(f"{checkpoint}: no network '{prefix}'; it has {_networks(names, str(about['encoder']))}")
    return tensors


def _networks(names: Sequence[str], encoder: str) -> str:
    """The prefixes under which a checkpoint holds a network of the same tensors as its encoder."""
    own = {name.removeprefix(encoder) for name in names if name.startswith(encoder)}
    last = max(own, key=len, default="")
    prefixes = sorted({name.removesuffix(last) for name in names if last and name.endswith(last)})
    return ", ".join(prefix for prefix in prefixes if {prefix + name for name in own} <= set(names))


def _progress(batches: Iterable[Tensor], count: int, what: str) -> "tqdm[Tensor]":
    """Show batches per second; one line per half minute if not in a terminal."""
    pause = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(batches, desc=what, total=count, unit="batch", leave=False, mininterval=pause)


def images_of(
    data: DataSet, parts: Sequence[np.ndarray], size: int, resize: int | None, workers: int
) -> Iterator[Tensor]:
    """Yield the images at each part's positions, uint8 [B, C, H, W]; of encoded ones the evaluation view."""
    shown: Iterator[Tensor] = import_module(f"polygrain.evaluate.images.{format_of(data)}").images_of(
        data, parts, size, resize, workers
    )
    return shown


def as_channels(images: Tensor, channels: int) -> Tensor:
    """Repeat grey images uint8 [B, C, H, W], or turn colour into luminance. Raises UserError for other counts."""
    given = images.shape[1]
    if given == channels:
        return images
    if given == 1:
        return images.expand(-1, channels, -1, -1).contiguous()
    if (given, channels) == (3, 1):
        weights = torch.tensor(_LUMINANCE, dtype=torch.int32).view(1, 3, 1, 1)
        thousandths = (images.to(torch.int32) * weights).sum(dim=1, keepdim=True, dtype=torch.int32)
        return ((thousandths + 500) // 1000).to(torch.uint8)
    raise UserError(f"images with {given} channels cannot be shown to an encoder of {channels}; drop this transfer set")
