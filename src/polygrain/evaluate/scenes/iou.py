"""Frozen maps of scenes with their truth, and how well the classes of their pixels are found.

Legend: N cells, C classes, 0 the background; B images, D width, h, w the map, S side of an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polygrain.data.dense.coco import Picture
from polygrain.evaluate.result import ACCURACY, Examples, Number, Result
from polygrain.evaluate.scenes.given import SceneEncoder
from polygrain.provenance.errors import UserError

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Maps:
    """Frozen maps of a split, and its truth."""

    maps: Tensor
    """Float32 [B, D, h, w]."""
    truth: Integers
    """Int64 [B, S, S]: 0 for the background, else 1 + the class."""


def encoded_maps(protocol: str, encoder: SceneEncoder, split: str, pictures: Sequence[Picture]) -> Tensor:
    """Frozen maps of images, float32 [B, D, h, w].

    Raises UserError, which begins with `protocol`, where a map is not finite, or does not divide its image into squares
    of whole pixels.
    """
    maps_BDhw = torch.cat([batch.map.float().cpu() for batch in encoder.encoded(split, pictures)])
    if not bool(torch.isfinite(maps_BDhw).all()):
        raise UserError(f"{protocol}: a map of the {split} split is not finite, the encoder has diverged")
    if pictures[0].height % maps_BDhw.shape[2] or maps_BDhw.shape[2] != maps_BDhw.shape[3]:
        raise UserError(
            f"{protocol}: a map of {maps_BDhw.shape[2]} x {maps_BDhw.shape[3]} cells does not divide images of"
            f" {pictures[0].height} px; use scenes of another side"
        )
    return maps_BDhw


def maps_of(protocol: str, encoder: SceneEncoder, split: str, pictures: Sequence[Picture]) -> Maps:
    """Frozen maps and truth of images. Raises UserError as `encoded_maps` does."""
    maps_BDhw = encoded_maps(protocol, encoder, split, pictures)
    return Maps(maps_BDhw, np.stack([encoder.scenes.semantic(split, picture) for picture in pictures]))


def cell_rows(maps_BDhw: Tensor) -> Tensor:
    """Every cell as a row, image by image, row by row, float32 [N, D]."""
    return maps_BDhw.permute(0, 2, 3, 1).flatten(0, 2)


def pixel_counts(truth_BSS: Integers, cells: int, classes: int) -> Integers:
    """How many pixels of each class each of cells x cells cells covers, int64 [N, C]."""
    side = truth_BSS.shape[1] // cells
    row, column = np.indices(truth_BSS.shape[1:]) // side
    keys, size = (row * cells + column) * classes, cells * cells * classes
    counts = [np.bincount((keys + truth).ravel(), minlength=size) for truth in truth_BSS]
    return np.concatenate(counts).reshape(-1, classes)


def shares(truth_BSS: Integers, cells: int, classes: int) -> Floats:
    """The share of each class among the pixels of each of cells x cells cells, float64 [N, C]; rows sum to 1."""
    found: Floats = pixel_counts(truth_BSS, cells, classes) / (truth_BSS.shape[1] // cells) ** 2
    return found


def confusion(found: Integers, truth: Integers, classes: int) -> Integers:
    """How many pixels of class i (rows) are predicted as j (columns), int64 [C, C]."""
    counts: Integers = np.bincount((truth * classes + found).ravel(), minlength=classes**2).reshape(classes, classes)
    return counts


def ious(counts_CC: Integers) -> Floats:
    """Intersection over union of each class, float64 [C]; NaN for one that is neither present nor predicted."""
    right = np.diagonal(counts_CC)
    union = counts_CC.sum(axis=0) + counts_CC.sum(axis=1) - right
    return np.where(union > 0, right / np.maximum(union, 1), np.nan)


def mean_iou(counts_CC: Integers) -> float:
    """The mean IoU over the classes that are present or predicted, the background among them."""
    return float(np.nanmean(ious(counts_CC)))


def segmented(
    name: str,
    names: Sequence[str],
    found_BSS: Integers,
    truth_BSS: Integers,
    pictures: Sequence[Picture],
    chosen: Mapping[str, Any],
) -> Result:
    """`miou` and the IoUs over all pixels; by scene `accuracy`, and `scene-iou`, the mean IoU over its own classes."""
    classes = 1 + len(names)
    whole = confusion(found_BSS, truth_BSS, classes)
    accuracy = (found_BSS == truth_BSS).mean(axis=(1, 2))
    by_scene = np.array(
        [
            ious(confusion(found, truth, classes))[np.unique(truth)].mean()
            for found, truth in zip(found_BSS, truth_BSS, strict=True)
        ]
    )
    scores = {"accuracy": accuracy, "scene-iou": by_scene}
    numbers = {"miou": mean_iou(whole)} | {metric: float(score.mean()) for metric, score in scores.items()}
    known = zip(("background", *names), ious(whole).tolist(), strict=True)
    numbers |= {f"iou-{one}": iou for one, iou in known if iou == iou}
    index = np.array([picture.id for picture in pictures], dtype=np.int64)
    values = {f"{name}/{metric}": Number(value, ACCURACY) for metric, value in numbers.items()}
    return Result(values, {name: chosen}, {name: Examples(index, scores)})
