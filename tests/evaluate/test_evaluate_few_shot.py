"""Few-shot ridge regression, against scikit-learn's and on known data."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from polygrain.evaluate import few_shot
from polygrain.evaluate.few_shot import draw_rows, evaluate, fit
from polygrain.evaluate.scaling import Scaling
from polygrain.evaluate.store import SPLITS, Features, FeatureSet
from polygrain.nn.random import hash64
from polygrain.provenance.errors import UserError

VALUES = {"shots": [1, 5], "draws": 6, "strengths": [0.01, 1.0, 0.1], "seed": 0}


def test_weights_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    for rows, width in ((10, 30), (40, 6)):
        x, labels = generator.normal(2, 3, size=(rows, width)), np.arange(rows) % 5
        found = fit(x, labels, [3.0, 0.01], 5)
        centred = x - x.mean(axis=0)
        for weights, strength in zip(found, (3.0, 0.01), strict=True):
            oracle = Ridge(alpha=strength * np.square(centred).sum() / rows, solver="svd").fit(x, np.eye(5)[labels])
            np.testing.assert_allclose(weights[:-1], oracle.coef_.T, atol=1e-12)
            np.testing.assert_allclose(weights[-1], oracle.intercept_, atol=1e-11)


def test_a_case_by_hand() -> None:
    """Two rows at -1 and 1: X X^T has the diagonal 1, so W = 1 / (2 + strength) for the second class."""
    weights = fit(np.array([[-1.0], [1.0]]), np.array([0, 1]), [0.5], 2)
    np.testing.assert_allclose(weights[0], [[-0.4, 0.4], [0.5, 0.5]])


def test_draws_hold_n_images_of_each_class_and_smaller_ones_lie_within_larger(features) -> None:
    data = features(classes=4).datasets["toy"]
    five, one = (draw_rows(data, shot, 3, 2) for shot in (5, 1))
    assert data.train.labels[five].tolist() == [label for label in range(4) for _ in range(5)]
    assert one.tolist() == five[::5].tolist()
    assert len(np.unique(five)) == 20
    assert five.tolist() != draw_rows(data, 5, 3, 1).tolist() != draw_rows(data, 5, 4, 1).tolist()
    # by torch's draws: the image of smallest hash, as unsigned words
    order = sorted(range(400), key=lambda row: int(hash64(3, "few-shot", 2, int(data.train.indices[row]))) % 2**64)
    assert one.tolist() == [next(row for row in order if data.train.labels[row] == label) for label in range(4)]


def test_an_image_is_drawn_by_its_position_in_the_data_set(features) -> None:
    data = features().datasets["toy"]
    order = np.random.default_rng(1).permutation(400)
    parts = (getattr(data.train, part)[order] for part in ("features", "labels", "indices"))
    moved = replace(data, train=type(data.train)(*parts))
    for shot in (1, 10):
        first, second = (
            data.train.indices[draw_rows(data, shot, 0, 0)],
            moved.train.indices[draw_rows(moved, shot, 0, 0)],
        )
        assert first.tolist() == second.tolist()


def _correlated(data: FeatureSet) -> FeatureSet:
    """The data set with noise along one direction, which a weak penalty lets the weights avoid."""
    generator = np.random.default_rng(7)
    direction, splits = generator.normal(size=24), {}
    for name in SPLITS:
        part = getattr(data, name)
        noise = 8 * generator.normal(size=(len(part), 1)) * direction
        splits[name] = replace(part, features=(part.features + noise).astype(np.float32))
    return replace(data, **splits)


def test_features_are_standardised_by_the_train_rows_and_constant_ones_are_zero() -> None:
    rows = np.random.default_rng(0).normal(3, 2, size=(50, 4)).astype(np.float32)
    rows[:, 2] = 0.1
    scaling = Scaling(rows)
    found = scaling(rows)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(found.std(axis=0), [1, 1, 0, 1], atol=1e-12)
    np.testing.assert_allclose(scaling(rows[:5] * 2)[:, 0], found[:5, 0] + rows[:5, 0] / rows[:, 0].std(), rtol=1e-5)


def test_the_whole_protocol_by_scikit_learn(features) -> None:
    data = _correlated(features(separation=0.7).datasets["toy"])
    result = evaluate(Features({"toy": data}), **VALUES)
    mean, scale = data.train.features.astype(float).mean(axis=0), data.train.features.astype(float).std(axis=0)
    split = {name: (getattr(data, name).features - mean) / scale for name in SPLITS}
    for shot in (1, 5):
        right = {strength: {"validation": 0, "test": np.zeros(200)} for strength in VALUES["strengths"]}
        for draw in range(6):
            rows = draw_rows(data, shot, 0, draw)
            x = split["train"][rows]
            for strength, sums in right.items():
                alpha = strength * np.square(x - x.mean(axis=0)).sum() / len(x)
                oracle = Ridge(alpha=alpha, solver="svd").fit(x, np.eye(5)[data.train.labels[rows]])
                for name in SPLITS[1:]:
                    hits = oracle.predict(split[name]).argmax(axis=1) == getattr(data, name).labels
                    sums[name] = sums[name] + (hits if name == "test" else hits.sum())
        best = max(sorted(right, reverse=True), key=lambda strength: right[strength]["validation"])
        chosen = {"strength": best, "validation_top1": right[best]["validation"] / (6 * 150)}
        assert result.selected[f"toy/{shot}-shot"] == chosen
        scores = result.examples[f"toy/{shot}-shot"].scores["top1"]
        assert scores.dtype == np.float64
        np.testing.assert_allclose(scores, right[best]["test"] / 6, atol=1e-12)
        assert result.values[f"toy/{shot}-shot/top1"].value == scores.mean()
        assert result.agrees(f"toy/{shot}-shot/top1")
    assert result.values["toy/5-shot/top1"].value > result.values["toy/1-shot/top1"].value
    # the test could fail: neither the first nor the last strength is the best throughout
    assert result.selected["toy/5-shot"]["strength"] < 1.0


def test_perfect_features_score_one_and_permuted_labels_chance(features) -> None:
    result = evaluate(features(separation=40.0), **VALUES)
    assert {number.value for number in result.values.values()} == {1.0}
    assert {chosen["strength"] for chosen in result.selected.values()} == {1.0}  # the largest of equals
    made = features(rows=(400, 500, 2000))
    data, generator = made.datasets["toy"], np.random.default_rng(5)
    splits = {
        name: replace(getattr(data, name), labels=generator.permutation(getattr(data, name).labels)) for name in SPLITS
    }
    chance = evaluate(Features({"toy": replace(data, **splits)}), **VALUES)
    assert all(number.value == pytest.approx(0.2, abs=0.03) for number in chance.values.values())


def test_test_labels_have_no_say(features) -> None:
    made = features(separation=0.4)
    data = made.datasets["toy"]
    other = replace(data, test=replace(data.test, labels=np.roll(data.test.labels, 1)))
    first, second = evaluate(made, **VALUES), evaluate(Features({"toy": other}), **VALUES)
    assert first.selected == second.selected
    assert first.values != second.values


def test_the_same_bits_twice_and_other_draws_for_another_seed(features) -> None:
    made = features(separation=0.4)
    first, again, other = (evaluate(made, **{**VALUES, "seed": seed}) for seed in (0, 0, 1))
    for key, rows in first.examples.items():
        np.testing.assert_array_equal(rows.scores["top1"], again.examples[key].scores["top1"])
        assert (rows.scores["top1"] != other.examples[key].scores["top1"]).any()


def test_collapsed_features_are_chance_and_noted(features) -> None:
    data = features().datasets["toy"]
    flat = replace(
        data, **{name: replace(getattr(data, name), features=getattr(data, name).features * 0 + 0.1) for name in SPLITS}
    )
    result = evaluate(Features({"toy": flat}), **VALUES)
    assert {number.value for number in result.values.values()} == {0.2}
    assert "collapsed" in result.note


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shots": []}, "few-shot: shots"),
        ({"shots": [0]}, "few-shot: shots"),
        ({"draws": 0}, "few-shot: shots"),
        ({"strengths": [0.0]}, "few-shot: strengths"),
        ({"shots": [81]}, "few-shot: class 0 of toy has 80 extracted train images, 81 are asked for"),
    ],
)
def test_values_that_make_no_sense_are_refused(features, change, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(features(), **{**VALUES, **change})


def test_it_starts_without_torch() -> None:
    code = f"import sys, polygrain.evaluate.run, {few_shot.__name__}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
