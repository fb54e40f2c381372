"""Spread over seeds, a test for the difference of two rows, and Holm's correction. Torch-free.

Seeds and test examples are crossed: every seed of a row answers the same examples. The variance of a difference of two
rows' means therefore has three parts (the multi-reader multi-case design with seeds as readers; Obuchowski and Rockette
1995): that of the seeds of either row, and that of the test examples.

    v = s_1^2 / S_1 + s_2^2 / S_2 + max(0, s_D^2 / N - r_1 / (S_1 N) - r_2 / (S_2 N))

s_k^2 is the variance of the seeds' means, s_D^2 that of the examples' differences (means over seeds), and r_k the mean
square of what seed and example alone do not explain, which both of them contain.

t = difference / sqrt(v) has about Satterthwaite's degrees of freedom. From the variances of three seeds they come out
too large whenever these come out too small, which is when t is too large. So they are computed with the seeds'
variances at the upper end of a one-sided 70 % interval. tests/report simulates how often equal rows differ then: with
3 to 10 seeds in both rows, of equal scatter, 0.5 to 1.1 times the nominal rate at 0.05 and 0.01, and less than 3 times
at 0.001. Where only one row has seeds, that holds from 5 seeds on, and fewer are refused. With three seeds, where one
row scatters ten times as much as the other, the rates are up to 1.2, 2.1 and 9 times the nominal ones.

Legend: S seeds, N test examples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from polygrain.report.student import quantile, two_sided

UPPER = 0.7
"""Side of the interval whose end the seeds' variances take in the degrees of freedom."""
SEEDS, SEEDS_ALONE = 3, 5
"""How many seeds a test needs where both rows have seeds, and where one does not scatter."""

Floats = npt.NDArray[np.float64]
Scores = npt.NDArray[np.float64 | np.int64 | np.bool_]


class NoTestError(Exception):
    """Two rows that cannot be compared, with the reason as a reader of the table should see it."""


@dataclass(frozen=True)
class Contrast:
    """Mean score of one row minus that of another."""

    estimate: float
    low: float
    """Lower end of the 95 % interval."""
    high: float
    p: float
    """Two-sided p value of no difference."""
    error: float
    """Standard error of the estimate."""
    degrees: float
    """Of freedom."""
    by_seed: tuple[float, ...]
    """The difference of each seed; empty when the rows have different numbers of seeds."""

    def times(self, factor: float) -> "Contrast":
        """The same in another unit, `factor` of which make one of this."""
        return replace(
            self,
            estimate=factor * self.estimate,
            low=factor * self.low,
            high=factor * self.high,
            error=factor * self.error,
            by_seed=tuple(factor * value for value in self.by_seed),
        )

    def detectable(self, level: float, power: float = 0.8) -> float:
        """The difference that a test at `level` finds with this probability, if it has this standard error."""
        return self.error * (quantile(1 - level / 2, self.degrees) + quantile(power, self.degrees))


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1 in the denominator); the latter is None for a single value.

    Raises ValueError when there is no value.
    """
    if not values:
        raise ValueError("no values")
    array = np.asarray(values, dtype=np.float64)
    if len(array) == 1:
        return float(array[0]), None
    return float(array.mean()), float(array.std(ddof=1))


def difference(first_SN: Scores, second_SN: Scores) -> Contrast:
    """Compare two rows by what each of their seeds scored on each test example.

    first_SN, second_SN: score of seed s on example n, finite; same examples in the same order. Sums are exact to the
    last bit, so they depend on no order. Raises NoTestError for too few seeds, ValueError on shapes that do not fit.
    """
    if first_SN.ndim != 2 or second_SN.ndim != 2 or first_SN.shape[1] != second_SN.shape[1]:
        raise ValueError(f"shapes {first_SN.shape} and {second_SN.shape}: need [seeds, examples], same examples")
    if 0 in first_SN.shape or len(second_SN) == 0 or first_SN.shape[1] < 2:
        raise ValueError("needs at least one seed and two examples")
    first, second = _parts(first_SN), _parts(second_SN)
    _check_seeds(first, second)
    examples = first_SN.shape[1]
    across = _variance([a - b for a, b in zip(first.examples, second.examples, strict=True)]) / examples
    inside = sum(row.residual / (row.count * examples) for row in (first, second))
    variances = (first.variance / first.count, second.variance / second.count, max(0.0, across - inside))
    degrees = satterthwaite(variances, (first.count - 1, second.count - 1, examples - 1))
    pairs = zip(first.seeds, second.seeds, strict=True) if first.count == second.count else ()
    return _contrast(first.mean - second.mean, math.sqrt(sum(variances)), degrees, tuple(a - b for a, b in pairs))


def satterthwaite(variances: tuple[float, float, float], degrees: tuple[int, int, int]) -> float:
    """Degrees of freedom of the sum of two rows' seed variances and that of the examples; see the module."""
    first, second, examples = variances
    parts = (first * _upper(degrees[0]), second * _upper(degrees[1]), examples)
    spent = sum(part**2 / own for part, own in zip(parts, degrees, strict=True) if own and part)
    return sum(parts) ** 2 / spent if spent else float(degrees[2])


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values in the order given (Holm 1979): the i-th smallest of m times m - i + 1, never decreasing."""
    order = sorted(range(len(p_values)), key=lambda position: p_values[position])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, position in enumerate(order):
        largest = max(largest, min(1.0, p_values[position] * (len(p_values) - rank)))
        adjusted[position] = largest
    return adjusted


@dataclass(frozen=True)
class _Row:
    """A row's scores by their two factors."""

    mean: float
    seeds: list[float]
    """Mean of each seed."""
    examples: list[float]
    """Mean of each example."""
    variance: float
    """Of the seeds' means; 0 for one seed."""
    residual: float
    """Mean square of what seed and example alone do not explain; 0 for one seed."""

    @property
    def count(self) -> int:
        return len(self.seeds)


def _parts(scores_SN: Scores) -> _Row:
    scores = scores_SN.astype(np.float64)
    seeds = [_mean(row) for row in scores]
    columns: list[float] = [_mean(column) for column in scores.T]
    mean = _mean(seeds)
    if len(seeds) == 1:
        return _Row(mean, seeds, columns, 0.0, 0.0)
    left = scores - np.array(seeds)[:, None] - np.array(columns) + mean
    residual = math.fsum((left**2).ravel()) / ((len(seeds) - 1) * (len(columns) - 1))
    return _Row(mean, seeds, columns, _variance(seeds), residual)


def _check_seeds(first: _Row, second: _Row) -> None:
    scattered = [row.count for row in (first, second) if row.variance > 0]
    least = min(first.count, second.count)
    if len(scattered) == 1 and scattered[0] < SEEDS_ALONE:
        raise NoTestError(
            f"one of the two rows has no spread over seeds, and the other {scattered[0]} seeds;"
            f" such a test needs {SEEDS_ALONE}"
        )
    if least < SEEDS and len(scattered) != 1:
        raise NoTestError(f"a test needs {SEEDS} seeds of either row")


def _mean(values: Floats | Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def _upper(degrees: int) -> float:
    """By what a variance is multiplied for the upper end of its interval (Wilson and Hilferty 1931); 1 without one."""
    if degrees == 0:
        return 1.0
    width = 2 / (9 * degrees)
    return float((1 - width + NormalDist().inv_cdf(1 - UPPER) * math.sqrt(width)) ** -3)


def _contrast(estimate: float, error: float, degrees: float, by_seed: tuple[float, ...]) -> Contrast:
    if error == 0:
        p = 1.0 if estimate == 0 else 0.0
        return Contrast(estimate, estimate, estimate, p, error, degrees, by_seed)
    half = quantile(0.975, degrees) * error
    return Contrast(
        estimate, estimate - half, estimate + half, two_sided(estimate / error, degrees), error, degrees, by_seed
    )
