"""Oracles: hand-worked Holm values, scipy's t distribution, a naive loop over seeds and examples, simulated nulls."""

import math
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from polygrain.report.statistics import NoTestError, difference, holm, mean_and_spread, satterthwaite
from polygrain.report.student import quantile, two_sided

Floats = npt.NDArray[np.float64]


def bernoulli(seed: int, seeds: int, images: int, share: float) -> npt.NDArray[np.bool_]:
    return np.random.default_rng(seed).random((seeds, images)) < share


def naive(first: Floats, second: Floats) -> tuple[float, float, float]:
    """The three variances by sums of squares, written out (a two-way layout without replication for each row)."""
    found, inside = [], 0.0
    for rows in (first, second):
        seeds, images = rows.shape
        grand = rows.mean()
        by_seed = sum((rows[s].mean() - grand) ** 2 for s in range(seeds)) / max(seeds - 1, 1)
        left = [
            (rows[s, n] - rows[s].mean() - rows[:, n].mean() + grand) ** 2 for s in range(seeds) for n in range(images)
        ]
        inside += sum(left) / max(seeds - 1, 1) / (images - 1) / seeds / images
        found.append(by_seed / seeds)
    differences = [first[:, n].mean() - second[:, n].mean() for n in range(first.shape[1])]
    return found[0], found[1], max(0.0, float(np.var(differences, ddof=1)) / first.shape[1] - inside)


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


@pytest.mark.parametrize("degrees", [0.7, 1, 2, 2.5, 3.7, 10, 99.3, 1999, 9999])
def test_students_t_is_that_of_scipy(degrees: float) -> None:
    for t in (0.0, 1e-6, 0.1, 1, 2, 5, 10, 30):
        assert two_sided(t, degrees) == two_sided(-t, degrees)
        assert two_sided(t, degrees) == pytest.approx(2 * stats.t.sf(t, degrees), rel=1e-9, abs=1e-200)
    for p in (0.5, 0.8, 0.975, 0.9995, 0.99999):
        assert quantile(p, degrees) == pytest.approx(stats.t.ppf(p, degrees), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seeds", [(3, 3), (5, 3), (7, 1), (1, 5)])
@pytest.mark.parametrize("kind", ["right and wrong", "floats"])
def test_agrees_with_a_naive_loop(seeds: tuple[int, int], kind: str) -> None:
    first, second = (bernoulli(n, count, 60, 0.6).astype(float) for n, count in enumerate(seeds))
    if kind == "floats":
        first, second = (rows * np.random.default_rng(9).gamma(2.0, size=rows.shape) - 1e3 for rows in (first, second))
    found, variances = difference(first, second), naive(first, second)
    error = math.sqrt(sum(variances))
    degrees = satterthwaite(variances, (seeds[0] - 1, seeds[1] - 1, 59))
    assert found.estimate == pytest.approx(first.mean() - second.mean())
    assert found.error == pytest.approx(error, rel=1e-9)
    assert found.degrees == pytest.approx(degrees, rel=1e-9)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.estimate) / error, degrees), rel=1e-6)
    half = stats.t.ppf(0.975, degrees) * error
    assert (found.low, found.high) == pytest.approx((found.estimate - half, found.estimate + half))
    expected = first.mean(1) - second.mean(1) if seeds[0] == seeds[1] else []
    assert found.by_seed == pytest.approx(list(expected))


def test_degrees_of_freedom_by_hand() -> None:
    """Seed variances at the upper end of a 70 % interval, for three seeds about 1 / 0.357 of them."""
    exact = stats.chi2.ppf(0.3, 2) / 2
    assert satterthwaite((1.0, 0.0, 0.0), (2, 2, 99)) == pytest.approx(2)
    assert satterthwaite((1.0, 1.0, 0.0), (2, 2, 99)) == pytest.approx(4)
    assert satterthwaite((0.0, 0.0, 1.0), (2, 2, 99)) == pytest.approx(99)
    mixed = (1 / exact + 1) ** 2 / (1 / exact**2 / 2 + 1 / 99)
    assert satterthwaite((1.0, 0.0, 1.0), (2, 2, 99)) == pytest.approx(mixed, rel=0.02)


def test_images_are_paired() -> None:
    """Two rows that agree but on the same 60 + 20 of 2000 images have the variance of the disagreements (McNemar)."""
    first = np.tile(np.arange(2000) < 1000, (3, 1))
    second = first.copy()
    second[:, :60], second[:, -20:] = False, True
    found = difference(first, second)
    assert found.estimate == pytest.approx(40 / 2000)
    assert found.error == pytest.approx(math.sqrt((80 - 40**2 / 2000) / 1999 / 2000))
    assert found.degrees == 1999


def test_no_difference_and_a_clear_one() -> None:
    row = bernoulli(4, 3, 500, 0.7)
    same = difference(row, row)
    assert (same.estimate, same.p, same.by_seed) == (0.0, 1.0, (0.0, 0.0, 0.0))
    fixed = np.tile(row[0], (3, 1))
    assert (difference(fixed, fixed).p, difference(fixed, fixed).error) == (1.0, 0.0)
    assert difference(np.ones((3, 9)), np.zeros((3, 9))).p == 0.0
    clear = difference(row, bernoulli(5, 3, 500, 0.4))
    assert clear.p < 0.01
    assert 0 < clear.low < clear.estimate < clear.high


def test_too_few_seeds_are_refused() -> None:
    spread, fixed = bernoulli(4, 4, 50, 0.7), np.tile(bernoulli(5, 1, 50, 0.7), (4, 1))
    for rows in ((spread[:2], spread), (fixed[:2], fixed)):
        with pytest.raises(NoTestError, match="a test needs 3 seeds of either row"):
            difference(*rows)
    for rows in ((spread, fixed), (fixed[:1], spread)):
        with pytest.raises(NoTestError, match="no spread over seeds, and the other 4 seeds; such a test needs 5"):
            difference(*rows)
    assert difference(bernoulli(4, 5, 50, 0.7), fixed[:1]).by_seed == ()


@pytest.mark.parametrize("factor", [2.0**-40, 0.1, 3.0, 1e12])
def test_the_unit_of_the_scores_changes_nothing_but_the_unit(factor: float) -> None:
    first, second = bernoulli(1, 3, 600, 0.6), bernoulli(2, 3, 600, 0.55)
    plain, scaled = difference(first, second), difference(factor * first, factor * second)
    assert scaled.p == pytest.approx(plain.p, rel=1e-9)
    for name in ("estimate", "low", "high", "error", "by_seed"):
        assert getattr(scaled, name) == pytest.approx(getattr(plain.times(factor), name), rel=1e-9)


def test_order_of_images_and_of_seeds_does_not_matter() -> None:
    """To the last bit."""
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(3, 200)), generator.normal(size=(4, 200))
    order = generator.permutation(200)
    assert difference(first[:, order], second[:, order]) == difference(first, second)
    assert difference(first[::-1], second).p == difference(first, second).p


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((0, 3), (1, 3)), ((1, 0), (1, 0)), ((3, 1), (3, 1))])
def test_shapes_that_do_not_fit(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    with pytest.raises(ValueError):
        difference(np.zeros(shapes[0], dtype=bool), np.zeros(shapes[1], dtype=bool))


# --- simulated nulls and power

LEVELS = (0.05, 0.01, 0.001)
DRAWS = 20_000


def p_values(deviation: float, seeds: tuple[int, int], images: int, gap: float = 0.0) -> Floats:
    """Of rows whose true means differ by `gap`: the law of the test's ingredients, in points of accuracy.

    Rows disagree on 10.5 % of the images. The t of many degrees of freedom comes from scipy, as it takes arrays.
    """
    generator = np.random.default_rng([round(1000 * deviation), *seeds, images])
    degrees = (seeds[0] - 1, seeds[1] - 1, images - 1)
    true = [deviation**2 / count if free else 0.0 for count, free in zip(seeds, degrees, strict=False)]
    true.append(0.105 / images * 1e4)
    drawn = [
        value * generator.chisquare(free, DRAWS) / free if free else np.zeros(DRAWS)
        for value, free in zip(true, degrees, strict=True)
    ]
    t = generator.normal(gap, math.sqrt(sum(true)), DRAWS) / np.sqrt(sum(drawn))
    freedom = np.array([satterthwaite((a, b, c), degrees) for a, b, c in zip(*drawn, strict=True)])
    return np.asarray(2 * stats.t.sf(np.abs(t), freedom))


@pytest.mark.parametrize("images", [2000, 10_000])
@pytest.mark.parametrize("seeds", [(3, 3), (5, 5), (10, 10), (5, 1), (10, 1)], ids=str)
def test_equal_rows_are_told_apart_as_often_as_the_level_says(seeds: tuple[int, int], images: int) -> None:
    """Seed deviations of 0.1 to 2 points. At 0.001 the bound leaves room for the 20 rejections that are expected."""
    for deviation in (0.1, 0.4, 1.0, 2.0):
        p = p_values(deviation, seeds, images)
        rates = [float((p < level).mean()) / level for level in LEVELS]
        assert 0.5 <= rates[0] <= 1.5, (deviation, rates)
        assert 0.5 <= rates[1] <= 1.5, (deviation, rates)
        assert rates[2] < 3, (deviation, rates)


def test_the_law_of_the_ingredients_is_that_of_scores() -> None:
    """600 pairs of equal rows of right and wrong, so that the variances are those that the test itself estimates."""
    generator, rejected = np.random.default_rng(5), 0
    for _ in range(600):
        easy = generator.normal(size=2000)
        rows = []
        for _ in range(2):
            own = 0.6 * generator.normal(size=2000) + 0.05 * generator.normal(size=(3, 1))
            rows.append(easy + own + 0.4 * generator.normal(size=(3, 2000)) > -1.2)
        rejected += difference(*rows).p < 0.05
    assert 0.5 * 0.05 <= rejected / 600 <= 1.5 * 0.05


def test_power(capsys: pytest.CaptureFixture[str]) -> None:
    """It prints how often a difference of 1 point is found at 0.05, and at 0.05 / 15, Holm's first step in table 1."""
    found = {}
    for count, level in product((3, 5, 10), (0.05, 0.05 / 15)):
        found[count, level] = float((p_values(0.4, (count, count), 10_000, gap=1.0) < level).mean())
    with capsys.disabled():
        print("\n1 point, deviation 0.4, 10,000 images:")
        print(*(f"{count} seeds at {level:.4f}: {share:.0%}" for (count, level), share in found.items()), sep="\n")
    assert found[3, 0.05] < found[5, 0.05] < found[10, 0.05]
    assert found[10, 0.05] > 0.7
