"""Oracles: hand-worked Holm values, closed forms for Bernoulli data, a naive loop over images and seeds."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from polygrain.report.statistics import bootstrap_difference, holm, mean_and_spread


def bernoulli(seed: int, seeds: int, images: int, share: float) -> npt.NDArray[np.bool_]:
    return np.random.default_rng(seed).random((seeds, images)) < share


def exact(share: float, images: int) -> npt.NDArray[np.bool_]:
    return (np.arange(images) < round(share * images))[None]


def naive(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], draws: int) -> npt.NDArray[np.float64]:
    generator, replicates = np.random.default_rng(3), []
    for _ in range(draws):
        images = generator.integers(0, first.shape[1], first.shape[1])
        a, b = (
            rows[generator.integers(0, len(rows), max(1, len(rows) - 1))][:, images].mean() for rows in (first, second)
        )
        replicates.append(a - b)
    return np.array(replicates)


def test_mean_and_sample_deviation() -> None:
    mean, spread = mean_and_spread([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    assert spread == pytest.approx(math.sqrt(7 / 3))


def test_one_value_has_no_spread_and_none_is_refused() -> None:
    assert mean_and_spread([0.5]) == (0.5, None)
    with pytest.raises(ValueError):
        mean_and_spread([])


@pytest.mark.parametrize(
    ("raw", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.6, 0.5], [1.0, 1.0]),
        ([0.01, 0.01, 0.01], [0.03, 0.03, 0.03]),
        ([0.2], [0.2]),
        ([], []),
    ],
)
def test_holm_by_hand(raw: list[float], adjusted: list[float]) -> None:
    assert holm(raw) == pytest.approx(adjusted)


def test_interval_of_one_seed_has_the_binomial_width() -> None:
    found = bootstrap_difference(exact(0.3, 2000), exact(0.0, 2000), draws=20_000, key="width")
    assert found.estimate == 0.3
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(math.sqrt(0.3 * 0.7 / 2000), rel=0.03)


def test_images_are_paired() -> None:
    """Two rows that agree but on 60 + 20 of 2000 images: the variance is that of the disagreements (McNemar's)."""
    first = exact(0.5, 2000)
    second = first.copy()
    second[0, :60], second[0, -20:] = False, True
    found = bootstrap_difference(first, second, draws=20_000, key="paired")
    expected = math.sqrt(80 - 40**2 / 2000) / 2000
    assert found.estimate == pytest.approx(40 / 2000)
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(expected, rel=0.04)


def test_variance_of_the_seeds_is_unbiased() -> None:
    """Seeds right on all, all and no image, against none: two of three are drawn, both the last in 1/9 of the draws."""
    first = np.array([[True], [True], [False]]).repeat(50, axis=1)
    found = bootstrap_difference(first, np.zeros((1, 50), dtype=bool), draws=20_000, key="seeds")
    assert found.p == pytest.approx(2 / 9, rel=0.05)


def test_agrees_with_a_naive_loop() -> None:
    first, second = bernoulli(1, 2, 60, 0.6), bernoulli(2, 3, 60, 0.5)
    replicates = naive(first, second, 8000)
    found = bootstrap_difference(first, second, draws=20_000, key="naive")
    low, high = np.quantile(replicates, [0.025, 0.975])
    below = np.mean(replicates <= 1e-12)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.015)
    assert found.p == pytest.approx(2 * below, abs=0.03)


def test_float_scores_agree_with_a_naive_loop() -> None:
    """More patterns than are few: every example has its own."""
    generator = np.random.default_rng(11)
    easy = generator.normal(size=200)
    first, second = (easy + 0.3 * generator.normal(size=(seeds, 200)) - 1e3 for seeds in (2, 3))
    second += 0.03
    found = bootstrap_difference(first, second, draws=20_000, key="floats")
    replicates = naive(first, second, 8000)
    assert found.estimate == pytest.approx(first.mean() - second.mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(replicates, [0.025, 0.975])), abs=0.004)
    assert found.p == pytest.approx(2 * min(np.mean(replicates <= 0), np.mean(replicates >= 0)), abs=0.03)


def test_float_scores_that_repeat_agree_with_a_naive_loop() -> None:
    first, second = (np.round(np.random.default_rng(seed).gamma(2.0, size=(2, 500)), 0) / 3 for seed in (1, 2))
    found = bootstrap_difference(first, second, draws=20_000, key="few")
    low, high = np.quantile(naive(first, second, 8000), [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.012)


@pytest.mark.parametrize("factor", [2.0**-40, 0.1, 3.0, 1e12])
def test_the_unit_of_the_scores_changes_nothing_but_the_unit(factor: float) -> None:
    """Also for scores of right and wrong as floats, whose p value is then that of the whole numbers."""
    first, second = bernoulli(1, 3, 600, 0.6), bernoulli(2, 3, 600, 0.55)
    plain = bootstrap_difference(first, second, draws=2000, key="k")
    scaled = bootstrap_difference(factor * first, factor * second, draws=2000, key="k")
    assert scaled.p == plain.p
    assert scaled.estimate == pytest.approx(factor * plain.estimate)
    assert (scaled.low, scaled.high) == pytest.approx((factor * plain.low, factor * plain.high), rel=1e-9)


@pytest.mark.parametrize("images", [80, 4000])
def test_equal_float_rows_have_no_difference_in_any_replicate(images: int) -> None:
    """Exactly none, whatever the order of summation."""
    row = np.random.default_rng(0).normal(size=(1, images)) * 1e-7
    found = bootstrap_difference(row, row, draws=300, key="equal")
    assert (found.p, found.low, found.high) == (1.0, 0.0, 0.0)


def test_no_difference_and_a_clear_one() -> None:
    row = bernoulli(4, 3, 500, 0.7)
    assert bootstrap_difference(row[:1], row[:1], draws=500, key="same").p == 1.0
    assert bootstrap_difference(row, row, draws=2000, key="same").p > 0.8
    clear = bootstrap_difference(row, bernoulli(5, 3, 500, 0.4), draws=2000, key="clear")
    assert clear.p == pytest.approx(2 / 2001)
    assert 0 < clear.low < clear.estimate < clear.high


def test_level_holds_when_there_is_no_difference() -> None:
    rejected = [
        bootstrap_difference(bernoulli(2 * n, 1, 300, 0.7), bernoulli(2 * n + 1, 1, 300, 0.7), draws=400, key="").p
        < 0.05
        for n in range(400)
    ]
    assert 0.02 < np.mean(rejected) < 0.085


def test_deterministic_and_keyed() -> None:
    first, second = bernoulli(6, 3, 200, 0.6), bernoulli(7, 2, 200, 0.55)
    found = bootstrap_difference(first, second, draws=1000, key="one")
    assert bootstrap_difference(first, second, draws=1000, key="one") == found
    assert bootstrap_difference(first, second, draws=1000, key="two") != found


def test_order_of_images_does_not_matter() -> None:
    first, second = bernoulli(6, 3, 200, 0.6), bernoulli(7, 2, 200, 0.55)
    order = np.random.default_rng(8).permutation(200)
    straight = bootstrap_difference(first, second, draws=300, key="k")
    assert bootstrap_difference(first[:, order], second[:, order], draws=300, key="k") == straight


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((0, 3), (1, 3)), ((1, 0), (1, 0))])
def test_shapes_that_do_not_fit(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    with pytest.raises(ValueError):
        bootstrap_difference(np.zeros(shapes[0], dtype=bool), np.zeros(shapes[1], dtype=bool), draws=10, key="")
