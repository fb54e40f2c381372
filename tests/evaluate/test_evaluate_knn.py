import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from polygrain.evaluate import knn
from polygrain.evaluate.store import Features
from polygrain.nn.neighbours import topk_cosine
from polygrain.provenance.errors import UserError

BIG = 1 << 26


def oracle(queries, bank, labels, k, temperature, classes):
    """Float64 brute force, written from the formula."""
    queries = queries.astype(np.float64) / np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
    bank = bank.astype(np.float64) / np.linalg.norm(bank.astype(np.float64), axis=1, keepdims=True)
    predicted = []
    for row in queries @ bank.T:
        nearest = np.argsort(-row, kind="stable")[:k]
        scores = np.zeros(classes)
        for j in nearest:
            scores[labels[j]] += np.exp(row[j] / temperature)
        predicted.append(int(np.argmax(scores)))
    return np.array(predicted)


def run(queries, bank, labels, choices, *, classes, temperature=0.07, byte_budget=BIG):
    return knn.predict(
        queries, bank, labels, choices, classes=classes, temperature=temperature, byte_budget=byte_budget
    )


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_predictions_equal_brute_force(features, temperature: float) -> None:
    data = features().datasets["toy"]
    choices = [1, 3, 20, 200]
    got = run(data.test.features, data.train.features, data.train.labels, choices, classes=5, temperature=temperature)
    for column, k in enumerate(choices):
        expected = oracle(data.test.features, data.train.features, data.train.labels, k, temperature, 5)
        np.testing.assert_array_equal(got[:, column], expected)


def test_the_votes_are_weighted() -> None:
    bank = np.array([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]], np.float32)
    query, labels = np.array([[1.0, 0.0]], np.float32), np.array([1, 0, 0])
    assert run(query, bank, labels, [3], classes=2, temperature=0.07).item() == 1  # e^(1/T) against 2 e^(0.6/T)
    assert run(query, bank, labels, [3], classes=2, temperature=2.0).item() == 0


def test_equal_votes_go_to_the_smaller_class() -> None:
    bank = np.array([[0.6, 0.8], [0.6, -0.8]], np.float32)
    query = np.array([[1.0, 0.0]], np.float32)
    for labels in ([2, 1], [1, 2]):
        assert run(query, bank, np.array(labels), [2], classes=3).item() == 1


def test_equal_similarities_are_taken_in_train_order() -> None:
    bank = np.ones((50, 3), np.float32)
    labels = np.array([2, 2, 1] + [0] * 47)
    assert run(bank[:1], bank, labels, [1, 3], classes=3).tolist() == [[2, 2]]


def test_a_row_depends_on_nothing_but_itself(features) -> None:
    data = features(rows=(300, 50, 67)).datasets["toy"]
    queries, bank, labels = data.test.features, data.train.features, data.train.labels
    whole = run(queries, bank, labels, [5, 50], classes=5)
    for budget in (1, 5_000, 40_000):
        np.testing.assert_array_equal(run(queries, bank, labels, [5, 50], classes=5, byte_budget=budget), whole)
    np.testing.assert_array_equal(run(queries[::-1].copy(), bank, labels, [5, 50], classes=5), whole[::-1])
    np.testing.assert_array_equal(run(queries[3:4], bank, labels, [5, 50], classes=5), whole[3:4])


def test_neighbours_are_those_that_methods_find(features) -> None:
    """The same in numpy and in torch, with rows that occur twice and one of zeros."""
    data = features().datasets["toy"]
    bank = np.concatenate([data.train.features, data.train.features[:50], np.zeros_like(data.train.features[:1])])
    for k in (1, 7, 51, len(bank)):
        products = knn._on_grid(data.test.features) @ knn._on_grid(bank).T
        similarities, places = knn._nearest(products, k)
        expected = topk_cosine(torch.from_numpy(data.test.features), torch.from_numpy(bank), k, byte_budget=BIG)
        np.testing.assert_array_equal(similarities, expected[0].numpy())
        np.testing.assert_array_equal(places, expected[1].numpy())


def test_it_starts_without_torch() -> None:
    code = "import sys, polygrain.evaluate.run, polygrain.evaluate.knn; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_length_of_features_does_not_matter(features) -> None:
    data = features().datasets["toy"]
    queries, bank, labels = data.test.features, data.train.features, data.train.labels
    np.testing.assert_array_equal(
        run(queries * 64, bank / 16, labels, [20], classes=5), run(queries, bank, labels, [20], classes=5)
    )


def test_k_is_selected_on_validation_and_test_labels_have_no_say(features) -> None:
    made = features(separation=0.3)
    data = made.datasets["toy"]
    values = {"k": [50, 1, 10], "temperature": 0.1, "byte_budget": BIG}
    result = knn.evaluate(made, **values)
    accuracy = {
        k: (
            oracle(data.validation.features, data.train.features, data.train.labels, k, 0.1, 5)
            == data.validation.labels
        )
        for k in values["k"]
    }
    best = max(sorted(accuracy), key=lambda k: accuracy[k].sum())
    assert result.selected == {"toy": {"k": best, "validation_top1": accuracy[best].mean()}}
    expected = oracle(data.test.features, data.train.features, data.train.labels, best, 0.1, 5)
    assert result.values["toy/top1"].value == (expected == data.test.labels).mean()
    np.testing.assert_array_equal(result.examples["toy"].predicted, expected)
    np.testing.assert_array_equal(result.examples["toy"].index, data.test.indices)

    shuffled = replace(data.test, labels=np.random.default_rng(1).permutation(data.test.labels))
    blind = knn.evaluate(Features({"toy": replace(data, test=shuffled)}), **values)
    assert blind.selected == result.selected
    np.testing.assert_array_equal(blind.examples["toy"].predicted, result.examples["toy"].predicted)
    assert blind.values != result.values


def test_equal_validation_accuracies_select_the_smaller_k(features) -> None:
    result = knn.evaluate(features(separation=20.0), k=[10, 5, 20], temperature=0.07, byte_budget=BIG)
    assert result.selected["toy"] == {"k": 5, "validation_top1": 1.0}
    assert {number.value for number in result.values.values()} == {1.0}


def test_collapsed_features_are_evaluated_and_noted(features) -> None:
    data = features().datasets["toy"]
    flat = {
        name: replace(getattr(data, name), features=np.ones_like(getattr(data, name).features))
        for name in ("train", "validation", "test")
    }
    result = knn.evaluate(Features({"toy": replace(data, **flat)}), k=[7], temperature=0.07, byte_budget=BIG)
    assert result.values["toy/top1"].value == 0.2
    assert "collapsed" in result.note


def test_values_that_make_no_sense_are_refused(features) -> None:
    good = {"k": [5], "temperature": 0.07, "byte_budget": BIG}
    for bad in ({"k": []}, {"k": [0]}, {"k": [1 << 13]}, {"temperature": 0.0}, {"byte_budget": 0}):
        with pytest.raises(UserError, match="knn: "):
            knn.evaluate(features(), **{**good, **bad})
    with pytest.raises(UserError, match="k = 401 exceeds the 400 extracted train rows of toy"):
        knn.evaluate(features(), **{**good, "k": [5, 401]})


def test_the_published_values_run(features) -> None:
    values = yaml.safe_load(Path("params/evaluate/knn.yaml").read_text(encoding="utf-8"))["values"]
    assert knn.evaluate(features(), **values).values["toy/top1"].value > 0.5
