"""RankMe and uniformity, against their formulas, scipy's distances and cases with known values."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from polygrain.evaluate import feature_statistics
from polygrain.evaluate.feature_statistics import evaluate, rankme, uniformity
from polygrain.evaluate.store import SPLITS, Features
from polygrain.provenance.errors import UserError

BIG = 1 << 26


def test_rankme_is_the_entropy_of_the_singular_values() -> None:
    rows = np.random.default_rng(0).normal(size=(60, 9)).astype(np.float32) * np.geomspace(0.1, 5, 9, dtype=np.float32)
    lengths = np.sqrt(np.linalg.eigvalsh(rows.astype(np.float64).T @ rows.astype(np.float64)))
    share = lengths / lengths.sum() + 1e-7
    assert rankme(rows) == pytest.approx(math.prod(one**-one for one in share), rel=1e-9)


def test_rankme_of_known_spreads() -> None:
    assert rankme(np.eye(6, dtype=np.float32)) == pytest.approx(6, abs=1e-4)
    assert rankme(np.ones((6, 6), np.float32)) == pytest.approx(1, abs=1e-4)
    assert rankme(np.zeros((6, 6), np.float32)) == 1.0
    assert rankme(np.eye(6, dtype=np.float32) * 1000) == pytest.approx(6, abs=1e-4)


def test_uniformity_is_the_mean_potential_of_pairs_for_any_block() -> None:
    rows = np.random.default_rng(1).normal(size=(83, 12)).astype(np.float32)
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    expected = math.log(np.exp(-2 * pdist(unit, "sqeuclidean")).mean())
    found = [uniformity(rows, budget) for budget in (1, 3000, BIG)]
    assert found[0] == pytest.approx(expected, abs=1e-6)
    assert len(set(found)) == 1


def test_uniformity_of_known_spreads() -> None:
    assert uniformity(np.ones((5, 3), np.float32), BIG) == 0.0
    opposite = np.array([[1, 0], [-1, 0]], np.float32)
    assert uniformity(opposite, BIG) == pytest.approx(-8)
    wide = np.random.default_rng(2).normal(size=(400, 500)).astype(np.float32)
    assert uniformity(wide, BIG) == pytest.approx(-4, abs=0.05)  # nearly orthogonal: squared distance 2


def test_the_protocol_measures_test_features_and_says_no_direction(features) -> None:
    made = features(names=("toy", "other"))
    data = made.datasets["toy"]
    result = evaluate(made, images=50, byte_budget=BIG)
    assert list(result.values) == ["toy/rankme", "toy/uniformity", "other/rankme", "other/uniformity"]
    assert {number.measure.direction for number in result.values.values()} == {"none"}
    assert result.values["toy/rankme"].value == rankme(data.test.features)
    assert result.values["toy/uniformity"].value == uniformity(data.test.features[:50], BIG)
    assert not result.examples
    # neither labels nor other splits have a say
    other = replace(data, train=data.validation, test=replace(data.test, labels=np.roll(data.test.labels, 1)))
    again = evaluate(Features({"toy": other}), images=50, byte_budget=7)
    assert all(again.values[name] == result.values[name] for name in ("toy/rankme", "toy/uniformity"))


def test_collapsed_features_have_one_direction_and_are_noted(features) -> None:
    data = features().datasets["toy"]
    flat = {name: replace(getattr(data, name), features=getattr(data, name).features * 0 + 0.1) for name in SPLITS}
    result = evaluate(Features({"toy": replace(data, **flat)}), images=50, byte_budget=BIG)
    assert result.values["toy/rankme"].value == pytest.approx(1, abs=1e-3)
    assert result.values["toy/uniformity"].value == 0.0
    assert "collapsed" in result.note


def test_what_makes_no_sense_is_refused(features) -> None:
    with pytest.raises(UserError, match="feature-statistics: images"):
        evaluate(features(), images=1, byte_budget=BIG)
    with pytest.raises(UserError, match="feature-statistics: toy has one extracted test row"):
        evaluate(features(rows=(10, 10, 1)), images=5, byte_budget=BIG)


def test_it_starts_without_torch() -> None:
    code = f"import sys, polygrain.evaluate.run, {feature_statistics.__name__}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
