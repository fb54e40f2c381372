"""Optimisers against numpy in float64, group by group; their state goes through a file and back bit for bit."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from polygrain.nn.optim import OPTIMIZERS, build, set_learning_rate, set_weight_decay, split_by_decay
from polygrain.provenance.errors import UserError

VALUES: dict[str, dict[str, Any]] = {
    "adamw": {"weight_decay": 0.05, "beta_1": 0.9, "beta_2": 0.99, "eps": 1e-8},
    "sgd": {"weight_decay": 0.05, "momentum": 0.9, "nesterov": False},
    "lars": {"weight_decay": 0.05, "momentum": 0.9, "trust": 0.02},
    "larc": {"weight_decay": 0.05, "momentum": 0.9, "trust": 0.02},
}
STEPS, RATE = 5, 0.3


def oracle(name: str, w: np.ndarray, gradients: list[np.ndarray], decay: bool, values: dict[str, Any]) -> np.ndarray:
    """The written rules, one tensor, float64."""
    w, wd = w.copy(), values["weight_decay"] if decay else 0.0
    m, v, buffer = np.zeros_like(w), np.zeros_like(w), None
    for t, raw in enumerate(gradients, start=1):
        if name == "adamw":
            m = values["beta_1"] * m + (1 - values["beta_1"]) * raw
            v = values["beta_2"] * v + (1 - values["beta_2"]) * raw**2
            corrected = m / (1 - values["beta_1"] ** t)
            scale = np.sqrt(v / (1 - values["beta_2"] ** t)) + values["eps"]
            w = w - RATE * wd * w - RATE * corrected / scale
            continue
        g, norm_w, norm_raw = raw + wd * w, np.linalg.norm(w), np.linalg.norm(raw)
        if name == "lars" and decay and norm_w > 0 and np.linalg.norm(g) > 0:
            g = g * values["trust"] * norm_w / np.linalg.norm(g)
        if name == "larc" and decay:
            live = norm_w > 0 and norm_raw > 0
            g = g * values["trust"] * norm_w / (norm_raw + wd * norm_w + 1e-8) if live else raw
        buffer = g if buffer is None else values["momentum"] * buffer + g
        w = w - RATE * (g + values["momentum"] * buffer if values.get("nesterov") else buffer)
    return w


def problem(seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, list[np.ndarray]]]:
    draw = np.random.default_rng(seed)
    shapes = {"matrix": (3, 4), "zero": (2, 2), "bias": (4,), "still": (2, 3)}
    weights = {name: draw.normal(size=shape) for name, shape in shapes.items()}
    weights["zero"][:] = 0.0
    gradients = {name: [draw.normal(size=shape) for _ in range(STEPS)] for name, shape in shapes.items()}
    gradients["still"] = [np.zeros((2, 3))] * STEPS
    return weights, gradients


def groups(parameters: dict[str, nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": [p for name, p in parameters.items() if name != "bias"], "name": "decayed", "decay": True},
        {"params": [parameters["bias"]], "name": "not_decayed", "decay": False},
    ]


def tensors(weights: dict[str, np.ndarray]) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.tensor(value)) for name, value in weights.items()}


def advance(
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, nn.Parameter],
    gradients: dict[str, list[np.ndarray]],
    steps: range,
) -> None:
    for t in steps:
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(gradients[name][t], dtype=parameter.dtype)
        set_learning_rate(optimizer, base=9.0, scheduled=RATE)
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "changed"), [*((name, {}) for name in OPTIMIZERS), ("sgd", {"nesterov": True}), ("sgd", {"momentum": 0.5})]
)
def test_rule(name: str, changed: dict[str, Any]) -> None:
    if changed.get("nesterov") is None and name == "sgd":
        changed = {"nesterov": False, **changed}
    values = {**VALUES[name], **changed}
    weights, gradients = problem()
    parameters = tensors(weights)
    advance(build(name, groups(parameters), **values), parameters, gradients, range(STEPS))
    for key, parameter in parameters.items():
        expected = oracle(name, weights[key], gradients[key], key != "bias", values)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12, atol=1e-14, err_msg=key)


def test_lars_golden() -> None:
    # |w| = 5, u = g + 0.1 w = (3.2, 4.4), |u| = sqrt(29.6); s = u * 0.001 * 5 / |u|; w <- w - 2 s.
    w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    w.grad = torch.tensor([2.9, 4.0], dtype=torch.float64)
    optimizer = build(
        "lars", [{"params": [w], "name": "a", "decay": True}], weight_decay=0.1, momentum=0.9, trust=0.001
    )
    set_learning_rate(optimizer, base=2.0, scheduled=2.0)
    optimizer.step()
    assert w.tolist() == pytest.approx([3 - 0.01 * 3.2 / 29.6**0.5, 4 - 0.01 * 4.4 / 29.6**0.5], rel=1e-15)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_round_trip_is_bit_exact(name: str) -> None:
    weights, gradients = problem(1)
    weights = {key: value.astype(np.float32) for key, value in weights.items()}
    straight = tensors(weights)
    advance(build(name, groups(straight), **VALUES[name]), straight, gradients, range(STEPS))

    killed = tensors(weights)
    optimizer = build(name, groups(killed), **VALUES[name])
    advance(optimizer, killed, gradients, range(2))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = {key: nn.Parameter(p.detach().clone()) for key, p in killed.items()}
    again = build(name, groups(resumed), **VALUES[name])
    again.load_state_dict(torch.load(file, weights_only=True))
    advance(again, resumed, gradients, range(2, STEPS))
    for key in straight:
        assert torch.equal(straight[key], resumed[key]), key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_parameter_without_gradient_stays(name: str) -> None:
    still, moving = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    moving.grad = torch.ones(2, 2)
    optimizer = build(name, [{"params": [still, moving], "name": "a", "decay": True}], **VALUES[name])
    set_learning_rate(optimizer, base=1.0, scheduled=0.5)
    optimizer.step()
    assert torch.equal(still, torch.ones(2, 2))
    assert not torch.equal(moving, torch.ones(2, 2))


def test_rates_of_groups() -> None:
    made = [nn.Parameter(torch.ones(1)) for _ in range(3)]
    optimizer = build(
        "sgd",
        [
            {"params": [made[0]], "name": "plain", "decay": True},
            {"params": [made[1]], "name": "patch", "decay": True, "lr_scale": 0.2},
            {"params": [made[2]], "name": "predictor", "decay": True, "lr_constant": True},
        ],
        **VALUES["sgd"],
    )
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0, 0.0]
    set_learning_rate(optimizer, base=1.0, scheduled=0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1, 1.0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_that_moves_is_used_in_the_very_step_and_by_decayed_groups_alone(name: str) -> None:
    """Steps under decay a, b, c are the same as one step each of optimisers made with a, b, c that share a state."""
    weights, gradients = problem(2)
    moved, decays = tensors(weights), [0.0, 0.5, 0.1]
    optimizer = build(name, groups(moved), **{**VALUES[name], "weight_decay": 9.0})
    made = tensors(weights)
    state: dict[str, Any] | None = None
    for t, decay in enumerate(decays):
        untouched = optimizer.param_groups[1]["weight_decay"]
        set_weight_decay(optimizer, decay)
        assert [group["weight_decay"] for group in optimizer.param_groups] == [decay, untouched]
        advance(optimizer, moved, gradients, range(t, t + 1))
        fresh = build(name, groups(made), **{**VALUES[name], "weight_decay": decay})
        if state is not None:
            for group in state["param_groups"]:
                group["weight_decay"] = decay if group["decay"] else 0.0
            fresh.load_state_dict(state)
        advance(fresh, made, gradients, range(t, t + 1))
        state = fresh.state_dict()
    for key in moved:
        assert torch.equal(moved[key], made[key]), key
    constant = tensors(weights)
    advance(build(name, groups(constant), **{**VALUES[name], "weight_decay": 9.0}), constant, gradients, range(3))
    assert torch.equal(constant["bias"], moved["bias"]), "not decayed, so untouched by any of it"
    assert not torch.equal(constant["matrix"], moved["matrix"])


def test_moved_weight_decay_golden() -> None:
    # AdamW without gradient: w <- w (1 - rate * decay), here 1 - 0.5 * 0.2 and then 1 - 0.5 * 0.4
    w = nn.Parameter(torch.tensor([[2.0]], dtype=torch.float64))
    optimizer = build("adamw", [{"params": [w], "name": "a", "decay": True}], **VALUES["adamw"])
    for decay in (0.2, 0.4):
        w.grad = torch.zeros(1, 1, dtype=torch.float64)
        set_learning_rate(optimizer, base=1.0, scheduled=0.5)
        set_weight_decay(optimizer, decay)
        optimizer.step()
    assert w.item() == pytest.approx(2.0 * 0.9 * 0.8, rel=1e-15)


def test_split_by_decay() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2, bias=False), nn.Linear(2, 2))
    module[3].requires_grad_(False)
    decayed, others = split_by_decay(module)
    assert (decayed["name"], decayed["decay"]) == ("decayed", True)
    assert (others["name"], others["decay"]) == ("not_decayed", False)
    assert [id(p) for p in decayed["params"]] == [id(module[0].weight), id(module[2].weight)]
    assert [id(p) for p in others["params"]] == [id(module[0].bias), id(module[1].weight), id(module[1].bias)]
    assert [group["name"] for group in split_by_decay(nn.BatchNorm1d(2))] == ["not_decayed"]


def test_bad_requests() -> None:
    with pytest.raises(UserError, match="did you mean 'adamw'"):
        build("adam", [])
    with pytest.raises(UserError, match="nothing to train"):
        build("sgd", [], **VALUES["sgd"])
