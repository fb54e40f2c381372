"""Statistics of frozen features without labels, which describe a run and do not say which of two is better.

`rankme`: the exponential of the entropy of the singular values s of the test features, as shares of their sum (Garrido
et al. 2023, which gives it as a hint of linear accuracy): exp(-sum p log p), p = s / |s|_1 + 1e-7. From 1, where all
features lie on one line, to about their width, where they spread equally over all directions.
`uniformity`: the logarithm of the mean over pairs of test images of exp(-2 |x - y|^2), for features of unit length
(Wang and Isola 2020). From about -4, where they spread over the whole sphere, to 0, where they are all equal.
The third statistic of this kind, alignment, needs two views of an image; the protocol `retrieval` reports it.

Legend: N rows, D width, R rows of a block.
"""

import math

import numpy as np
import numpy.typing as npt

from polygrain.evaluate.result import Measure, Number, Result
from polygrain.evaluate.sphere import GRID, on_grid
from polygrain.evaluate.store import Features, Floats
from polygrain.provenance.errors import UserError

_EPSILON = 1e-7  # of the shares, as in the definition of RankMe

RANK = Measure("1", "none", decimals=1)
UNIFORMITY = Measure("1", "none", decimals=2)


def evaluate(features: Features, *, images: int, byte_budget: int) -> Result:
    """Measure every data set's test features.

    images: of the test split, from its front, between which all pairs are taken for the uniformity. byte_budget: of the
    largest temporary array; it does not change the result. Raises UserError for values out of range.
    """
    if images < 2 or byte_budget < 1:
        raise UserError(
            f"feature-statistics: images ({images}) must be at least 2, byte_budget ({byte_budget}) positive"
        )
    values = dict[str, Number]()
    for name, dataset in features.datasets.items():
        if len(dataset.test) < 2:
            raise UserError(f"feature-statistics: {name} has one extracted test row, which makes no pair; extract more")
        values[f"{name}/rankme"] = Number(rankme(dataset.test.features), RANK)
        values[f"{name}/uniformity"] = Number(uniformity(dataset.test.features[:images], byte_budget), UNIFORMITY)
    return Result(values, note=features.note())


def rankme(rows_ND: Floats) -> float:
    """The effective number of directions of rows [N, D]; 1 where all rows are zeros."""
    lengths = np.linalg.svd(rows_ND.astype(np.float64), compute_uv=False)
    total = float(lengths.sum())
    if total == 0:
        return 1.0
    share: npt.NDArray[np.float64] = lengths / total + _EPSILON
    return math.exp(-float((share * np.log(share)).sum()))


def uniformity(rows_ND: Floats, byte_budget: int) -> float:
    """The logarithm of the mean Gaussian potential over all pairs of different rows."""
    unit_ND = on_grid(rows_ND)
    squared_N = np.square(unit_ND / GRID).sum(axis=1)
    count, sums = len(unit_ND), list[float]()
    block = max(1, byte_budget // (8 * count))
    for start in range(0, count, block):
        part_RD = unit_ND[start : start + block]
        inner_RN = part_RD @ unit_ND.T / GRID**2
        distance_RN = np.maximum(squared_N[start : start + block, None] + squared_N - 2.0 * inner_RN, 0.0)
        potential_RN = np.exp(-2.0 * distance_RN)
        potential_RN[np.arange(len(part_RD)), start + np.arange(len(part_RD))] = 0.0
        sums += potential_RN.sum(axis=1).tolist()
    # an exact sum of the sums of rows: the size of a block cannot change it
    return math.log(math.fsum(sums) / (count * (count - 1)))
