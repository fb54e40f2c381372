"""Spread over seeds, a bootstrap for the difference of two rows, and Holm's correction. Torch-free.

Seeds and test images are crossed: every seed of a row answers the same images. The bootstrap therefore resamples
both factors (Owen 2007, "The pigeonhole bootstrap"), images jointly for the two rows, seeds for each row on its
own. Of S seeds S - 1 are drawn, which makes the variance of the resampled mean equal the unbiased estimate
s^2 / S (McCarthy and Snowden 1985); drawing S would shrink it by (S - 1) / S, a third at three seeds. A row with one
seed resamples images only: its result speaks of that seed.

Random draws come from numpy's PCG64, seeded with the SHA-256 of a key that names the comparison, so a result
depends neither on the order of comparisons nor on which others are made.

Legend: S seeds, N test images, K distinct patterns of right and wrong over all seeds of both rows, D draws.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# A pattern of right and wrong is kept as the bits of an int64.
_MOST_SEEDS = 62

Booleans = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Difference:
    """Accuracy of one row minus that of another, as fractions."""

    estimate: float
    low: float
    """Lower end of the 95 % percentile interval."""
    high: float
    p: float
    """Two-sided p value of no difference, at least 2 / (draws + 1)."""


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


def bootstrap_difference(first_SN: Booleans, second_SN: Booleans, *, draws: int, key: str) -> Difference:
    """Compare two rows by which test images each of their seeds got right.

    first_SN, second_SN: whether seed s is right on image n; same images in the same order, numbers of seeds may
    differ. draws: bootstrap replicates. key: names the comparison and seeds it. The p value is twice the smaller
    share of replicates on either side of zero (zero counts for both), with one added to counts and draws. Raises
    ValueError on shapes that do not fit and on more than 62 seeds.
    """
    if first_SN.ndim != 2 or second_SN.ndim != 2 or first_SN.shape[1] != second_SN.shape[1]:
        raise ValueError(f"shapes {first_SN.shape} and {second_SN.shape}: need [seeds, images], same images")
    if 0 in first_SN.shape or 0 in second_SN.shape or draws < 1 or len(first_SN) + len(second_SN) > _MOST_SEEDS:
        raise ValueError(f"needs at least one seed, image and draw, and at most {_MOST_SEEDS} seeds in all")
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(_entropy(key))))
    images = first_SN.shape[1]
    right_DS = _resampled_images(np.concatenate([first_SN, second_SN]), draws, generator)
    first_D, first_drawn = _resampled_seeds(right_DS[:, : len(first_SN)], generator)
    second_D, second_drawn = _resampled_seeds(right_DS[:, len(first_SN) :], generator)
    # Whole numbers up to here, so the sign of a replicate is exact.
    scaled_D = first_D * second_drawn - second_D * first_drawn
    low, high = np.quantile(scaled_D / (images * first_drawn * second_drawn), [0.025, 0.975])
    smaller = min(int((scaled_D <= 0).sum()), int((scaled_D >= 0).sum()))
    return Difference(
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


def _resampled_images(right_SN: Booleans, draws: int, generator: np.random.Generator) -> npt.NDArray[Any]:
    """Number of right answers [D, S] of each seed on `draws` resamples of the images.

    Images with the same pattern of right and wrong are exchangeable: how often each pattern is drawn is multinomial,
    the same law as drawing the images one by one, and needs K instead of N numbers a draw.
    """
    seeds, images = right_SN.shape
    codes_K, counts_K = np.unique(2 ** np.arange(seeds) @ right_SN.astype(np.int64), return_counts=True)
    right_KS = codes_K[:, None] >> np.arange(seeds) & 1
    drawn_DK = generator.multinomial(images, counts_K / images, size=draws)
    return np.asarray(drawn_DK @ right_KS)


def _resampled_seeds(right_DS: npt.NDArray[Any], generator: np.random.Generator) -> tuple[npt.NDArray[Any], int]:
    """Right answers [D] summed over the drawn seeds, and how many are drawn."""
    draws, seeds = right_DS.shape
    drawn = max(1, seeds - 1)
    chosen = generator.integers(0, seeds, size=(draws, drawn))
    return np.take_along_axis(right_DS, chosen, axis=1).sum(axis=1), drawn
