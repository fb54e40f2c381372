"""Clusters and their agreement with classes, against scikit-learn, brute force and known data."""

import subprocess
import sys
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from polygrain.evaluate import clustering
from polygrain.evaluate.clustering import adjusted_rand, assign, contingency, evaluate, matching, normalised_information
from polygrain.evaluate.sphere import cosines, on_grid
from polygrain.evaluate.store import SPLITS, Features
from polygrain.provenance.errors import UserError

VALUES = {"over": 3, "restarts": 3, "iterations": 30, "seed": 0}


def test_products_on_the_grid_are_exact_and_near_the_cosine() -> None:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(50, 128)).astype(np.float32)
    wide = rows.astype(np.float64)
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    grid = on_grid(rows)
    np.testing.assert_allclose(cosines(grid, grid), unit @ unit.T, atol=2e-7)
    order = generator.permutation(128)
    np.testing.assert_array_equal(cosines(grid[:, order], grid[:, order]), cosines(grid, grid))
    assert not on_grid(np.zeros((1, 3), np.float32)).any()


@pytest.mark.parametrize("clusters", [1, 4, 9])
def test_agreement_is_that_of_scikit_learn(clusters: int) -> None:
    generator = np.random.default_rng(clusters)
    labels = generator.integers(0, 4, 300)
    for noise in (0.0, 0.4, 1.0):
        found = np.where(generator.random(300) < noise, generator.integers(0, clusters, 300), labels % clusters)
        counts = contingency(found, labels, clusters, 4)
        assert counts.sum() == 300
        assert counts[0, 1] == ((found == 0) & (labels == 1)).sum()
        assert normalised_information(counts) == pytest.approx(normalized_mutual_info_score(labels, found), abs=1e-12)
        assert adjusted_rand(counts) == pytest.approx(adjusted_rand_score(labels, found), abs=1e-12)


def test_agreement_where_there_is_one_part() -> None:
    one = np.array([[7]])
    assert normalised_information(one) == adjusted_rand(one) == 1.0
    assert normalised_information(np.array([[3, 4]])) == adjusted_rand(np.array([[3, 4]])) == 0.0


def test_the_matching_is_the_best_of_all_and_ties_are_decided() -> None:
    generator = np.random.default_rng(3)
    for _ in range(20):
        counts = generator.integers(0, 9, (5, 5))
        right = {order: sum(counts[k, order[k]] for k in range(5)) for order in permutations(range(5))}
        found = tuple(matching(counts).tolist())
        assert right[found] == max(right.values())
    # all matchings are equal here: the outcome moves with neither a constant nor the solver's order of search
    assert matching(np.zeros((4, 4), np.int64)).tolist() == matching(np.full((4, 4), 8)).tolist()
    tied = np.array([[5, 5, 0], [5, 5, 0], [0, 0, 1]])
    assert sorted(matching(tied).tolist()[:2]) == [0, 1]
    assert matching(tied).tolist() == matching(tied * 7).tolist()


def test_two_clusters_by_hand() -> None:
    """Around the directions 0 and 90 degrees; the centre is the direction of the sum."""
    angles = np.deg2rad([0, 10, 20, 80, 90, 100])
    rows = on_grid(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    found = clustering.k_means(rows, 2, 20, (0, 0))
    degrees = np.sort(np.rad2deg(np.arctan2(found.centres[:, 1], found.centres[:, 0])))
    np.testing.assert_allclose(degrees, [10, 90], atol=1e-5)
    assert found.objective / 2**32 == pytest.approx(2 + 4 * np.cos(np.deg2rad(10)), abs=1e-6)


def test_an_iteration_never_lowers_the_objective(features) -> None:
    rows = on_grid(features(separation=0.5).datasets["toy"].train.features)
    objectives = [clustering.k_means(rows, 7, iterations, (0, 1)).objective for iterations in range(1, 12)]
    assert objectives == sorted(objectives)
    assert objectives[-1] > objectives[0]


def test_starts_are_rows_drawn_by_their_squared_distance() -> None:
    """Three directions of 2, 1 and 1 rows: the second centre is never on the first one."""
    rows = on_grid(np.array([[1.0, 0], [1, 0], [0, 1], [-1, 0]]))
    firsts, seconds = [], {(1, 0): [], (0, 1): [], (-1, 0): []}
    for number in range(2000):
        first, second = (tuple(np.sign(row).astype(int).tolist()) for row in clustering.start(rows, 2, (0, number)))
        firsts.append(first)
        seconds[first].append(second)
    assert np.mean([first == (1, 0) for first in firsts]) == pytest.approx(0.5, abs=0.04)
    assert all(first not in found for first, found in seconds.items())
    # from (1, 0): squared distances 2 and 4
    assert np.mean([second == (-1, 0) for second in seconds[1, 0]]) == pytest.approx(2 / 3, abs=0.05)
    assert len(clustering.start(rows[:2], 2, (0, 0))) == 2  # all rows on one centre


def test_perfect_features_score_one_and_permuted_labels_chance(features) -> None:
    result = evaluate(features(separation=40.0), **{**VALUES, "restarts": 8})
    for key in ("toy", "toy/over"):
        assert result.values[f"{key}/accuracy"].value == 1.0
    assert result.values["toy/nmi"].value == pytest.approx(1.0, abs=1e-12)
    assert result.values["toy/ari"].value == 1.0
    assert result.values["toy/over/ari"].value < 1.0
    data, generator = features(rows=(400, 50, 2000)).datasets["toy"], np.random.default_rng(5)
    parts = {name: getattr(data, name) for name in SPLITS}
    splits = {name: replace(part, labels=generator.permutation(part.labels)) for name, part in parts.items()}
    chance = evaluate(Features({"toy": replace(data, **splits)}), **VALUES).values
    for key in ("toy", "toy/over"):
        assert chance[f"{key}/accuracy"].value == pytest.approx(0.2, abs=0.03)
        assert chance[f"{key}/ari"].value == pytest.approx(0, abs=0.01)
        assert chance[f"{key}/nmi"].value < 0.02


def test_test_images_go_to_the_nearest_centre_under_names_from_train(features) -> None:
    made = features(separation=0.8)
    data = made.datasets["toy"]
    result = evaluate(made, **VALUES)
    train, test = on_grid(data.train.features), on_grid(data.test.features)
    for key, clusters in (("toy", 5), ("toy/over", 15)):
        found = [clustering.k_means(train, clusters, 30, (0, number)) for number in range(3)]
        best = max(found, key=lambda one: one.objective)
        placed = assign(train, best.centres)
        if key == "toy":
            right = max(int((np.array(order)[placed] == data.train.labels).sum()) for order in permutations(range(5)))
            names = matching(contingency(placed, data.train.labels, 5, 5))
            assert (names[placed] == data.train.labels).sum() == right
        else:
            names = np.array([np.bincount(data.train.labels[placed == k], minlength=5).argmax() for k in range(15)])
        np.testing.assert_array_equal(
            result.examples[key].scores["accuracy"], names[assign(test, best.centres)] == data.test.labels
        )
        assert result.agrees(f"{key}/accuracy")
    other = replace(data, test=replace(data.test, labels=np.roll(data.test.labels, 1)))
    assert evaluate(Features({"toy": other}), **VALUES).selected == result.selected


def test_the_same_bits_twice_and_the_length_of_features_does_not_matter(features) -> None:
    made = features(separation=0.5)
    data = made.datasets["toy"]
    longer = replace(
        data, **{name: replace(getattr(data, name), features=getattr(data, name).features * 8) for name in SPLITS}
    )
    first, again, scaled = (evaluate(given, **VALUES) for given in (made, made, Features({"toy": longer})))
    assert first.values == again.values == scaled.values
    assert first.selected == again.selected == scaled.selected


def test_collapsed_features_are_one_cluster_and_noted(features) -> None:
    data = features().datasets["toy"]
    flat = {name: replace(getattr(data, name), features=getattr(data, name).features * 0 + 0.1) for name in SPLITS}
    result = evaluate(Features({"toy": replace(data, **flat)}), **VALUES)
    assert result.values["toy/nmi"].value == result.values["toy/ari"].value == 0.0
    assert result.values["toy/accuracy"].value == 0.2
    assert "collapsed" in result.note


@pytest.mark.parametrize("change", [{"over": 1}, {"restarts": 0}, {"iterations": 0}])
def test_values_that_make_no_sense_are_refused(features, change) -> None:
    with pytest.raises(UserError, match="clustering: over"):
        evaluate(features(), **{**VALUES, **change})


def test_more_clusters_than_rows_are_refused(features) -> None:
    with pytest.raises(UserError, match="clustering: 15 clusters are asked of the 14 extracted train rows of toy"):
        evaluate(features(rows=(14, 10, 10)), **VALUES)


def test_it_starts_without_torch() -> None:
    code = f"import sys, polygrain.evaluate.run, {clustering.__name__}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
