"""Which classes are in a scene: a linear layer with a sigmoid for each class on the frozen image vector, by L-BFGS.

It minimises, in float64 and on inputs standardised over the train scenes,

    mean over scenes of sum over classes of -log sigmoid(+-(x W + b))  +  lambda / 2 |W|^2

with + for a class that is present: convex, solved to its minimum. The weight decay is selected by `map` on validation,
of equals the larger; test is used once. `map` is the mean over classes of the average precision among the scenes;
`label-ranking` the mean over scenes of the average precision of the scene's ranking of classes.

Legend: N scenes, D width + 1 (the last input is the constant 1), C classes, R decays.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from polygrain.data.dense.coco import Picture
from polygrain.evaluate.linear import Solver, minimise
from polygrain.evaluate.result import ACCURACY, Examples, Number, Result
from polygrain.evaluate.scenes.given import SceneEncoder
from polygrain.evaluate.scenes.standard import Standard
from polygrain.provenance.errors import UserError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def evaluate(encoder: SceneEncoder, *, train: int, decays: list[float], iterations: int, tolerance: float) -> Result:
    """Train and test the layer.

    train: scenes from the front of the train split, at most. decays: to select from. iterations, tolerance: see
    `polygrain.evaluate.linear.Solver`. Raises UserError for values out of range, a split without images, and test or
    validation scenes of which none holds an object.
    """
    if train < 1 or not decays or min(decays) < 0 or iterations < 1 or not tolerance > 0:
        raise UserError(
            f"scene-labels: train ({train}), iterations ({iterations}) and tolerance ({tolerance}) must be positive,"
            " decays at least one, none negative"
        )
    scenes, ordered = encoder.scenes, sorted(set(decays), reverse=True)
    pictures = {"train": scenes.pictures("train", train)}
    pictures |= {split: scenes.pictures(split) for split in ("validation", "test")}
    x, present = {}, {}
    for split, shown in pictures.items():
        x[split] = torch.cat([batch.pooled.float().cpu() for batch in encoder.encoded(split, shown)])
        present[split] = np.stack([scenes.present(picture) for picture in shown])
        if not bool(torch.isfinite(x[split]).all()):
            raise UserError(f"scene-labels: a vector of the {split} split is not finite, the encoder has diverged")
    standard = Standard(x["train"])
    inputs = {split: standard(rows) for split, rows in x.items()}
    signs_NC = torch.from_numpy(np.where(present["train"], 1.0, -1.0))
    weights_RDC = _fit(inputs["train"], signs_NC, ordered, Solver(iterations, tolerance))
    scores = [
        mean_precision((inputs["validation"] @ weights_DC).numpy(), present["validation"]) for weights_DC in weights_RDC
    ]
    best = max(range(len(ordered)), key=lambda place: (scores[place], -place))
    logits_NC = (inputs["test"] @ weights_RDC[best]).numpy()
    chosen = {"decay": ordered[best], "validation_map": scores[best], "scenes": len(pictures["train"])}
    return _result(scenes.name, scenes.classes, logits_NC, present["test"], pictures["test"], chosen)


def _fit(x_ND: Tensor, signs_NC: Tensor, decays: Sequence[float], solver: Solver) -> Tensor:
    """Weights [R, D, C] for each of the descending decays; each starts at the solution of the one before."""
    weights_DC, found = x_ND.new_zeros(x_ND.shape[1], signs_NC.shape[1]), []
    for decay in decays:
        weights_DC = minimise(partial(objective, x_ND=x_ND, signs_NC=signs_NC, decay=decay), weights_DC, solver)
        found.append(weights_DC)
    return torch.stack(found)


def objective(weights_DC: Tensor, x_ND: Tensor, signs_NC: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """The objective, a scalar, and its gradient [D, C]. signs_NC: 1 for a class that is present, else -1."""
    margins_NC = signs_NC * (x_ND @ weights_DC)
    penalty_DC = decay * weights_DC
    penalty_DC[-1] = 0
    loss = (weights_DC * penalty_DC).sum() / 2 - logsigmoid(margins_NC).sum() / len(x_ND)
    return loss, penalty_DC - x_ND.T @ (signs_NC * (-margins_NC).sigmoid()) / len(x_ND)


def average_precision(scores: Floats, present: Bools) -> float:
    """The mean, over what is present, of the precision at its score; equal scores are retrieved together.

    scores, present: [n], at least one present.
    """
    order = np.argsort(-scores, kind="stable")
    sorted_ = scores[order]
    last = np.append(np.flatnonzero(np.diff(sorted_)), len(sorted_) - 1)  # the last of each group of equals
    right = np.cumsum(present[order])[last]
    return float((np.diff(right, prepend=0) * right / (last + 1)).sum() / right[-1])


def mean_precision(logits_NC: Floats, present_NC: Bools) -> float:
    """Mean average precision over the classes that are present anywhere. Raises UserError when none is."""
    found = [average_precision(logits_NC[:, place], present_NC[:, place]) for place in _anywhere(present_NC)]
    return float(np.mean(found))


def _anywhere(present_NC: Bools) -> list[int]:
    places: list[int] = np.flatnonzero(present_NC.any(axis=0)).tolist()
    if not places:
        raise UserError("scene-labels: no scene of a split holds an object; there is nothing to find")
    return places


def _result(
    name: str,
    names: Sequence[str],
    logits_NC: Floats,
    present_NC: Bools,
    pictures: Sequence[Picture],
    chosen: dict[str, float | int],
) -> Result:
    """A scene without objects has no ranking: it is no example of `label-ranking`."""
    rows = np.flatnonzero(present_NC.any(axis=1))
    ranking = np.array([average_precision(logits_NC[row], present_NC[row]) for row in rows.tolist()])
    numbers = {"map": mean_precision(logits_NC, present_NC), "label-ranking": float(ranking.mean())}
    numbers |= {
        f"ap-{names[place]}": average_precision(logits_NC[:, place], present_NC[:, place])
        for place in _anywhere(present_NC)
    }
    index = np.array([pictures[row].id for row in rows.tolist()], dtype=np.int64)
    values = {f"{name}/{metric}": Number(value, ACCURACY) for metric, value in numbers.items()}
    return Result(values, {name: chosen}, {name: Examples(index, {"label-ranking": ranking})})
