"""Linear semantic segmentation of scenes on the frozen map, by a fixed number of iterations of L-BFGS.

A cell's target is the share of each class among the pixels that it covers. One linear layer with softmax, the same for
all cells, minimises in float64

    mean over the train cells of -sum over classes of share * log softmax(x W + b)  +  lambda / 2 |W|^2

which is the cross-entropy of every pixel with the prediction of its cell: convex, without a learning rate or an order
of the images. The largest decay starts at zero, each other one where the one before ended; the YAML's iterations end
before the minimum, which would take minutes, so less decay also means more iterations. Inputs are standardised over the
train cells. For judging, the logits are upsampled bilinearly to the pixels. The weight decay is selected by the mean
IoU on validation, of equals the larger; test is used once.

Legend: N cells, D width + 1 (the last input is the constant 1), C classes, 0 the background; B images, h, w the map,
S side of an image, R decays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from polygrain.data.dense.coco import Picture
from polygrain.evaluate.linear import Solver, minimise, objective
from polygrain.evaluate.result import ACCURACY, Examples, Number, Result
from polygrain.evaluate.scenes.given import SceneEncoder
from polygrain.evaluate.scenes.standard import Standard
from polygrain.provenance.errors import UserError

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_JUDGED = 100  # images that are upsampled at once


@dataclass(frozen=True)
class Maps:
    """Frozen maps of a split, and its truth."""

    maps: Tensor
    """Float32 [B, D, h, w]."""
    truth: Integers
    """Int64 [B, S, S]: 0 for the background, else 1 + the class."""


def evaluate(
    encoder: SceneEncoder,
    *,
    train: int,
    decays: list[float],
    iterations: int,
    tolerance: float,
) -> Result:
    """Train and test the layer.

    train: scenes from the front of the train split, at most. decays: to select from. iterations, tolerance: see
    `polygrain.evaluate.linear.Solver`. Raises UserError for values out of range, images whose side the map does not
    divide, and a split without images.
    """
    if train < 1 or not decays or min(decays) < 0 or iterations < 1 or not tolerance > 0:
        raise UserError(
            f"scene-segmentation: train ({train}), iterations ({iterations}) and tolerance ({tolerance}) must be"
            " positive, decays at least one, none negative"
        )
    scenes, ordered = encoder.scenes, sorted(set(decays), reverse=True)
    classes = 1 + len(scenes.classes)
    pictures = scenes.pictures("train", train)
    standard, weights_RDC = _trained(encoder, pictures, ordered, Solver(iterations, tolerance))
    held = _maps(encoder, "validation", scenes.pictures("validation"))
    scores = [
        mean_iou(confusion(predicted(held, standard, weights_DC), held.truth, classes)) for weights_DC in weights_RDC
    ]
    best = max(range(len(ordered)), key=lambda place: (scores[place], -place))
    shown = scenes.pictures("test")
    tested = _maps(encoder, "test", shown)
    found_BSS = predicted(tested, standard, weights_RDC[best])
    chosen = {"decay": ordered[best], "validation_miou": scores[best], "scenes": len(pictures)}
    return _result(scenes.name, scenes.classes, found_BSS, tested.truth, shown, chosen)


def _trained(
    encoder: SceneEncoder, pictures: Sequence[Picture], decays: Sequence[float], solver: Solver
) -> tuple[Standard, Tensor]:
    """How inputs are standardised, and weights [R, D, C] for each of the descending decays."""
    given = _maps(encoder, "train", pictures)
    rows_ND = _cells(given.maps)
    shares_NC = torch.from_numpy(shares(given.truth, given.maps.shape[-1], 1 + len(encoder.scenes.classes)))
    standard = Standard(rows_ND)
    return standard, _fit(standard(rows_ND), shares_NC, decays, solver)


def _fit(x_ND: Tensor, shares_NC: Tensor, decays: Sequence[float], solver: Solver) -> Tensor:
    """Weights [R, D, C] for each of the descending decays; each starts at the solution of the one before."""
    weights_DC, found = x_ND.new_zeros(x_ND.shape[1], shares_NC.shape[1]), []
    for decay in decays:
        of_weights = partial(objective, x_ND=x_ND, targets_NC=shares_NC, decay=decay)
        weights_DC = minimise(of_weights, weights_DC, solver)
        found.append(weights_DC)
    return torch.stack(found)


def _maps(encoder: SceneEncoder, split: str, pictures: Sequence[Picture]) -> Maps:
    maps_BDhw = torch.cat([batch.map.float().cpu() for batch in encoder.encoded(split, pictures)])
    truth_BSS = np.stack([encoder.scenes.semantic(split, picture) for picture in pictures])
    if not bool(torch.isfinite(maps_BDhw).all()):
        raise UserError(f"scene-segmentation: a map of the {split} split is not finite, the encoder has diverged")
    if truth_BSS.shape[1] % maps_BDhw.shape[2] or maps_BDhw.shape[2] != maps_BDhw.shape[3]:
        raise UserError(
            f"scene-segmentation: a map of {maps_BDhw.shape[2]} x {maps_BDhw.shape[3]} cells does not divide images of"
            f" {truth_BSS.shape[1]} px; use scenes of another side"
        )
    return Maps(maps_BDhw, truth_BSS)


def _cells(maps_BDhw: Tensor) -> Tensor:
    """Every cell as a row, image by image, row by row, float32 [N, width]."""
    return maps_BDhw.permute(0, 2, 3, 1).flatten(0, 2)


def shares(truth_BSS: Integers, cells: int, classes: int) -> Floats:
    """The share of each class among the pixels of each of cells x cells cells, float64 [N, C]; rows sum to 1."""
    side = truth_BSS.shape[1] // cells
    row, column = np.indices(truth_BSS.shape[1:]) // side
    keys, size = (row * cells + column) * classes, cells * cells * classes
    counts = [np.bincount((keys + truth).ravel(), minlength=size) for truth in truth_BSS]
    found: Floats = np.concatenate(counts).reshape(-1, classes) / side**2
    return found


def predicted(given: Maps, standard: Standard, weights_DC: Tensor) -> Integers:
    """The class with the highest upsampled logit at each pixel, the first of equals, int64 [B, S, S]."""
    side, found = given.truth.shape[1], []
    for maps_BDhw in torch.split(given.maps, _JUDGED):
        logits_NC = standard(_cells(maps_BDhw)) @ weights_DC
        logits_BChw = logits_NC.reshape(len(maps_BDhw), *maps_BDhw.shape[2:], -1).permute(0, 3, 1, 2)
        upsampled = interpolate(logits_BChw.contiguous(), size=(side, side), mode="bilinear", align_corners=False)
        found.append(upsampled.numpy().argmax(axis=1))
    return np.concatenate(found)


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


def _result(
    name: str,
    names: Sequence[str],
    found_BSS: Integers,
    truth_BSS: Integers,
    pictures: Sequence[Picture],
    chosen: dict[str, float | int],
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
