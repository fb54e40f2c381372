"""Logistic regression against scikit-learn's, and what decides its selection."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.linear_model import LogisticRegression

from polygrain.evaluate import linear
from polygrain.evaluate.linear import Rows, Solver
from polygrain.evaluate.logistic import evaluate, with_constant
from polygrain.evaluate.result import ACCURACY
from polygrain.evaluate.store import SPLITS, Features, FeatureSet
from polygrain.provenance.errors import UserError

VALUES: dict[str, Any] = {
    "inputs": "raw", "intercept": True, "labels": ["all", "10%"], "c": [0.001, 0.1, 10.0], "folds": 4,
    "iterations": 1000, "tolerance": 1e-8,
}  # fmt: skip


def library(x, y, c: float, intercept: bool) -> LogisticRegression:
    return LogisticRegression(C=c, fit_intercept=intercept, tol=1e-10, max_iter=10_000).fit(x, y)


def shown(rows, inputs: str):
    wide = rows.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True) if inputs == "unit" else wide


@pytest.mark.parametrize("inputs", ["raw", "unit"])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("c", [0.01, 3.0])
def test_the_weights_are_those_of_scikit_learn(features, inputs: str, intercept: bool, c: float) -> None:
    train = features(separation=0.3).datasets["toy"].labelled("40%")
    x = with_constant(train.features + np.float32(0.4), unit=inputs == "unit", constant=float(intercept))
    rows = Rows(torch.from_numpy(x), torch.from_numpy(train.labels))
    (found,) = linear.fit(rows, [1 / (c * len(train))], Solver(2000, 1e-10), 5)
    expected = library(shown(train.features + np.float32(0.4), inputs), train.labels, c, intercept)
    np.testing.assert_allclose(found[:-1].numpy().T, expected.coef_, rtol=0, atol=1e-5)
    bias = found[-1].numpy() - found[-1].numpy().mean()  # biases that move together change nothing
    np.testing.assert_allclose(bias, expected.intercept_ - expected.intercept_.mean(), rtol=0, atol=1e-4)
    if not intercept:
        assert not found[-1].any()


def by_hand(data: FeatureSet, subset: str, values: dict[str, Any]) -> tuple[float, Any]:
    """The selected C and the test predictions, by scikit-learn and plain loops."""
    x = {name: shown(getattr(data, name).features, values["inputs"]) for name in SPLITS}
    train, y = x["train"][: len(data.labelled(subset))], data.labelled(subset).labels

    def judged(c, fitted, held, labels):
        share = library(*fitted, c, values["intercept"]).predict_proba(held)
        return np.array([(share.argmax(axis=1) != labels).sum(), -np.log(share[np.arange(len(labels)), labels]).sum()])

    def score(c):
        if subset == "all":
            return judged(c, (train, y), x["validation"], data.validation.labels)
        fold = np.arange(len(y)) // data.classes % values["folds"]  # the rows are dealt round-robin over classes
        parts = [(fold != number, fold == number) for number in range(values["folds"])]
        return sum(judged(c, (train[rest], y[rest]), train[held], y[held]) for rest, held in parts)

    best = min(sorted(values["c"]), key=lambda c: tuple(score(c)))
    return best, library(train, y, best, values["intercept"]).predict(x["test"])


@pytest.mark.parametrize("change", [{}, {"inputs": "unit", "intercept": False, "c": [3.0, 30.0, 0.3]}])
def test_the_whole_protocol_by_scikit_learn(features, change: dict[str, Any]) -> None:
    data, values = features(separation=0.3).datasets["toy"], {**VALUES, **change}
    result = evaluate(Features({"toy": data}), **values)
    for subset, rows in (("all", 400), ("10%", 40)):
        key = "toy" if subset == "all" else f"toy/{subset}"
        best, predicted = by_hand(data, subset, values)
        assert {name: result.selected[key][name] for name in ("c", "rows")} == {"c": best, "rows": rows}
        np.testing.assert_array_equal(result.examples[key].predicted, predicted)
        assert result.values[f"{key}/top1"].value == (predicted == data.test.labels).mean()


def test_it_is_perfect_on_classes_apart_and_chance_on_shuffled_labels(features) -> None:
    apart = evaluate(features(separation=5.0), **VALUES)
    assert apart.values == dict.fromkeys(("toy/top1", "toy/macro", "toy/10%/top1", "toy/10%/macro"), (1.0, ACCURACY))
    data = features(separation=5.0, rows=(400, 150, 2000)).datasets["toy"]
    labels = np.random.default_rng(0).permutation(data.train.labels)
    shuffled = Features({"toy": replace(data, train=replace(data.train, labels=labels))})
    chance = evaluate(shuffled, **{**VALUES, "labels": ["all"]})
    assert abs(chance.values["toy/top1"].value - 0.2) < 0.1


def test_the_scale_of_features_decides_raw_inputs_and_not_those_of_unit_length(features) -> None:
    data = features(separation=0.3).datasets["toy"]
    larger = replace(
        data, **{name: replace(getattr(data, name), features=getattr(data, name).features * 64) for name in SPLITS}
    )
    both = [Features({"toy": given}) for given in (data, larger)]
    values = {**VALUES, "labels": ["all"], "c": [0.001]}
    raw = [evaluate(given, **values).examples["toy"].predicted for given in both]
    unit = [evaluate(given, **{**values, "inputs": "unit"}).examples["toy"].predicted for given in both]
    assert not np.array_equal(*raw)
    np.testing.assert_array_equal(*unit)


def test_the_same_bits_twice(features, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        evaluate(features(), **VALUES).save(tmp_path / folder, "logistic")
    for name in ("logistic.json", "logistic.npz"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    "bad", [{"labels": []}, {"c": []}, {"c": [0.0]}, {"folds": 1}, {"iterations": 0}, {"tolerance": 0.0}]
)
def test_values_that_make_no_sense_are_refused(features, bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^logistic: "):
        evaluate(features(), **{**VALUES, **bad})


@pytest.mark.parametrize("name", ["logistic", "logistic-mugs"])
def test_the_published_values_run(features, name: str) -> None:
    values = yaml.safe_load(Path(f"params/evaluate/{name}.yaml").read_text(encoding="utf-8"))["values"]
    assert evaluate(features(), **values).values["toy/10%/top1"].value > 0.6
