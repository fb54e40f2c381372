"""Linear probe: softmax regression on frozen features, with weight decay, solved to its minimum by L-BFGS.

Features are standardised over all extracted train rows. For each weight decay lambda the probe minimises, in float64,

    mean over the labelled rows of -log softmax(x W + b)[y]  +  lambda / 2 |W|^2

which is convex: neither learning rate nor order of the rows decides the result. The largest decay starts at zero, every
other one at the minimum of the one before. The decay is selected on the validation split, for a label subset by
cross-validation among its own rows, for which no other label is seen: by accuracy, then loss, then the larger decay.
The test split is used once, with the selected one.

More rows than `store.BLOCK` stay float32, where they are, and are turned into float64 inputs block by block, each time
that they are used. Sums over blocks are added up in their order.

Legend: N rows (of a block), D width + 1 (the last input is the constant 1, for the bias), C classes, R decays.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from polygrain.evaluate.result import Examples, Number, Result, classified
from polygrain.evaluate.scaling import Doubles, Scaling
from polygrain.evaluate.store import ALL, BLOCK, Features, FeatureSet, Floats, Split
from polygrain.provenance.errors import UserError

_HISTORY = 10
_DECREASE = 1e-4
_HALVINGS = 20

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
Prepare = Callable[[Floats], Doubles]


@dataclass(frozen=True)
class Rows:
    """Rows [N, D or width] and labels int64 [N]."""

    x: Tensor
    y: Tensor
    prepare: Prepare | None = None
    """Makes inputs float64 [N, D] of some rows; None where x holds the inputs."""

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs float64 and labels of at most `BLOCK` rows at a time."""
        for x, y_N in zip(torch.split(self.x, BLOCK), torch.split(self.y, BLOCK), strict=True):
            yield x if self.prepare is None else torch.from_numpy(self.prepare(x.numpy())), y_N

    def where(self, chosen_N: Tensor) -> "Rows":
        """The rows where it is True."""
        return prepared(self.x[chosen_N], self.y[chosen_N], self.prepare)


def prepared(x: Tensor, y_N: Tensor, prepare: Prepare | None) -> Rows:
    """Rows whose inputs are made now if one block holds them all, else whenever they are used."""
    if prepare is None or len(y_N) > BLOCK:
        return Rows(x, y_N, prepare)
    return Rows(torch.from_numpy(prepare(x.numpy())), y_N)


@dataclass(frozen=True)
class Solver:
    """When L-BFGS stops: after so many iterations, or when no entry of the gradient exceeds `tolerance`."""

    iterations: int
    tolerance: float


@dataclass(frozen=True)
class Search:
    """What is fitted and how the penalty is selected."""

    labels: Sequence[str]
    """`all` or names of label subsets."""
    name: str
    """Of the choices, in what is selected."""
    choices: Sequence[float]
    """To select from, the strongest penalty first."""
    decay: Callable[[float, int], float]
    """The weight decay of a choice for so many rows."""
    folds: int
    solver: Solver


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
    ordered = sorted(set(decays), reverse=True)
    search = Search(labels, "decay", ordered, lambda decay, rows: decay, folds, Solver(iterations, tolerance))
    return searched(features, lambda dataset: Scaling(dataset.train.features).inputs, search)


def searched(features: Features, prepare_of: Callable[[FeatureSet], Prepare], search: Search) -> Result:
    """The result of a search on every data set. prepare_of: what makes a data set's inputs of its features."""
    values, selected, examples = dict[str, Number](), {}, dict[str, Examples]()
    for name, dataset in features.datasets.items():
        prepare = prepare_of(dataset)
        validation, test = _rows(dataset.validation, prepare), _rows(dataset.test, prepare)
        for subset in search.labels:
            key = name if subset == ALL else f"{name}/{subset}"
            train = _rows(dataset.labelled(subset), prepare)
            weights_RDC = _fitted(train, search, dataset.classes)
            pairs = [(weights_RDC, validation)]
            if subset != ALL:
                pairs = list(_cross_validation(train, search, dataset.classes))
            best = select(pairs)
            predicted_N = predict(test, weights_RDC[best])
            numbers, examples[key] = classified(key, predicted_N.numpy(), dataset.test.labels, dataset.test.indices)
            values |= numbers
            right_N = predict(validation, weights_RDC[best]) == validation.y
            accuracy = int(right_N.sum()) / len(right_N)
            selected[key] = {search.name: search.choices[best], "rows": len(train.y), "validation_top1": accuracy}
    return Result(values, selected, examples, features.note())


def _rows(split: Split, prepare: Prepare) -> Rows:
    return prepared(torch.from_numpy(split.features), torch.from_numpy(split.labels), prepare)


def _fitted(rows: Rows, search: Search, classes: int) -> Tensor:
    decays = [search.decay(choice, len(rows.y)) for choice in search.choices]
    return fit(rows, decays, search.solver, classes)


def fit(rows: Rows, decays: Sequence[float], solver: Solver, classes: int) -> Tensor:
    """Weights [R, D, C] that minimise the objective for each of the descending `decays`; the last row is the bias."""
    first_ND, _ = next(rows.blocks())
    weights_DC, found = first_ND.new_zeros(first_ND.shape[1], classes), []
    for decay in decays:
        weights_DC = minimise(partial(labelled_objective, rows=rows, decay=decay), weights_DC, solver)
        found.append(weights_DC)
    return torch.stack(found)


def labelled_objective(weights_DC: Tensor, rows: Rows, decay: float) -> tuple[Tensor, Tensor]:
    """`objective` of labels, of which no table [N, C] is made."""
    gains, gradients_DC = [], torch.zeros_like(weights_DC)
    for x_ND, y_N in rows.blocks():
        log_share_NC = (x_ND @ weights_DC).log_softmax(dim=1)
        gains.append(log_share_NC.gather(1, y_N[:, None]).sum())
        excess_NC = log_share_NC.exp_()
        excess_NC[torch.arange(len(y_N)), y_N] -= 1
        gradients_DC += x_ND.T @ excess_NC
    penalty_DC = decay * weights_DC
    penalty_DC[-1] = 0
    loss = (weights_DC * penalty_DC).sum() / 2 - torch.stack(gains).sum() / len(rows.y)
    return loss, gradients_DC / len(rows.y) + penalty_DC


def objective(weights_DC: Tensor, x_ND: Tensor, targets_NC: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """The objective, a scalar, and its gradient [D, C]; targets_NC: the share of each class."""
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


def _cross_validation(rows: Rows, search: Search, classes: int) -> Iterator[tuple[Tensor, Rows]]:
    """For each fold the weights of the other rows, and the fold; a class's rows are dealt to the folds in turn."""
    order_N = rows.y.argsort(stable=True)
    count_C = rows.y.bincount(minlength=classes)
    first_C = count_C.cumsum(dim=0) - count_C
    rank_N = torch.empty_like(order_N)
    rank_N[order_N] = torch.arange(len(order_N)) - first_C[rows.y[order_N]]
    fold_N = rank_N % search.folds
    for fold in range(int(fold_N.max()) + 1):
        yield _fitted(rows.where(fold_N != fold), search, classes), rows.where(fold_N == fold)


def select(pairs: Sequence[tuple[Tensor, Rows]]) -> int:
    """The position of the best of R probes, by the sums over pairs of weights [R, D, C] and the rows that judge them.

    By most right, then the smallest loss, then the first.
    """
    wrong, losses = list[Tensor](), list[Tensor]()
    for weights_RDC, rows in pairs:
        for x_ND, y_N in rows.blocks():
            judged = [_judged(x_ND @ weights_DC, y_N) for weights_DC in weights_RDC]
            wrong.append(torch.stack([mistakes for mistakes, _ in judged]))
            losses.append(torch.stack([loss for _, loss in judged]))
    ranked = zip(torch.stack(wrong).sum(dim=0).tolist(), torch.stack(losses).sum(dim=0).tolist(), strict=True)
    return min((*scores, position) for position, scores in enumerate(ranked))[-1]


def _judged(logits_NC: Tensor, y_N: Tensor) -> tuple[Tensor, Tensor]:
    return (logits_NC.argmax(dim=1) != y_N).sum(), cross_entropy(logits_NC, y_N, reduction="none").sum()


def predict(rows: Rows, weights_DC: Tensor) -> Tensor:
    """The most likely classes, int64 [N]; the first of equals."""
    return torch.cat([(x_ND @ weights_DC).argmax(dim=1) for x_ND, _ in rows.blocks()])
