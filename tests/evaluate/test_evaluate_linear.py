from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from polygrain.evaluate import linear
from polygrain.evaluate.linear import ProbeSetting, Schedule
from polygrain.evaluate.result import ACCURACY
from polygrain.evaluate.store import Features
from polygrain.nn.random import permutation
from polygrain.provenance.errors import UserError

VALUES = {
    "labels": ["all", "10%"],
    "rates": [0.01, 0.1],
    "decays": [0.0],
    "epochs": 5,
    "minimum_steps": 30,
    "batch": 64,
    "momentum": 0.9,
    "seed": 0,
}


def softmax(logits):
    exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponent / exponent.sum(axis=1, keepdims=True)


def oracle(x, y, rate, decay, *, steps, batch, momentum, seed, classes):
    """One setting, float64, weights and bias apart, written from the definition of SGD."""
    weight, bias = np.zeros((x.shape[1], classes)), np.zeros(classes)
    moving_weight, moving_bias = np.zeros_like(weight), np.zeros_like(bias)
    position, epoch, order = len(y), -1, np.arange(0)
    for step in range(steps):
        if position >= len(y):
            position, epoch = 0, epoch + 1
            order = permutation(len(y), seed, "linear probe", epoch).numpy()
        rows = order[position : position + batch]
        position += batch
        error = (softmax(x[rows] @ weight + bias) - np.eye(classes)[y[rows]]) / len(rows)
        moving_weight = momentum * moving_weight + x[rows].T @ error + decay * weight
        moving_bias = momentum * moving_bias + error.sum(axis=0)
        scheduled = rate * (1 + np.cos(np.pi * step / steps)) / 2
        weight, bias = weight - scheduled * moving_weight, bias - scheduled * moving_bias
    return np.vstack([weight, bias])


def problem(rows=150, width=6, classes=3, dtype=torch.float64):
    generator = np.random.default_rng(3)
    y = np.arange(rows) % classes
    x = generator.normal(size=(rows, width)) + 0.7 * generator.normal(size=(classes, width))[y]
    inputs = np.hstack([x, np.ones((rows, 1))])
    return x, y, torch.from_numpy(inputs).to(dtype), torch.from_numpy(y)


@pytest.mark.parametrize(("rate", "decay"), [(0.5, 0.0), (0.05, 0.1)])
def test_one_setting_equals_a_plain_loop(rate: float, decay: float) -> None:
    x, y, inputs, labels = problem()  # 150 rows in batches of 64: the last one is short
    expected = oracle(x, y, rate, decay, steps=40, batch=64, momentum=0.9, seed=5, classes=3)
    got = linear.train(inputs, labels, [ProbeSetting(rate, decay)], Schedule(40, 64, 0.9, 5), classes=3)
    np.testing.assert_allclose(got[0].numpy(), expected, rtol=0, atol=1e-12)
    single = linear.train(inputs.float(), labels, [ProbeSetting(rate, decay)], Schedule(40, 64, 0.9, 5), classes=3)
    np.testing.assert_allclose(single[0].numpy(), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("classes", [2, 3, 10, 37])
def test_many_settings_in_one_pass_have_the_bits_of_each_alone(classes: int) -> None:
    _, _, inputs, labels = problem(rows=222, width=33, classes=classes, dtype=torch.float32)
    settings = [ProbeSetting(rate, decay) for rate in (0.001, 0.03, 0.1, 1.0) for decay in (0.0, 0.01)]
    schedule = Schedule(25, 64, 0.9, 0)
    together = linear.train(inputs, labels, settings, schedule, classes=classes)
    for weights, setting in zip(together, settings, strict=True):
        alone = linear.train(inputs, labels, [setting], schedule, classes=classes)[0]
        assert torch.equal(weights, alone)


def test_the_gradient_is_the_closed_form_and_that_of_autograd() -> None:
    x, y, inputs, labels = problem(rows=20)
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=(7, 2, 3))).requires_grad_(True)
    targets = torch.nn.functional.one_hot(labels, 3).double()
    got = linear.gradient(weights.detach(), inputs, targets)
    loss = sum(torch.nn.functional.cross_entropy(inputs @ weights[:, r], labels) for r in range(2))
    (expected,) = torch.autograd.grad(loss, weights)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-15)
    for r in range(2):
        plain = weights[:, r].detach().numpy()
        closed = np.hstack([x, np.ones((20, 1))]).T @ (softmax(x @ plain[:-1] + plain[-1]) - np.eye(3)[y]) / 20
        np.testing.assert_allclose(got[:, r].numpy(), closed, rtol=0, atol=1e-15)


def test_separable_classes_are_separated(features) -> None:
    result = linear.evaluate(features(separation=5.0), **VALUES)
    assert result.values == dict.fromkeys(("toy/top1", "toy/macro", "toy/10%/top1", "toy/10%/macro"), (1.0, ACCURACY))
    assert result.selected["toy"]["steps"] == 5 * 7
    assert result.selected["toy/10%"]["steps"] == 30


def test_labels_decide_the_keys_and_steps_and_the_result_is_that_of_the_predictions(features) -> None:
    made = features(names=("toy", "other"))
    result = linear.evaluate(made, **{**VALUES, "labels": ["all", "10%", "1%"]})
    keys = [f"{name}{subset}" for name in ("toy", "other") for subset in ("", "/10%", "/1%")]
    assert list(result.examples) == list(result.selected) == keys
    assert sorted(result.values) == sorted(f"{key}/{what}" for key in keys for what in ("top1", "macro"))
    for key in keys:
        test = made.datasets[key.partition("/")[0]].test
        np.testing.assert_array_equal(result.examples[key].label, test.labels)
        np.testing.assert_array_equal(result.examples[key].index, test.indices)
        assert result.values[f"{key}/top1"].value == (result.examples[key].predicted == test.labels).mean()
    assert result.values["toy/top1"] > result.values["toy/1%/top1"]


def test_test_labels_have_no_say_in_what_is_selected(features) -> None:
    made = features(separation=0.3)
    data = made.datasets["toy"]
    values = {**VALUES, "rates": [0.0001, 0.001, 0.01, 0.1, 1.0], "decays": [0.0, 0.1]}
    shuffled = replace(data.test, labels=np.random.default_rng(1).permutation(data.test.labels))
    seen = linear.evaluate(made, **values)
    blind = linear.evaluate(Features({"toy": replace(data, test=shuffled)}), **values)
    assert blind.selected == seen.selected
    np.testing.assert_array_equal(blind.examples["toy"].predicted, seen.examples["toy"].predicted)
    assert blind.values != seen.values
    flipped = replace(data.validation, labels=(data.validation.labels + 1) % 5)
    assert linear.evaluate(Features({"toy": replace(data, validation=flipped)}), **values).selected != seen.selected


def test_a_subset_never_sees_the_other_labels(features) -> None:
    made = features()
    data = made.datasets["toy"]
    labels = data.train.labels.copy()
    labels[40:] = 0
    changed = Features({"toy": replace(data, train=replace(data.train, labels=labels))})
    before, after = linear.evaluate(made, **VALUES), linear.evaluate(changed, **VALUES)
    np.testing.assert_array_equal(before.examples["toy/10%"].predicted, after.examples["toy/10%"].predicted)
    assert after.values["toy/top1"] < before.values["toy/top1"]


def test_selection_is_by_accuracy_then_loss_then_the_smaller_rate() -> None:
    x = torch.eye(2)
    y = torch.tensor([0, 1])
    right, surer, wrong = torch.eye(2), 3 * torch.eye(2), -torch.eye(2)
    settings = [ProbeSetting(rate, 0.0) for rate in (0.1, 0.2, 0.3)]
    assert linear.select(torch.stack([wrong, right, wrong]), x, y, settings, "toy") == (1, 1.0)
    assert linear.select(torch.stack([right, surer, wrong]), x, y, settings, "toy") == (1, 1.0)
    assert linear.select(torch.stack([wrong, right, right]), x, y, settings, "toy") == (1, 1.0)
    decays = [ProbeSetting(0.1, 0.1), ProbeSetting(0.1, 0.0), ProbeSetting(0.05, 0.2)]
    assert linear.select(torch.stack([right, right, wrong]), x, y, decays, "toy") == (1, 1.0)


def test_a_rate_that_diverges_is_passed_over(features) -> None:
    made = features()
    grid = {**VALUES, "labels": ["all"], "rates": [0.05, 1e38], "decays": [0.01]}
    alone = linear.evaluate(made, **{**grid, "rates": [0.05]})
    assert linear.evaluate(made, **grid).selected == alone.selected
    with pytest.raises(UserError, match="every learning rate diverged on toy"):
        linear.evaluate(made, **{**grid, "rates": [1e38]})


def test_features_are_standardised_so_scale_and_offset_do_not_matter(features) -> None:
    made = features()
    data = made.datasets["toy"]
    moved = {
        name: replace(getattr(data, name), features=getattr(data, name).features * 1024 + 8192)
        for name in ("train", "validation", "test")
    }
    first = linear.evaluate(made, **VALUES).values
    second = linear.evaluate(Features({"toy": replace(data, **moved)}), **VALUES).values
    for name, number in first.items():
        assert number.value == pytest.approx(second[name].value, abs=0.015)


def test_constant_dimensions_are_harmless(features) -> None:
    data = features().datasets["toy"]
    padded = {}
    for name in ("train", "validation", "test"):
        rows = getattr(data, name).features.copy()
        rows[:, 3] = 1234.567
        padded[name] = replace(getattr(data, name), features=rows)
    padded["test"].features[:, 3] += 100  # a constant in train says nothing, whatever it is in test
    values = linear.evaluate(Features({"toy": replace(data, **padded)}), **VALUES).values
    assert values["toy/top1"].value > 0.8


def test_collapsed_features_are_evaluated_and_noted(features) -> None:
    data = features().datasets["toy"]
    flat = {
        name: replace(getattr(data, name), features=np.full_like(getattr(data, name).features, 0.1))
        for name in ("train", "validation", "test")
    }
    result = linear.evaluate(Features({"toy": replace(data, **flat)}), **VALUES)
    assert result.values["toy/top1"].value == pytest.approx(0.2)
    assert "collapsed" in result.note


@pytest.mark.parametrize(
    "bad",
    [
        {"rates": []},
        {"labels": []},
        {"rates": [0.0]},
        {"decays": [-0.1]},
        {"epochs": 0},
        {"batch": 0},
        {"minimum_steps": -1},
        {"momentum": 1.0},
    ],
)
def test_values_that_make_no_sense_are_refused(features, bad) -> None:
    with pytest.raises(UserError, match="linear: "):
        linear.evaluate(features(), **{**VALUES, **bad})


def test_an_unknown_label_subset_is_refused(features) -> None:
    with pytest.raises(UserError, match="no label subset '5%'"):
        linear.evaluate(features(), **{**VALUES, "labels": ["5%"]})


def test_the_published_values_run(features) -> None:
    values = yaml.safe_load(Path("params/evaluate/linear.yaml").read_text(encoding="utf-8"))["values"]
    result = linear.evaluate(features(), **{**values, "minimum_steps": 100, "epochs": 2})
    assert result.values["toy/top1"].value > 0.5
