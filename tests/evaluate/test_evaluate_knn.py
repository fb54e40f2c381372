import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from polygrain.evaluate import knn
from polygrain.evaluate.store import SPLITS, Features, FeatureSet
from polygrain.nn.neighbours import topk_cosine
from polygrain.provenance.errors import UserError

BIG = 1 << 26
VALUES = {"spaces": ["raw"], "k": [5], "temperature": 0.07, "shrinkage": 0.001, "byte_budget": BIG}


def oracle(queries, bank, labels, k, temperature, classes):
    """Float64 brute force, written from the formula."""
    return votes(unit(queries.astype(np.float64)) @ unit(bank.astype(np.float64)).T, labels, k, temperature, classes)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def votes(similarities, labels, k, temperature, classes):
    predicted = []
    for row in similarities:
        nearest = np.argsort(-row, kind="stable")[:k]
        scores = np.zeros(classes)
        for j in nearest:
            scores[labels[j]] += np.exp(row[j] / temperature)
        predicted.append(int(np.argmax(scores)))
    return np.array(predicted)


def mapped(data: FeatureSet, change) -> FeatureSet:
    """The data set with `change` applied to the features of every split."""
    return replace(
        data, **{name: replace(getattr(data, name), features=change(getattr(data, name).features)) for name in SPLITS}
    )


def stretched(data: FeatureSet) -> FeatureSet:
    """The data set under an invertible map: rotated, with variances that differ by 1,000, moved."""
    width = data.train.features.shape[1]
    generator = np.random.default_rng(4)
    rotation, _ = np.linalg.qr(generator.normal(size=(width, width)))
    scale, offset = np.geomspace(0.2, 6, width), generator.normal(size=width)
    return mapped(data, lambda rows: (rows @ rotation * scale + offset).astype(np.float32))


def cosines(data: FeatureSet, split: str, shrinkage: float):
    """Cosines of a split's rows and the train rows, for the inner product of the inverse covariance."""
    train, rows = (getattr(data, name).features.astype(np.float64) for name in ("train", split))
    centred, moved = train - train.mean(axis=0), rows - train.mean(axis=0)
    variances, vectors = np.linalg.eigh(centred.T @ centred / len(train))
    metric = vectors / (variances + shrinkage * variances.mean()) @ vectors.T
    lengths = [np.sqrt(np.einsum("nd,de,ne->n", given, metric, given)) for given in (moved, centred)]
    return moved @ metric @ centred.T / np.outer(*lengths)


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
    values = {**VALUES, "k": [50, 1, 10], "temperature": 0.1}
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
    result = knn.evaluate(features(separation=20.0), **{**VALUES, "k": [10, 5, 20]})
    assert result.selected["toy"] == {"k": 5, "validation_top1": 1.0}
    assert {number.value for number in result.values.values()} == {1.0}


def test_collapsed_features_are_evaluated_and_noted(features) -> None:
    flat = mapped(features().datasets["toy"], lambda rows: np.full_like(rows, 0.1))
    for split in SPLITS:
        assert not getattr(knn.whitened(flat, 0.001), split).features.any()
    result = knn.evaluate(Features({"toy": flat}), **{**VALUES, "spaces": ["raw", "whitened"], "k": [7]})
    assert result.values["toy/top1"].value == result.values["toy/whitened/top1"].value == 0.2
    assert "collapsed" in result.note


def test_an_encoder_that_collapsed_on_the_train_images_only_is_evaluated(features) -> None:
    data = features().datasets["toy"]
    flat = replace(data, train=replace(data.train, features=np.full_like(data.train.features, 0.1)))
    result = knn.evaluate(Features({"toy": flat}), **{**VALUES, "spaces": ["whitened"]})
    assert result.values["toy/whitened/top1"].value == pytest.approx(0.2)
    assert "collapsed" in result.note


def test_whitened_cosines_are_those_of_the_inverse_covariance(features) -> None:
    """By the eigenvectors, in float64: x^T (S + s m I)^-1 y of centred x and y, m the mean variance."""
    data = stretched(features(seed=2).datasets["toy"])
    for shrinkage in (1e-6, 0.001, 0.5, 100.0):
        white = knn.whitened(data, shrinkage)
        for split in SPLITS:
            rows, bank = getattr(white, split).features.astype(np.float64), white.train.features.astype(np.float64)
            np.testing.assert_allclose(unit(rows) @ unit(bank).T, cosines(data, split, shrinkage), rtol=0, atol=2e-6)


def test_whitened_train_features_have_mean_zero_and_no_correlation(features) -> None:
    data = stretched(features(seed=3).datasets["toy"])
    white = knn.whitened(data, 1e-10).train.features
    assert white.dtype == np.float32
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(np.cov(white, rowvar=False, bias=True), np.eye(24), rtol=0, atol=1e-4)
    raw = np.cov(data.train.features, rowvar=False, bias=True)
    assert np.abs(raw - np.eye(24)).max() > 1
    # shrunk variances are l / (l + s m) for variances l of mean m
    values = np.linalg.eigvalsh(raw.astype(np.float64))
    shrunk = np.linalg.eigvalsh(np.cov(knn.whitened(data, 0.1).train.features, rowvar=False, bias=True))
    np.testing.assert_allclose(shrunk, values / (values + 0.1 * values.mean()), rtol=1e-3)


def test_only_train_features_decide_the_map(features) -> None:
    data = features().datasets["toy"]
    white = knn.whitened(data, 0.001)
    labels = replace(data, train=replace(data.train, labels=data.train.labels[::-1].copy()))
    assert np.array_equal(knn.whitened(labels, 0.001).train.features, white.train.features)
    others = replace(
        data,
        validation=replace(data.validation, features=data.validation.features * 9 + 5),
        test=data.test.prefix(20),
    )
    changed = knn.whitened(others, 0.001)
    assert np.array_equal(changed.train.features, white.train.features)
    np.testing.assert_allclose(changed.test.features, white.test.features[:20], rtol=1e-5, atol=1e-6)
    assert not np.allclose(changed.validation.features, white.validation.features, atol=1)
    moved = replace(data, train=replace(data.train, features=data.train.features * 2))
    assert not np.allclose(knn.whitened(moved, 0.001).test.features, white.test.features, atol=0.1)
    for split in SPLITS:
        for part in ("labels", "indices"):
            np.testing.assert_array_equal(getattr(getattr(white, split), part), getattr(getattr(data, split), part))


def test_a_dimension_that_is_constant_on_train_does_no_harm(features) -> None:
    def constant(rows):
        rows = rows.copy()
        rows[:, 3] = 7.7
        return rows

    data = mapped(features().datasets["toy"], constant)
    result = knn.evaluate(Features({"toy": data}), **{**VALUES, "spaces": ["whitened"], "k": [20]})
    without = mapped(data, lambda rows: np.delete(rows, 3, axis=1))
    # its variance is 0 after whitening too; the mean variance, that shrinks, is over one dimension fewer
    np.testing.assert_allclose(knn.whitened(data, 0.001).train.features[:, 3], 0, atol=1e-4)
    np.testing.assert_allclose(cosines(data, "test", 0.001), cosines(without, "test", 0.001 * 23 / 24), atol=1e-6)
    expected = knn.evaluate(Features({"toy": without}), **{**VALUES, "spaces": ["whitened"], "k": [20]})
    got, wanted = (found.examples["toy/whitened"].predicted for found in (result, expected))
    assert (got != wanted).sum() <= 2
    assert result.values["toy/whitened/top1"].value > 0.5


def test_one_dimension_and_fewer_rows_than_dimensions_are_whitened(features) -> None:
    single = mapped(features().datasets["toy"], lambda rows: rows[:, :1] * 30 + 5)
    white = knn.whitened(single, 1e-9).train.features
    assert white.shape == (400, 1)
    assert white.std() == pytest.approx(1, abs=1e-4)
    few = features(rows=(10, 10, 10)).datasets["toy"]
    assert np.isfinite(knn.whitened(few, 0.001).test.features).all()


def test_an_invertible_map_of_the_features_changes_the_raw_space_only(features) -> None:
    made = features(separation=0.4)
    data = made.datasets["toy"]
    affine = stretched(data)
    values = {**VALUES, "spaces": ["raw", "whitened"], "k": [20], "shrinkage": 1e-9}
    before, after = (knn.evaluate(Features({"toy": given}), **values).examples for given in (data, affine))
    differ = {key: int((before[key].predicted != after[key].predicted).sum()) for key in before}
    assert differ["toy/whitened"] <= 2
    assert differ["toy"] > 40  # of 200: the test could fail


def test_whitened_predictions_are_brute_force_by_the_whitened_cosines(features) -> None:
    data = stretched(features().datasets["toy"])
    result = knn.evaluate(Features({"toy": data}), **{**VALUES, "spaces": ["whitened"], "k": [1, 20, 100]})
    right, predicted = {}, {}
    for k in (1, 20, 100):
        found = {split: votes(cosines(data, split, 0.001), data.train.labels, k, 0.07, 5) for split in SPLITS[1:]}
        right[k] = (found["validation"] == data.validation.labels).mean()
        predicted[k] = found["test"]
    best = max(right, key=lambda k: right[k])
    assert result.selected == {"toy/whitened": {"k": best, "validation_top1": right[best]}}
    np.testing.assert_array_equal(result.examples["toy/whitened"].predicted, predicted[best])
    np.testing.assert_array_equal(result.examples["toy/whitened"].index, data.test.indices)


def test_spaces_decide_the_keys_and_do_not_change_one_another(features) -> None:
    made = features(names=("toy", "other"))
    both = knn.evaluate(made, **{**VALUES, "spaces": ["raw", "whitened"]})
    keys = ["toy", "toy/whitened", "other", "other/whitened"]
    assert list(both.examples) == list(both.selected) == keys
    assert sorted(both.values) == sorted(f"{key}/{what}" for key in keys for what in ("top1", "macro"))
    for space, ending in (("raw", ""), ("whitened", "/whitened")):
        alone = knn.evaluate(made, **{**VALUES, "spaces": [space]})
        assert list(alone.examples) == [f"toy{ending}", f"other{ending}"]
        assert all(both.values[name] == number for name, number in alone.values.items())
        assert all(both.selected[key] == chosen for key, chosen in alone.selected.items())


def test_values_that_make_no_sense_are_refused(features) -> None:
    nonsense = ({"k": []}, {"k": [0]}, {"k": [1 << 13]}, {"temperature": 0.0}, {"byte_budget": 0})
    for bad in (*nonsense, {"spaces": []}, {"shrinkage": 0.0}, {"shrinkage": -1.0}, {"shrinkage": float("nan")}):
        with pytest.raises(UserError, match="knn: "):
            knn.evaluate(features(), **{**VALUES, **bad})
    with pytest.raises(UserError, match="k = 401 exceeds the 400 extracted train rows of toy"):
        knn.evaluate(features(), **{**VALUES, "k": [5, 401]})


def test_the_published_values_run(features) -> None:
    values = yaml.safe_load(Path("params/evaluate/knn.yaml").read_text(encoding="utf-8"))["values"]
    result = knn.evaluate(features(), **values)
    assert all(result.values[f"{key}/top1"].value > 0.5 for key in ("toy", "toy/whitened"))
