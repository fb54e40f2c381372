"""Linear semantic segmentation of scenes on the frozen map, by a fixed number of iterations of L-BFGS.

A cell's target is the share of each class among the pixels that it covers. One linear layer with softmax, the same for
all cells, minimises in float64

    mean over the train cells of -sum over classes of share * log softmax(x W + b)  +  lambda / 2 |W|^2

which is the cross-entropy of every pixel with the prediction of its cell: convex, without a learning rate or an order
of the images. The largest decay starts at zero, each other one where the one before ended. Inputs are whitened over
the train cells, which makes the curvature alike in all directions: the 45 iterations of scale cpu end within 0.0001 of
the least loss, with merely standardised inputs within 0.0025 (SimCLR, seed 0). For judging, the logits are upsampled
bilinearly to the pixels. The weight decay is selected by the mean IoU on validation, of equals the larger; test is used
once.

Legend: N cells, D width + 1 (the last input is the constant 1), C classes, 0 the background; B images, h, w the map,
S side of an image, R decays.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from polygrain.data.dense.coco import Picture
from polygrain.evaluate.linear import Solver, minimise, objective
from polygrain.evaluate.result import Result
from polygrain.evaluate.scenes.given import SceneEncoder
from polygrain.evaluate.scenes.iou import Integers, Maps, cell_rows, confusion, maps_of, mean_iou, segmented, shares
from polygrain.evaluate.whitening import Whitening
from polygrain.provenance.errors import UserError

_NAME = "scene-segmentation"
_JUDGED = 100  # images that are upsampled at once


def evaluate(
    encoder: SceneEncoder,
    *,
    train: int,
    decays: list[float],
    shrinkage: float,
    iterations: int,
    tolerance: float,
) -> Result:
    """Train and test the layer.

    train: scenes from the front of the train split, at most. decays: to select from. shrinkage: see `Whitening`.
    iterations, tolerance: see `polygrain.evaluate.linear.Solver`. Raises UserError for values out of range, images
    whose side the map does not divide, and a split without images.
    """
    if min(train, iterations) < 1 or not decays or min(decays) < 0 or not min(tolerance, shrinkage) > 0:
        raise UserError(
            f"{_NAME}: train ({train}), iterations ({iterations}), tolerance ({tolerance}) and shrinkage ({shrinkage})"
            " must be positive, decays at least one, none negative"
        )
    scenes, ordered = encoder.scenes, sorted(set(decays), reverse=True)
    classes = 1 + len(scenes.classes)
    pictures = scenes.pictures("train", train)
    inputs, weights_RDC = _trained(encoder, pictures, ordered, shrinkage, Solver(iterations, tolerance))
    held = maps_of(_NAME, encoder, "validation", scenes.pictures("validation"))
    scores = [
        mean_iou(confusion(predicted(held, inputs, weights_DC), held.truth, classes)) for weights_DC in weights_RDC
    ]
    best = max(range(len(ordered)), key=lambda place: (scores[place], -place))
    shown = scenes.pictures("test")
    tested = maps_of(_NAME, encoder, "test", shown)
    found_BSS = predicted(tested, inputs, weights_RDC[best])
    chosen = {"decay": ordered[best], "validation_miou": scores[best], "scenes": len(pictures)}
    return segmented(scenes.name, scenes.classes, found_BSS, tested.truth, shown, chosen)


def _trained(
    encoder: SceneEncoder, pictures: Sequence[Picture], decays: Sequence[float], shrinkage: float, solver: Solver
) -> tuple["Inputs", Tensor]:
    """What makes inputs of cells, and weights [R, D, C] for each of the descending decays."""
    given = maps_of(_NAME, encoder, "train", pictures)
    rows_ND = cell_rows(given.maps)
    shares_NC = torch.from_numpy(shares(given.truth, given.maps.shape[-1], 1 + len(encoder.scenes.classes)))
    inputs = Inputs(rows_ND, shrinkage)
    return inputs, _fit(inputs(rows_ND), shares_NC, decays, solver)


class Inputs:
    """Whitened cells with a constant 1 behind them, float64 [N, width] to [N, D]."""

    def __init__(self, train_ND: Tensor, shrinkage: float) -> None:
        self._whiten = Whitening(train_ND.double().numpy(), shrinkage)

    def __call__(self, rows_ND: Tensor) -> Tensor:
        """The inputs of some cells."""
        white_ND = torch.from_numpy(self._whiten(rows_ND.numpy()))
        return torch.cat([white_ND, white_ND.new_ones(len(white_ND), 1)], dim=1)


def _fit(x_ND: Tensor, shares_NC: Tensor, decays: Sequence[float], solver: Solver) -> Tensor:
    """Weights [R, D, C] for each of the descending decays; each starts at the solution of the one before."""
    weights_DC, found = x_ND.new_zeros(x_ND.shape[1], shares_NC.shape[1]), []
    for decay in decays:
        of_weights = partial(objective, x_ND=x_ND, targets_NC=shares_NC, decay=decay)
        weights_DC = minimise(of_weights, weights_DC, solver)
        found.append(weights_DC)
    return torch.stack(found)


def predicted(given: Maps, inputs: Callable[[Tensor], Tensor], weights_DC: Tensor) -> Integers:
    """The class with the highest upsampled logit at each pixel, the first of equals, int64 [B, S, S]."""
    side, found = given.truth.shape[1], []
    for maps_BDhw in torch.split(given.maps, _JUDGED):
        logits_NC = inputs(cell_rows(maps_BDhw)) @ weights_DC
        logits_BChw = logits_NC.reshape(len(maps_BDhw), *maps_BDhw.shape[2:], -1).permute(0, 3, 1, 2)
        upsampled = interpolate(logits_BChw.contiguous(), size=(side, side), mode="bilinear", align_corners=False)
        found.append(upsampled.numpy().argmax(axis=1))
    return np.concatenate(found)
