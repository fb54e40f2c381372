"""Logistic regression on frozen features as they are or of unit length, on shares of the labels or all of them.

It is the solver and the selection of `linear` (softmax regression, float64, L-BFGS from the strongest penalty on,
cross-validation inside a label subset) without standardisation, and with the penalty of the usual libraries,

    C sum over the labelled rows of -log softmax(x W + b)[y]  +  1 / 2 |W|^2,

which is that of `linear` with lambda = 1 / (C N) for N rows: the same C for more rows is a weaker penalty. C is
selected where `linear` selects its decay: on validation, for a label subset by cross-validation among its own rows.

DINOv2's code (eval/log_regression.py): raw features, an intercept, C from 1e-6 to 1e5. Mugs (specification, 7.4): unit
length, no intercept, 1 / C from 0.01 to 0.3; it reports the best of them on test, which is not done here.
"""

from functools import partial
from typing import Literal

import numpy as np

from polygrain.evaluate.linear import Search, Solver, searched
from polygrain.evaluate.result import Result
from polygrain.evaluate.scaling import Doubles
from polygrain.evaluate.sphere import GRID, on_grid
from polygrain.evaluate.store import Features, Floats
from polygrain.provenance.errors import UserError


def evaluate(
    features: Features,
    *,
    inputs: Literal["raw", "unit"],
    intercept: bool,
    labels: list[str],
    c: list[float],
    folds: int,
    iterations: int,
    tolerance: float,
) -> Result:
    """Train and test a regression for every data set and label subset.

    inputs: features as they are, or of unit length. intercept: whether there is a bias b. labels: `all` or names of
    label subsets. c: values of C to select from. folds, iterations, tolerance: as in `linear.evaluate`. Raises
    UserError for values out of range and an unknown label subset.
    """
    if not labels or not c or min(c) <= 0:
        raise UserError("logistic: labels and c need at least one entry each, and every c must be positive")
    if folds < 2 or iterations < 1 or not tolerance > 0:
        raise UserError(f"logistic: folds ({folds}) must be 2 or more, iterations and tolerance positive")
    prepare = partial(with_constant, unit=inputs == "unit", constant=float(intercept))
    search = Search(labels, "c", sorted(set(c)), lambda c, rows: 1 / (c * rows), folds, Solver(iterations, tolerance))
    return searched(features, lambda dataset: prepare, search)


def with_constant(rows_ND: Floats, *, unit: bool, constant: float) -> Doubles:
    """Inputs float64 [N, D + 1] of rows [N, D]. constant: the last input; 0 leaves the bias where it starts, at 0."""
    wide_ND = on_grid(rows_ND) / GRID if unit else rows_ND.astype(np.float64)
    return np.concatenate([wide_ND, np.full((len(wide_ND), 1), constant)], axis=1)
