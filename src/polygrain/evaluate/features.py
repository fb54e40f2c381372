"""From a checkpoint to frozen features: every data set and split through the run's encoder, once.

The encoder sees a transfer image as pre-training would have shown it: resized to the same square, with the
statistics that pre-training used, and with its number of channels (a grey image is repeated; a colour image
becomes its luminance, ITU-R 601).

Rows go through in batches of one fixed size, the last one filled up with copies, so a row's bits depend on
its image and its place in the split, never on its neighbours or on how many rows follow.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from polygrain.backbones.load import load_backbone
from polygrain.config.signature import check_values, keywords
from polygrain.data.encoded import Encoded, open_data, statistics
from polygrain.data.packed import DataSet, Packed
from polygrain.evaluate.store import ALL, Features, FeatureSet, Split
from polygrain.provenance.errors import UserError
from polygrain.train.loader import Cut, Job, Loader
from polygrain.views.apply import plain_view

METADATA = "polygrain"
_NAMED = 4  # tensors that an error message names before it counts
_LUMINANCE = (299, 587, 114)  # thousandths of red, green, blue


def extract(config: dict[str, Any], checkpoint: Path, data: Mapping[str, Path], out: Path) -> None:
    """Write the features of every data set in `data` (name -> packed folder) to `out`.

    config: `backbone` (its name and values), `datasets` (the one of pre-training first), `statistics` (mean and
    std per channel, null for that data set's own) and `features` (the keyword values of `features_of`). Raises
    UserError on a damaged checkpoint, one that does not fit the backbone, a damaged data set, an unknown key and
    features that are not finite; `out` is then untouched.
    """
    check_values("features", config["features"], keywords(__name__, "features_of"))
    opened = {name: open_data(root) for name, root in data.items()}
    mean, std = statistics(opened[config["datasets"][0]], config["statistics"])
    encoder = load_encoder(config["backbone"], checkpoint, channels=len(mean))
    Features(
        {name: features_of(encoder, name, one, mean, std, **config["features"]) for name, one in opened.items()}
    ).save(out)


def load_encoder(backbone: Mapping[str, Any], checkpoint: Path, *, channels: int) -> nn.Module:
    """Build the backbone in evaluation mode and fill it, strictly, from the checkpoint's evaluated part.

    Raises UserError when the checkpoint is missing or damaged, or when its tensors are not exactly the
    backbone's.
    """
    encoder: nn.Module = load_backbone(**backbone, channels=channels)
    tensors = read_encoder(checkpoint)
    misfit = _misfit(encoder.state_dict(), tensors)
    if misfit:
        raise UserError(
            f"{checkpoint}: does not fit backbone {backbone['name']} ({misfit});"
            " it was made with other values: pretrain again, or restore them"
        )
    encoder.load_state_dict(tensors, strict=True)
    convolutional = any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())
    layout = torch.channels_last if convolutional else torch.contiguous_format
    return encoder.to(memory_format=layout).eval().requires_grad_(False)


def _misfit(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Say which tensors are missing, unexpected or of another shape; empty when all fit."""
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


def read_encoder(checkpoint: Path) -> dict[str, Tensor]:
    """Read the tensors under the checkpoint's encoder prefix, without it. Raises UserError on a damaged file."""
    try:
        with safe_open(checkpoint, framework="pt") as file:
            about = json.loads((file.metadata() or {})[METADATA])
            prefix, names = str(about["encoder"]), list(file.keys())
            tensors = {key.removeprefix(prefix): file.get_tensor(key) for key in names if key.startswith(prefix)}
    except FileNotFoundError:
        raise UserError(f"{checkpoint}: not found; pretrain the run first") from None
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        fault = " ".join(str(error).split())
        raise UserError(
            f"{checkpoint}: not a whole checkpoint ({fault}); delete it and pretrain again, or restore it"
        ) from None
    if about.get("format") != 1:
        raise UserError(f"{checkpoint}: checkpoint format {about.get('format')}, this version reads 1; pretrain again")
    if not tensors:
        raise UserError(f"{checkpoint}: no tensor under its encoder prefix '{prefix}'; pretrain again")
    return tensors


def features_of(
    encoder: nn.Module,
    name: str,
    data: DataSet,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    size: int,
    resize: int | None,
    batch: int,
    workers: int,
    train: int | None,
    validation: int | None,
    test: int | None,
) -> FeatureSet:
    """Encode one data set, with views normalised by `mean` and `std`, one of each per channel of the encoder.

    size: side of the square view, px. resize: for encoded images, the shorter side before the centre is cut out;
    null, and all other images: the whole image becomes the square. batch: images of a forward pass. workers:
    processes that decode encoded images. train, validation, test: rows to take from the front of each split, null
    for all; splits with fewer rows give what they have. Label subsets that fit in the train rows are kept. Raises
    UserError on values that make no sense and on an empty split.
    """
    limits = {"train": train, "validation": validation, "test": test}
    if min(size, batch, *(limit for limit in limits.values() if limit is not None)) < 1:
        raise UserError(f"features: size ({size}), batch ({batch}) and the limits ({limits}) must be positive or null")
    if resize is not None and resize < size:
        raise UserError(f"features: resize ({resize}) must be at least size ({size}), or null")
    splits = {}
    for split, limit in limits.items():
        indices = data.split(split)[:limit]
        parts = [indices[start : start + batch] for start in range(0, len(indices), batch)]
        rows = [
            _encode(encoder, as_channels(images, len(mean)), batch, size, mean, std)
            for images in _progress(images_of(data, parts, size, resize, workers), len(parts), f"{name} {split}")
        ]
        features = np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)
        labels = np.asarray(data.labels[indices], dtype=np.int64)
        splits[split] = Split(features, labels, np.asarray(indices, dtype=np.int64))
    subsets = data.manifest["label_subsets"]
    fitting = {key: int(rows) for key, rows in subsets.items() if key != ALL and 0 < rows <= len(splits["train"])}
    return FeatureSet(name, len(data.manifest["classes"]), fitting, **splits)


def _progress(batches: Iterable[Tensor], count: int, what: str) -> "tqdm[Tensor]":
    """Show batches per second; seldom when nobody watches."""
    pause = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(batches, desc=what, total=count, unit="batch", leave=False, mininterval=pause)


def images_of(
    data: DataSet, parts: Sequence[np.ndarray], size: int, resize: int | None, workers: int
) -> Iterator[Tensor]:
    """Yield the images at each part's positions, uint8 [B, C, H, W].

    As they are stored, or, of encoded ones, the evaluation view [B, 3, size, size].
    """
    if isinstance(data, Encoded):
        jobs = (Job(part, (Cut(size, resize=resize),)) for part in parts)
        for (views,) in Loader(data, workers, max(map(len, parts), default=1)).stream(jobs):
            yield views
    else:
        assert isinstance(data, Packed)
        for part in parts:
            yield torch.from_numpy(np.array(data.images[part]))


@torch.no_grad()
def _encode(
    encoder: nn.Module, images: Tensor, batch: int, size: int, mean: Sequence[float], std: Sequence[float]
) -> np.ndarray:
    """Pooled features float32 [len(images), D] of at most `batch` images."""
    filled = torch.cat([images, images[-1:].expand(batch - len(images), *images.shape[1:])])
    pooled: Tensor = encoder(plain_view(filled, size, mean, std)).pooled
    return pooled[: len(images)].to(torch.float32).numpy()


def as_channels(images: Tensor, channels: int) -> Tensor:
    """Bring uint8 images [B, C, H, W] to another number of channels.

    Grey is repeated, colour becomes its rounded luminance. Raises UserError for any other pair of counts.
    """
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
