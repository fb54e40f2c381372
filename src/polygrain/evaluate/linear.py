"""Linear probe: softmax regression on frozen features, with weight decay, solved to its minimum by L-BFGS.

Features are standardised over all extracted train rows. For each weight decay lambda the probe minimises, in float64,

    mean over the labelled rows of -log softmax(x W + b)[y]  +  lambda / 2 |W|^2

which is convex: neither learning rate nor order of the rows decides the result. The largest decay starts at zero, every
other one at the minimum of the one before. The decay is selected on the validation split, for a label subset by
cross-validation among its own rows, for which no other label is seen: by accuracy, then loss, then the larger decay.
The test split is used once, with the selected one.

Legend: N rows, D width + 1 (the last input is the constant 1, for the bias), C classes, R decays.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from polygrain.evaluate.result import Number, Result, classified
from polygrain.evaluate.store import ALL, Features, FeatureSet, Split
from polygrain.provenance.errors import UserError

_HISTORY = 10
_DECREASE = 1e-4
_HALVINGS = 20

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Rows:
    """Inputs float64 [N, D] and labels int64 [N]."""

    x: Tensor
    y: Tensor

    def where(self, chosen_N: Tensor) -> "Rows":
        """The rows where it is True."""
        return Rows(self.x[chosen_N], self.y[chosen_N])


@dataclass(frozen=True)
class Solver:
    """When L-BFGS stops: after so many iterations, or when no entry of the gradient exceeds `tolerance`."""

    iterations: int
    tolerance: float


def evaluate(
    features: Features, *, labels: list[str], decays: list[float], folds: int, iterations: int, tolerance: float
) -> Result:
    """Train and test a probe for every data set and label subset.

    labels: `all` or names of label subsets. decays: to select from. folds: of the cross-validation in a subset, fewer
    where no class has so many rows. iterations, tolerance: see `Solver`. Raises UserError for values out of range and
    an unknown label subset.
    """
    if not labels or not decays or min(decays) < 0:
        raise UserError("linear: labels and decays need at least one entry each, and no decay may be negative")
    if folds < 2 or iterations < 1 or not tolerance > 0:
        raise UserError(f"linear: folds ({folds}) must be 2 or more, iterations and tolerance positive")
    solver, ordered = Solver(iterations, tolerance), sorted(set(decays), reverse=True)
    values, selected, examples = dict[str, Number](), {}, {}
    for name, dataset in features.datasets.items():
        inputs = _Inputs(dataset)
        validation = inputs(dataset.validation)
        for subset in labels:
            key = name if subset == ALL else f"{name}/{subset}"
            train = inputs(dataset.labelled(subset))
            weights_RDC = fit(train, ordered, solver, dataset.classes)
            pairs = [(weights_RDC, validation)]
            if subset != ALL:
                pairs = list(_cross_validation(train, ordered, solver, dataset.classes, folds))
            best = select(pairs)
            predicted_N = (inputs(dataset.test).x @ weights_RDC[best]).argmax(dim=1)
            numbers, examples[key] = classified(key, predicted_N.numpy(), dataset.test.labels, dataset.test.indices)
            values |= numbers
            right_N = (validation.x @ weights_RDC[best]).argmax(dim=1) == validation.y
            accuracy = int(right_N.sum()) / len(right_N)
            selected[key] = {"decay": ordered[best], "rows": len(train.y), "validation_top1": accuracy}
    return Result(values, selected, examples, features.note())


def fit(rows: Rows, decays: Sequence[float], solver: Solver, classes: int) -> Tensor:
    """Weights [R, D, C] that minimise the objective for each of the descending `decays`; the last row is the bias."""
    targets_NC = one_hot(rows.y, classes).to(rows.x.dtype)
    weights_DC, found = rows.x.new_zeros(rows.x.shape[1], classes), []
    for decay in decays:
        weights_DC = minimise(partial(objective, x_ND=rows.x, targets_NC=targets_NC, decay=decay), weights_DC, solver)
        found.append(weights_DC)
    return torch.stack(found)


def objective(weights_DC: Tensor, x_ND: Tensor, targets_NC: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """The objective, a scalar, and its gradient [D, C]."""
    log_share_NC = (x_ND @ weights_DC).log_softmax(dim=1)
    penalty_DC = decay * weights_DC
    penalty_DC[-1] = 0
    loss = (weights_DC * penalty_DC).sum() / 2 - (targets_NC * log_share_NC).sum() / len(x_ND)
    return loss, x_ND.T @ (log_share_NC.exp() - targets_NC) / len(x_ND) + penalty_DC


def minimise(objective: Objective, start: Tensor, solver: Solver) -> Tensor:
    """The minimum of a convex function, from `start`, by L-BFGS (Nocedal and Wright, Numerical Optimization, 7.5).

    A step is halved until the function falls by a share of what its slope promises (Armijo); it starts at 1, but in the
    first iteration at no more than 1 over the sum of the gradient's entries.
    """
    point, pairs = start, list[tuple[Tensor, Tensor]]()
    value, gradient = objective(point)
    for _ in range(solver.iterations):
        if float(gradient.abs().max()) <= solver.tolerance:
            break
        direction = -_times_inverse(gradient, pairs)
        slope = float((gradient * direction).sum())
        length = 1.0 if pairs else min(1.0, 1.0 / float(gradient.abs().sum()))
        for _ in range(_HALVINGS):
            after, after_gradient = objective(point + length * direction)
            if float(after - value) <= _DECREASE * length * slope:
                break
            length /= 2
        else:  # rounding hides any further descent
            break
        step, change = length * direction, after_gradient - gradient
        if float((step * change).sum()) > 0:
            pairs = [*pairs, (step, change)][-_HISTORY:]
        point, value, gradient = point + step, after, after_gradient
    return point


def _times_inverse(gradient: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The gradient times the approximate inverse Hessian of the last steps and changes (algorithm 7.4)."""
    vector, factors = gradient, []
    for step, change in reversed(pairs):
        factors.append((step * vector).sum() / (step * change).sum())
        vector = vector - factors[-1] * change
    if pairs:
        step, change = pairs[-1]
        vector = vector * ((step * change).sum() / change.square().sum())
    for (step, change), factor in zip(pairs, reversed(factors), strict=True):
        vector = vector + (factor - (change * vector).sum() / (step * change).sum()) * step
    return vector


def _cross_validation(
    rows: Rows, decays: Sequence[float], solver: Solver, classes: int, folds: int
) -> list[tuple[Tensor, Rows]]:
    """For each fold the weights of the other rows, and the fold; a class's rows are dealt to the folds in turn."""
    ranks_NC = one_hot(rows.y, classes).cumsum(dim=0)
    rank_N = ranks_NC.gather(1, rows.y[:, None])[:, 0] - 1
    fold_N = rank_N % folds
    return [
        (fit(rows.where(fold_N != fold), decays, solver, classes), rows.where(fold_N == fold))
        for fold in range(int(fold_N.max()) + 1)
    ]


def select(pairs: Sequence[tuple[Tensor, Rows]]) -> int:
    """The position of the best of R probes, by the sums over pairs of weights [R, D, C] and the rows that judge them.

    By most right, then the smallest loss, then the first.
    """
    wrong, losses = list[Tensor](), list[Tensor]()
    for weights_RDC, rows in pairs:
        logits_RCN = (rows.x @ weights_RDC).mT
        wrong.append((logits_RCN.argmax(dim=1) != rows.y).sum(dim=1))
        losses.append(cross_entropy(logits_RCN, rows.y.expand(len(logits_RCN), -1), reduction="none").sum(dim=1))
    ranked = zip(torch.stack(wrong).sum(dim=0).tolist(), torch.stack(losses).sum(dim=0).tolist(), strict=True)
    return min((*scores, position) for position, scores in enumerate(ranked))[-1]


class _Inputs:
    """Standardises the features of a data set by its train split and appends the constant 1."""

    def __init__(self, dataset: FeatureSet) -> None:
        train = dataset.train.features.astype(np.float64)
        self.mean, deviation = train.mean(axis=0), train.std(axis=0)
        # A dimension that is constant up to rounding becomes zero: division would amplify the rounding.
        constant = deviation <= 1e-6 * np.abs(train).max(axis=0)
        self.scale = np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, deviation))

    def __call__(self, split: Split) -> Rows:
        """Return the inputs and labels of a split."""
        standard = (split.features - self.mean) * self.scale
        inputs = np.concatenate([standard, np.ones((len(standard), 1))], axis=1)
        return Rows(torch.from_numpy(inputs), torch.from_numpy(split.labels))
