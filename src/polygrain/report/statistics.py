"""Spread over seeds, a bootstrap for the difference of two rows, and Holm's correction. Torch-free.

Seeds and test examples are crossed: every seed of a row answers the same examples. The bootstrap therefore resamples
both factors (Owen 2007, "The pigeonhole bootstrap"), examples jointly for the two rows, seeds for each row on its
own. Of S seeds S - 1 are drawn, which makes the variance of the resampled mean equal the unbiased estimate
s^2 / S (McCarthy and Snowden 1985); drawing S would shrink it by (S - 1) / S, a third at three seeds. A row with one
seed resamples examples only: its result speaks of that seed.

Random draws come from numpy's PCG64, seeded with the SHA-256 of a key that names the comparison, so a result
depends neither on the order of comparisons nor on which others are made.

Scores are added as whole numbers: floats are rounded to whole multiples of a power of two, about 1e-16 of the largest
times the number of terms. So every sum is exact in float64, and a replicate's sign depends on no order of summation.

Legend: S seeds, N test examples, K distinct patterns of scores over all seeds of both rows, D draws.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Up to so many patterns the numbers of each are drawn, for more the examples themselves: whatever needs fewer draws.
_FEW_PATTERNS = 64
_BLOCK = 1 << 22  # numbers drawn at a time

Floats = npt.NDArray[np.float64]
Scores = npt.NDArray[np.float64 | np.int64 | np.bool_]


@dataclass(frozen=True)
class Contrast:
    """Mean score of one row minus that of another."""

    estimate: float
    low: float
    """Lower end of the 95 % percentile interval."""
    high: float
    p: float
    """Two-sided p value of no difference, at least 2 / (draws + 1)."""

    def times(self, factor: float) -> "Contrast":
        """The same in another unit."""
        return Contrast(factor * self.estimate, factor * self.low, factor * self.high, self.p)


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


def bootstrap_difference(first_SN: Scores, second_SN: Scores, *, draws: int, key: str) -> Contrast:
    """Compare two rows by what each of their seeds scored on each test example.

    first_SN, second_SN: score of seed s on example n, finite; same examples in the same order, numbers of seeds may
    differ. draws: bootstrap replicates. key: names the comparison and seeds it. The p value is twice the smaller
    share of replicates on either side of zero (zero counts for both), with one added to counts and draws. Raises
    ValueError on shapes that do not fit.
    """
    if first_SN.ndim != 2 or second_SN.ndim != 2 or first_SN.shape[1] != second_SN.shape[1]:
        raise ValueError(f"shapes {first_SN.shape} and {second_SN.shape}: need [seeds, examples], same examples")
    if 0 in first_SN.shape or 0 in second_SN.shape or draws < 1:
        raise ValueError("needs at least one seed, example and draw")
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(_entropy(key))))
    scores_SN, step = _whole(np.concatenate([first_SN, second_SN]))
    sums_DS = _resampled_examples(scores_SN, draws, generator)
    first_D, first_drawn = _resampled_seeds(sums_DS[:, : len(first_SN)], generator)
    second_D, second_drawn = _resampled_seeds(sums_DS[:, len(first_SN) :], generator)
    scaled_D = first_D * second_drawn - second_D * first_drawn
    terms = first_SN.shape[1] * first_drawn * second_drawn
    low, high = step * np.quantile(scaled_D / terms, [0.025, 0.975])
    smaller = min(int((scaled_D <= 0).sum()), int((scaled_D >= 0).sum()))
    return Contrast(
        estimate=float(first_SN.mean() - second_SN.mean()),
        low=float(low),
        high=float(high),
        p=min(1.0, 2 * (smaller + 1) / (draws + 1)),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values in the order given (Holm 1979): the i-th smallest of m times m - i + 1, never decreasing."""
    order = sorted(range(len(p_values)), key=lambda position: p_values[position])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, position in enumerate(order):
        largest = max(largest, min(1.0, p_values[position] * (len(p_values) - rank)))
        adjusted[position] = largest
    return adjusted


def _entropy(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest(), "little")


def _whole(scores_SN: Scores) -> tuple[Floats, float]:
    """Scores as whole numbers of a step, small enough that all sums over seeds and examples are exact, and the step."""
    given_SN = scores_SN.astype(np.float64)
    most = float(np.abs(given_SN).max()) * given_SN.size * len(given_SN)
    if most < 2**53 and (given_SN == np.rint(given_SN)).all():
        return given_SN, 1.0
    step = 2.0 ** (math.frexp(most)[1] - 52)
    return np.rint(given_SN / step) + 0.0, step  # adding zero makes -0 an ordinary zero


def _resampled_examples(scores_SN: Floats, draws: int, generator: np.random.Generator) -> Floats:
    """Sum of the scores [D, S] of each seed over `draws` resamples of the examples.

    Examples with the same pattern of scores are exchangeable: how often each pattern is drawn is multinomial, the same
    law as drawing the examples one by one, and needs K instead of N numbers a draw. Scores of right and wrong have few
    patterns; where nearly every example has its own, the examples are drawn.
    """
    examples = scores_SN.shape[1]
    # reversed, so that the last seed decides the order first
    patterns_SK, counts_K = np.unique(scores_SN[::-1], axis=1, return_counts=True)
    few = len(counts_K) <= max(_FEW_PATTERNS, examples // 8)
    scores_KS = patterns_SK[::-1].T if few else scores_SN.T
    rows = max(1, _BLOCK // len(scores_KS))
    sums = []
    for start in range(0, draws, rows):
        block = min(rows, draws - start)
        if few:
            drawn_DK = generator.multinomial(examples, counts_K / examples, size=block)
        else:
            places = generator.integers(0, examples, size=(block, examples))
            places += np.arange(block)[:, None] * examples
            drawn_DK = np.bincount(places.ravel(), minlength=block * examples).reshape(block, examples)
        sums.append(drawn_DK.astype(np.float64) @ scores_KS)
    return np.concatenate(sums)


def _resampled_seeds(sums_DS: Floats, generator: np.random.Generator) -> tuple[Floats, int]:
    """Scores [D] summed over the drawn seeds, and how many are drawn."""
    draws, seeds = sums_DS.shape
    drawn = max(1, seeds - 1)
    chosen = generator.integers(0, seeds, size=(draws, drawn))
    return np.take_along_axis(sums_DS, chosen, axis=1).sum(axis=1), drawn
