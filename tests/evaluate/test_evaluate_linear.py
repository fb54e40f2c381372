"""The linear probe against Newton's method in numpy; what may and what may not decide a prediction."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from polygrain.evaluate import linear, store
from polygrain.evaluate.linear import Rows, Solver
from polygrain.evaluate.result import ACCURACY
from polygrain.evaluate.scaling import Scaling
from polygrain.evaluate.store import SPLITS, Features, FeatureSet
from polygrain.provenance.errors import UserError

VALUES = {"labels": ["all", "10%"], "decays": [0.1, 0.001], "folds": 4, "iterations": 200, "tolerance": 1e-6}
EXACT = Solver(1000, 1e-8)


def softmax(logits):
    exponent = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponent / exponent.sum(axis=-1, keepdims=True)


def plain_objective(weight, bias, x, y, decay):
    """From the formula, weights [width, classes] and bias [classes] apart."""
    share = softmax(x @ weight + bias)[np.arange(len(y)), y]
    return -np.log(share).mean() + decay / 2 * (weight**2).sum()


def newton(x, y, decay, classes):
    """Weights [width + 1, classes] at the minimum, the bias last: full Newton steps, halved where they overshoot."""
    inputs, targets = np.hstack([x, np.ones((len(x), 1))]), np.eye(classes)[y]
    decays = np.repeat([decay] * x.shape[1] + [0.0], classes)
    weights = np.zeros(inputs.shape[1] * classes)

    def value(at):
        table = at.reshape(-1, classes)
        return plain_objective(table[:-1], table[-1], x, y, decay)

    for _ in range(100):
        share = softmax(inputs @ weights.reshape(-1, classes))
        gradient = (inputs.T @ (share - targets) / len(x)).ravel() + decays * weights
        if np.abs(gradient).max() < 1e-13:
            break
        curvature = share[:, :, None] * (np.eye(classes) - share[:, None, :])
        hessian = np.einsum("nd,nij,ne->diej", inputs, curvature, inputs, optimize=True) / len(x)
        hessian = hessian.reshape(len(weights), -1) + np.diag(decays)
        step = np.linalg.lstsq(hessian, -gradient, rcond=1e-13)[0]  # the classes' biases may move together
        length = 1.0
        while length > 1e-6 and value(weights + length * step) > value(weights):
            length /= 2
        weights = weights + length * step
    return weights.reshape(-1, classes)


def problem(rows=150, width=6, classes=3, seed=3):
    """Overlapping classes of unequal size: numpy inputs and labels, and the same as rows with the constant 1."""
    generator = np.random.default_rng(seed)
    y = generator.choice(classes, rows, p=np.arange(1, classes + 1) / (classes * (classes + 1) / 2))
    x = generator.normal(size=(rows, width)) + 0.7 * generator.normal(size=(classes, width))[y]
    return x, y, Rows(torch.from_numpy(np.hstack([x, np.ones((rows, 1))])), torch.from_numpy(y))


def one_hot(rows: Rows, classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(rows.y, classes).double()


def mapped(data: FeatureSet, change) -> FeatureSet:
    """The data set with `change` applied to the features of every split."""
    return replace(
        data, **{name: replace(getattr(data, name), features=change(getattr(data, name).features)) for name in SPLITS}
    )


def only(data: FeatureSet) -> Features:
    return Features({data.name: data})


class Counted:
    """A function that keeps the points at which it was asked."""

    def __init__(self, function) -> None:
        self.function, self.points = function, []

    def __call__(self, point):
        self.points.append(point)
        return self.function(point)


# The objective.


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_objective_and_its_gradient_are_the_closed_form_and_those_of_autograd(decay: float) -> None:
    x, y, rows = problem(rows=20)
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=(7, 3))).requires_grad_(True)
    value, gradient = linear.objective(weights.detach(), rows.x, one_hot(rows, 3), decay)
    plain = weights.detach().numpy()
    assert value.item() == pytest.approx(plain_objective(plain[:-1], plain[-1], x, y, decay), rel=1e-14)
    error = (softmax(x @ plain[:-1] + plain[-1]) - np.eye(3)[y]) / 20
    closed = np.vstack([x.T @ error + decay * plain[:-1], error.sum(axis=0)])
    np.testing.assert_allclose(gradient.numpy(), closed, rtol=0, atol=1e-15)
    loss = torch.nn.functional.cross_entropy(rows.x @ weights, rows.y) + decay / 2 * weights[:-1].square().sum()
    torch.testing.assert_close(value, loss.detach(), rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(loss, weights)[0], rtol=0, atol=1e-15)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_objective_of_labels_is_that_of_their_table_in_one_block_and_in_many(decay, monkeypatch) -> None:
    _, _, rows = problem(rows=50)
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=(7, 3)))
    value, gradient = linear.objective(weights, rows.x, one_hot(rows, 3), decay)
    one, slope = linear.labelled_objective(weights, rows, decay)
    assert torch.equal(slope, gradient)  # the same bits
    torch.testing.assert_close(one, value, rtol=1e-14, atol=0)
    monkeypatch.setattr(linear, "BLOCK", 7)
    many, slope = linear.labelled_objective(weights, rows, decay)
    torch.testing.assert_close(many, value, rtol=1e-14, atol=0)
    torch.testing.assert_close(slope, gradient, rtol=0, atol=1e-15)


def test_the_objective_is_finite_far_from_the_data() -> None:
    _, _, rows = problem(rows=20)
    value, gradient = linear.objective(1e5 * torch.ones(7, 3).double().cumsum(1), rows.x, one_hot(rows, 3), 0.1)
    assert value.isfinite()
    assert gradient.isfinite().all()


# The minimum.


@pytest.mark.parametrize("decay", [1.0, 0.01, 1e-4])
def test_the_weights_are_those_of_newtons_method(decay: float) -> None:
    x, y, rows = problem()
    (got,) = linear.fit(rows, [decay], EXACT, 3)
    expected = newton(x, y, decay, 3)
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-5)
    assert linear.objective(got, rows.x, one_hot(rows, 3), decay)[1].abs().max() <= 1e-8


def test_the_bias_is_not_decayed() -> None:
    """Under a large decay it alone is left, and gives the classes their shares."""
    _, y, rows = problem()
    (got,) = linear.fit(rows, [1e4], EXACT, 3)
    assert got[:-1].abs().max() < 1e-4
    np.testing.assert_allclose(got[-1].softmax(dim=0).numpy(), np.bincount(y) / len(y), atol=1e-4)
    assert np.ptp(np.bincount(y)) > 5


def test_a_warm_start_does_not_change_the_minimum() -> None:
    _, _, rows = problem()
    decays = [1.0, 0.01, 1e-4]
    together = linear.fit(rows, decays, EXACT, 3)
    assert together.shape == (3, 7, 3)
    for weights, decay in zip(together, decays, strict=True):
        torch.testing.assert_close(weights, linear.fit(rows, [decay], EXACT, 3)[0], rtol=0, atol=1e-5)
    start = torch.from_numpy(np.random.default_rng(1).normal(size=(7, 3))) * 3
    elsewhere = linear.minimise(lambda w: linear.objective(w, rows.x, one_hot(rows, 3), 0.01), start, EXACT)
    elsewhere[-1] -= elsewhere[-1].mean()  # biases that move together change nothing
    torch.testing.assert_close(elsewhere, together[1], rtol=0, atol=1e-5)


def test_each_decay_starts_where_the_one_before_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    starts, ends, real = [], [], linear.minimise

    def watched(objective, start, solver):
        starts.append(start)
        ends.append(real(objective, start, solver))
        return ends[-1]

    monkeypatch.setattr(linear, "minimise", watched)
    got = linear.fit(problem()[2], [1.0, 0.1, 0.01], EXACT, 3)
    assert not starts[0].any()
    assert torch.equal(torch.stack(starts[1:]), torch.stack(ends[:-1]))
    assert torch.equal(got, torch.stack(ends))


def test_the_order_of_the_rows_does_not_decide_the_minimum() -> None:
    _, _, rows = problem()
    order = torch.from_numpy(np.random.default_rng(2).permutation(150))
    first, second = (linear.fit(given, [0.01], EXACT, 3) for given in (rows, Rows(rows.x[order], rows.y[order])))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


def test_separable_rows_without_decay_end_in_finite_weights() -> None:
    x = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    (got,) = linear.fit(Rows(x, torch.tensor([0, 1])), [0.0], Solver(10_000, 1e-5), 2)
    assert got.isfinite().all()
    assert (x @ got).argmax(dim=1).tolist() == [0, 1]
    assert (x @ got).softmax(dim=1).diagonal().min() > 0.9999


# The solver.


def quadratic(largest=1000.0, size=20):
    """A function with curvatures from 1 to `largest`, and the point of its minimum."""
    generator = np.random.default_rng(5)
    vectors, _ = np.linalg.qr(generator.normal(size=(size, size)))
    matrix = torch.from_numpy(vectors * np.geomspace(1, largest, size) @ vectors.T)
    minimum = torch.from_numpy(generator.normal(size=(size // 2, 2)))

    def function(point):
        away = (point - minimum).reshape(-1)
        return away @ matrix @ away / 2, (matrix @ away).reshape(point.shape)

    return function, minimum


def test_the_minimum_of_a_quadratic_is_found_in_few_steps() -> None:
    function, minimum = quadratic()
    counted = Counted(function)
    got = linear.minimise(counted, torch.zeros_like(minimum), Solver(1000, 1e-8))
    torch.testing.assert_close(got, minimum, rtol=0, atol=1e-7)
    assert len(counted.points) < 500  # steepest descent takes thousands
    assert function(got)[1].abs().max() <= 1e-8


def test_a_solution_is_left_at_once() -> None:
    function, minimum = quadratic()
    near = minimum + 1e-7
    counted = Counted(function)
    slope = function(near)[1].abs().max().item()
    assert linear.minimise(counted, near, Solver(100, slope)) is near
    assert len(counted.points) == 1
    assert linear.minimise(counted, near, Solver(100, slope * 0.999)) is not near


def test_the_limit_of_iterations_is_respected() -> None:
    function, minimum = quadratic()
    start = torch.zeros_like(minimum)
    ends = [linear.minimise(function, start, Solver(iterations, 1e-12)) for iterations in range(1, 8)]
    values = [function(point)[0].item() for point in [start, *ends]]
    assert all(after < before for before, after in pairwise(values))
    assert function(ends[-1])[1].abs().max() > 1
    # the first step: against the gradient, over the sum of its entries
    gradient = function(start)[1]
    torch.testing.assert_close(ends[0], -gradient / gradient.abs().sum(), rtol=1e-12, atol=0)


def test_the_first_step_is_no_longer_than_the_gradient_and_later_ones_start_at_1() -> None:
    """With one curvature the second step, that of Newton, ends in the minimum."""
    start = torch.tensor([0.5, -2.0]).double()
    first, second = (
        linear.minimise(lambda w: (w.square().sum() / 20, w / 10), start, Solver(iterations, 1e-9))
        for iterations in (1, 2)
    )
    torch.testing.assert_close(first, torch.tensor([0.45, -1.8]).double())
    torch.testing.assert_close(second, torch.zeros(2).double(), rtol=0, atol=1e-14)


def test_the_last_ten_steps_and_their_changes_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    function, minimum = quadratic()
    seen, real = [], linear._times_inverse

    def watched(gradient, pairs):
        seen.append(list(pairs))
        return real(gradient, pairs)

    monkeypatch.setattr(linear, "_times_inverse", watched)
    linear.minimise(function, torch.zeros_like(minimum), Solver(14, 1e-9))
    assert [len(pairs) for pairs in seen] == [*range(10), 10, 10, 10, 10]
    for before, after in pairwise(seen):
        assert all(old is new for old, new in zip(before[-9:], after[-10:-1], strict=True))
    for step, change in seen[-1]:
        torch.testing.assert_close(change, function(minimum + step)[1], rtol=1e-8, atol=1e-8)


def test_a_step_is_halved_until_the_value_falls() -> None:
    """Of 32 w^2 from 1/128 the steps are 64, 32, ... times as long; the one of 2 ends as high as it began."""
    counted = Counted(lambda w: (32 * w.square().sum(), 64 * w))
    start = torch.tensor([1 / 128]).double()
    assert linear.minimise(counted, start, Solver(1, 1e-9)).item() == 0
    assert [point.item() * 128 for point in counted.points] == [1, -63, -31, -15, -7, -3, -1, 0]


def test_a_straight_slope_says_nothing_of_the_curvature() -> None:
    """Huber's function: the gradient does not change until the last steps."""

    def function(w):
        return torch.nn.functional.huber_loss(w, torch.zeros_like(w), reduction="sum"), w.clamp(-1, 1)

    got = linear.minimise(function, torch.tensor([10.5, -3.25]).double(), Solver(200, 1e-9))
    torch.testing.assert_close(got, torch.zeros(2).double(), rtol=0, atol=1e-8)


def test_where_rounding_hides_any_descent_the_solver_ends() -> None:
    _, _, rows = problem()
    counted = Counted(lambda w: linear.objective(w, rows.x, one_hot(rows, 3), 0.01))
    got = linear.minimise(counted, torch.zeros(7, 3).double(), Solver(10**6, 1e-300))
    assert len(counted.points) < 1000
    assert counted.function(got)[1].abs().max() < 1e-7


@pytest.mark.parametrize("count", [0, 1, 2, 10])
def test_the_direction_is_that_of_the_whole_inverse_matrix(count: int) -> None:
    """BFGS with a matrix, its start scaled as the last step and change are (formulas 6.17, 7.20)."""
    generator = np.random.default_rng(6)
    matrix = np.diag(np.geomspace(1, 50, 12))
    pairs = [(step, matrix @ step) for step in generator.normal(size=(count, 12))]
    gradient = generator.normal(size=12)
    inverse = np.eye(12)
    if pairs:
        step, change = pairs[-1]
        inverse *= step @ change / (change @ change)
    for step, change in pairs:
        rho = 1 / (change @ step)
        left = np.eye(12) - rho * np.outer(step, change)
        inverse = left @ inverse @ left.T + rho * np.outer(step, step)
    shaped = [tuple(torch.from_numpy(part.reshape(4, 3)) for part in pair) for pair in pairs]
    got = linear._times_inverse(torch.from_numpy(gradient.reshape(4, 3)), shaped)
    np.testing.assert_allclose(got.numpy().ravel(), inverse @ gradient, rtol=1e-10, atol=1e-12)


# Selection.


def test_selection_is_by_accuracy_then_loss_then_the_first() -> None:
    rows = Rows(torch.eye(2), torch.tensor([0, 1]))
    right, surer, wrong = torch.eye(2), 3 * torch.eye(2), -torch.eye(2)
    unsure = torch.tensor([[9.0, 0.0], [1.0, 0.0]])  # one right; the other wrong by little
    bold = torch.tensor([[9.0, 0.0], [5.0, 0.0]])
    for probes, best in (
        ([wrong, right, wrong], 1),
        ([right, surer, wrong], 1),
        ([wrong, right, right], 1),
        ([right, right, right], 0),
        ([0.001 * right, bold, unsure], 0),
        ([bold, wrong, unsure], 2),
        ([wrong, unsure, bold], 1),
    ):
        assert linear.select([(torch.stack(probes), rows)]) == best


def test_selection_adds_up_the_rows_of_all_pairs() -> None:
    """Not the shares: three rows of one fold weigh more than one row of another."""
    long, short = Rows(torch.eye(3), torch.tensor([0, 1, 2])), Rows(torch.eye(3)[:1], torch.tensor([0]))
    right, wrong, half = torch.eye(3), -torch.eye(3), torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    assert linear.select([(torch.stack([wrong, half]), long), (torch.stack([right, wrong]), short)]) == 1
    # equal numbers of right ones: the sum of the losses decides, whichever pair it is from
    sure, surer = 2 * right, 9 * right
    assert linear.select([(torch.stack([right, sure]), long), (torch.stack([surer, sure]), short)]) == 1
    assert linear.select([(torch.stack([sure, right]), long), (torch.stack([sure, surer]), short)]) == 0
    # by row, the second is worse by 0.13 in the long one and better by 0.26 in the short one
    low, high = torch.stack([2 * right, 1.5 * right]), torch.stack([right, 1.775 * right])
    assert linear.select([(low, long), (high, short)]) == 0
    assert linear.select([(low, short), (high, long)]) == 1


def dealt(labels, folds):
    """The fold of each row: a class's rows in turn; no fold is left empty."""
    most = max(labels.count(label) for label in labels)
    return [labels[:place].count(label) % min(folds, most) for place, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "folds", "expected"),
    [
        ([0, 1, 2] * 8, 5, 5),
        ([0, 1, 2] * 3, 5, 3),  # no class has five rows
        ([1, 0, 0, 0, 2, 2, 1, 0, 0, 1, 1, 2, 0], 4, 4),
        ([0, 1, 0, 2, 1, 0, 0, 0, 2], 4, 4),  # some classes have two rows
        ([0, 0, 1, 1, 2, 2], 2, 2),
    ],
)
def test_folds_judge_every_row_once_by_probes_of_the_others(labels: list[int], folds: int, expected: int) -> None:
    x = np.random.default_rng(7).normal(size=(len(labels), 4))
    y, decays = np.array(labels), [1.0, 0.05]
    rows = Rows(torch.from_numpy(np.hstack([x, np.ones((len(y), 1))])), torch.from_numpy(y))
    search = linear.Search(["all"], "decay", decays, lambda decay, rows: decay, folds, EXACT)
    pairs = list(linear._cross_validation(rows, search, 3))
    fold = np.array(dealt(labels, folds))
    assert len(pairs) == expected
    for number, (weights, judged) in enumerate(pairs):
        np.testing.assert_array_equal(judged.x.numpy(), rows.x.numpy()[fold == number])
        np.testing.assert_array_equal(judged.y.numpy(), y[fold == number])
        for position, decay in enumerate(decays):
            found = newton(x[fold != number], y[fold != number], decay, 3)
            # a class that is absent from the other rows has no minimum: its share only becomes small
            if len(set(y[fold != number])) == 3:
                np.testing.assert_allclose(weights[position].numpy(), found, rtol=0, atol=1e-5)
    everyone = np.concatenate([judged.x.numpy() for _, judged in pairs])
    assert sorted(everyone.tolist()) == sorted(rows.x.tolist())
    counts = np.array([np.bincount(judged.y.numpy(), minlength=3) for _, judged in pairs])
    assert (np.ptp(counts, axis=0) <= 1).all()
    assert counts.sum(axis=1).min() > 0


def by_hand(data: FeatureSet, subset: str, decays, folds):
    """Decay and test predictions of a probe, by Newton's method and plain loops."""
    scaled = {}
    mean, deviation = data.train.features.astype(float).mean(axis=0), data.train.features.astype(float).std(axis=0)
    for name in SPLITS:
        scaled[name] = ((getattr(data, name).features - mean) / deviation, getattr(data, name).labels)
    x, y = (part[: len(data.labelled(subset))] for part in scaled["train"])

    def judged(weights, inputs, labels):
        logits = inputs @ weights[:-1] + weights[-1]
        losses = -np.log(softmax(logits)[np.arange(len(labels)), labels])
        return np.array([-(logits.argmax(axis=1) == labels).sum(), losses.sum()])

    def score(decay):
        if subset == "all":
            return judged(newton(x, y, decay, data.classes), *scaled["validation"])
        fold, total = np.array(dealt(y.tolist(), folds)), np.zeros(2)
        for number in range(max(fold) + 1):
            weights = newton(x[fold != number], y[fold != number], decay, data.classes)
            total += judged(weights, x[fold == number], y[fold == number])
        return total

    best = min(decays, key=lambda decay: (*score(decay), -decay))
    weights = newton(x, y, best, data.classes)
    predicted = {name: (scaled[name][0] @ weights[:-1] + weights[-1]).argmax(axis=1) for name in SPLITS}
    return best, predicted["test"], (predicted["validation"] == data.validation.labels).mean()


def test_everything_equals_newtons_method_and_plain_loops(features) -> None:
    data = features(separation=0.3).datasets["toy"]
    values = {**VALUES, "labels": ["all", "10%", "1%"], "decays": [0.01, 1.0, 0.1, 0.001], "tolerance": 1e-8}
    result = linear.evaluate(only(data), **values)
    for subset, rows in (("all", 400), ("10%", 40), ("1%", 10)):
        key = "toy" if subset == "all" else f"toy/{subset}"
        decay, predicted, accuracy = by_hand(data, subset, values["decays"], values["folds"])
        assert result.selected[key] == {"decay": decay, "rows": rows, "validation_top1": accuracy}, subset
        np.testing.assert_array_equal(result.examples[key].predicted, predicted)
    assert len({chosen["decay"] for chosen in result.selected.values()}) == 3  # or the case would not tell much


def test_rows_of_many_blocks_give_what_one_block_gives(features, monkeypatch: pytest.MonkeyPatch) -> None:
    made = features(separation=0.3)
    values = {**VALUES, "labels": ["all", "40%"]}
    expected = linear.evaluate(made, **values)
    for module in (linear, store):
        monkeypatch.setattr(module, "BLOCK", 37)  # no split is a multiple of it, and no subset or fold fits in one
    kept = linear._rows(made.datasets["toy"].train, Scaling(made.datasets["toy"].train.features).inputs)
    assert kept.x.dtype == torch.float32
    assert [x.shape for x, _ in kept.blocks()] == [(37, 25)] * 10 + [(30, 25)]
    found = linear.evaluate(made, **values)
    assert found.selected == expected.selected
    for key in ("toy", "toy/40%"):
        np.testing.assert_array_equal(found.examples[key].predicted, expected.examples[key].predicted)


def test_equal_probes_select_the_largest_decay(features) -> None:
    """Collapsed features: whatever the decay, the bias alone is left."""
    flat = mapped(features().datasets["toy"], lambda rows: np.full_like(rows, 0.1))
    result = linear.evaluate(only(flat), **{**VALUES, "decays": [0.1, 10.0, 0.001]})
    assert [chosen["decay"] for chosen in result.selected.values()] == [10.0, 10.0]


MANY = {**VALUES, "decays": [10.0, 1.0, 0.1, 0.01, 0.001]}


def test_test_labels_have_no_say(features) -> None:
    made = features(separation=0.3)
    data = made.datasets["toy"]
    shuffled = replace(data.test, labels=np.random.default_rng(1).permutation(data.test.labels))
    seen, blind = linear.evaluate(made, **MANY), linear.evaluate(only(replace(data, test=shuffled)), **MANY)
    assert blind.selected == seen.selected
    for key in ("toy", "toy/10%"):
        np.testing.assert_array_equal(blind.examples[key].predicted, seen.examples[key].predicted)
    assert blind.values != seen.values


def test_the_decay_is_selected_on_validation_but_for_a_subset_on_its_own_labels(features) -> None:
    made = features(separation=0.3)
    data = made.datasets["toy"]
    flipped = replace(data.validation, labels=(data.validation.labels + 1) % 5)
    before, after = linear.evaluate(made, **MANY), linear.evaluate(only(replace(data, validation=flipped)), **MANY)
    assert after.selected["toy"]["decay"] != before.selected["toy"]["decay"]
    assert after.selected["toy/10%"]["decay"] == before.selected["toy/10%"]["decay"]
    assert after.selected["toy/10%"]["validation_top1"] != before.selected["toy/10%"]["validation_top1"]
    np.testing.assert_array_equal(before.examples["toy/10%"].predicted, after.examples["toy/10%"].predicted)


def test_a_subset_never_sees_the_other_labels(features) -> None:
    made = features()
    data = made.datasets["toy"]
    labels = data.train.labels.copy()
    labels[40:] = 0
    changed = only(replace(data, train=replace(data.train, labels=labels)))
    before, after = linear.evaluate(made, **MANY), linear.evaluate(changed, **MANY)
    assert before.selected["toy/10%"] == after.selected["toy/10%"]
    np.testing.assert_array_equal(before.examples["toy/10%"].predicted, after.examples["toy/10%"].predicted)
    assert after.values["toy/top1"] < before.values["toy/top1"]
    labels[39] = (labels[39] + 1) % 5  # one of its own
    changed = only(replace(data, train=replace(data.train, labels=labels)))
    own = linear.evaluate(changed, **MANY).examples["toy/10%"].predicted
    assert not np.array_equal(own, before.examples["toy/10%"].predicted)


def test_a_result_does_not_depend_on_the_other_subsets_or_data_sets(features) -> None:
    made = features(names=("toy", "other"))
    both = linear.evaluate(made, **VALUES)
    for name in ("toy", "other"):
        for subset in ("all", "10%"):
            alone = linear.evaluate(only(made.datasets[name]), **{**VALUES, "labels": [subset]})
            for key, chosen in alone.selected.items():
                assert both.selected[key] == chosen
                np.testing.assert_array_equal(both.examples[key].predicted, alone.examples[key].predicted)


# The result.


def test_separable_classes_are_separated(features) -> None:
    result = linear.evaluate(features(separation=5.0), **VALUES)
    assert result.values == dict.fromkeys(("toy/top1", "toy/macro", "toy/10%/top1", "toy/10%/macro"), (1.0, ACCURACY))
    assert [chosen["validation_top1"] for chosen in result.selected.values()] == [1.0, 1.0]


def test_labels_decide_the_keys_and_rows_and_the_result_is_that_of_the_predictions(features) -> None:
    made = features(names=("toy", "other"))
    result = linear.evaluate(made, **{**VALUES, "labels": ["all", "10%", "1%"]})
    keys = [f"{name}{subset}" for name in ("toy", "other") for subset in ("", "/10%", "/1%")]
    assert list(result.examples) == list(result.selected) == keys
    assert [result.selected[key]["rows"] for key in keys] == [400, 40, 10] * 2
    assert sorted(result.values) == sorted(f"{key}/{what}" for key in keys for what in ("top1", "macro"))
    for key in keys:
        test = made.datasets[key.partition("/")[0]].test
        np.testing.assert_array_equal(result.examples[key].label, test.labels)
        np.testing.assert_array_equal(result.examples[key].index, test.indices)
        assert result.values[f"{key}/top1"].value == (result.examples[key].predicted == test.labels).mean()
    assert result.values["toy/top1"] > result.values["toy/1%/top1"]


def test_features_are_standardised_so_scale_and_offset_do_not_matter(features) -> None:
    data = features().datasets["toy"]
    scales = np.geomspace(0.01, 1024, 24)
    moved = mapped(data, lambda rows: (rows * scales + 8 * scales).astype(np.float32))
    first, second = (linear.evaluate(only(given), **VALUES) for given in (data, moved))
    for key in ("toy", "toy/10%"):
        assert first.selected[key]["decay"] == second.selected[key]["decay"]
        assert (first.examples[key].predicted != second.examples[key].predicted).sum() <= 1


def test_features_are_standardised_by_all_train_rows_and_no_others(features) -> None:
    data = features().datasets["toy"]
    train = data.train.features.astype(np.float64)
    scaling = Scaling(data.train.features)
    np.testing.assert_array_equal(scaling.mean, train.mean(axis=0))
    np.testing.assert_array_equal(scaling.scale, 1 / train.std(axis=0))
    for name in SPLITS:
        split = getattr(data, name)
        rows = linear._rows(split, scaling.inputs)
        assert rows.x.dtype == torch.float64
        expected = (split.features - train.mean(axis=0)) / train.std(axis=0)
        np.testing.assert_allclose(rows.x[:, :-1].numpy(), expected, rtol=0, atol=1e-12)
        assert (rows.x[:, -1] == 1).all()
        np.testing.assert_array_equal(rows.y.numpy(), split.labels)


def test_constant_dimensions_are_harmless(features) -> None:
    data = features().datasets["toy"]

    def constant(rows):
        rows = rows.copy()
        rows[:, 3] = 1234.567
        return rows

    padded = mapped(data, constant)
    padded.test.features[:, 3] += 100  # a constant in train says nothing, whatever it is in test
    got = linear.evaluate(only(padded), **VALUES)
    without = linear.evaluate(only(mapped(data, lambda rows: np.delete(rows, 3, axis=1))), **VALUES)
    assert got.values["toy/top1"].value > 0.8
    for key in ("toy", "toy/10%"):
        assert (got.examples[key].predicted != without.examples[key].predicted).sum() <= 1


def test_collapsed_features_are_evaluated_and_noted(features) -> None:
    flat = mapped(features().datasets["toy"], lambda rows: np.full_like(rows, 0.1))
    result = linear.evaluate(only(flat), **VALUES)
    assert result.values["toy/top1"].value == pytest.approx(0.2)
    assert "collapsed" in result.note


@pytest.mark.parametrize(
    "bad",
    [
        {"labels": []},
        {"decays": []},
        {"decays": [0.1, -0.1]},
        {"folds": 1},
        {"iterations": 0},
        {"tolerance": 0.0},
        {"tolerance": float("nan")},
    ],
)
def test_values_that_make_no_sense_are_refused(features, bad) -> None:
    with pytest.raises(UserError, match="linear: "):
        linear.evaluate(features(), **{**VALUES, **bad})


def test_an_unknown_label_subset_is_refused(features) -> None:
    with pytest.raises(UserError, match="no label subset 'few'"):
        linear.evaluate(features(), **{**VALUES, "labels": ["few"]})
    with pytest.raises(UserError, match="label subset 10% needs 2 images of each of 5 classes; 9 train rows"):
        linear.evaluate(features(rows=(9, 20, 20)), **VALUES)


def test_the_published_values_run(features) -> None:
    values = yaml.safe_load(Path("params/evaluate/linear.yaml").read_text(encoding="utf-8"))["values"]
    result = linear.evaluate(features(), **values)
    assert result.values["toy/top1"].value > 0.8
    assert result.values["toy/1%/top1"].value > 0.4
