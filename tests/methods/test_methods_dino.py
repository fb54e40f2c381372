"""DINO: loss and gradient against numpy, teacher, centre and frozen prototypes after a step."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_crops import EPOCH, IMAGES, Array, Tiny, arrays, batch, clock, features, gradient, log_softmax, slope
from torch import Tensor

from polygrain.config.project import Project
from polygrain.config.stages import stage_of
from polygrain.methods.dino import DINO, METHOD
from polygrain.nn.batch_norm import synchronise
from polygrain.nn.pairs import cross_entropies, over_pairs
from polygrain.views.batch import Batch

PROJECT = Project(Path(__file__).resolve().parents[2])
STEPS = 3 * EPOCH
BASE: dict[str, Any] = {
    "local_crops": 2,
    "prototypes": 4,
    "norm_last_layer": False,
    "freeze_epochs": 1,
    "student_temperature": 0.1,
    "teacher_temperature": 0.04,
    "final_teacher_temperature": 0.07,
    "teacher_warmup": 2,
    "centre_momentum": 0.9,
    "hidden": 7,
    "embedding": 3,
    "head_norm": False,
    "momentum": 0.9,
    "momentum_end": 1.0,
}


def method(**values: Any) -> DINO:
    """Student and teacher differ, and the centre is not 0: each part has its own effect."""
    torch.manual_seed(0)
    net = synchronise(DINO(Tiny(), **{**BASE, **values})).double()
    assert isinstance(net, DINO)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
        net.centre.add_(0.2 * torch.randn(net.centre.shape, dtype=torch.float64))
    return net


def given(net: DINO, step: int, rows: slice | Tensor = slice(None)) -> Batch:
    return batch(step, net.views(clock(step)), rows)


def loss_of(net: DINO, step: int, rows: slice | Tensor = slice(None)) -> Tensor:
    losses, _ = net(given(net, step, rows), clock(step))
    assert list(losses) == ["group"]
    return losses["group"]


def outputs(p: dict[str, Array], network: str, views: list[Tensor]) -> Array:
    """Logits [S, B, K]: three layers with exact GELU, unit rows, prototypes of unit direction times their length."""
    rows = features(p, views, f"{network}.backbone.")
    for place in (0, 2, 4):
        rows = rows @ p[f"{network}.projector.{place}.weight"].T + p[f"{network}.projector.{place}.bias"]
        if place < 4:
            rows = rows * (1 + np.vectorize(math.erf)(rows / math.sqrt(2))) / 2
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    direction = p[f"{network}.prototypes.direction"]
    c = p[f"{network}.prototypes.gain"] * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    return (rows @ c.T).reshape(len(views), len(views[0]), -1)


def oracle(net: DINO, p: dict[str, Array], step: int) -> float:
    """The loss by loops over pairs and images."""
    views, total, pairs = given(net, step).views, 0.0, 0
    taught, seen = outputs(p, "teacher", views[:2]), outputs(p, "student", views)
    temperature = 0.04 if step < EPOCH else 0.07
    for t in (0, 1):
        share = np.exp(log_softmax((taught[t] - net.centre.numpy()) / temperature))
        for s in set(range(len(views))) - {t}:
            log = log_softmax(seen[s] / 0.1)
            total -= sum(share[i] @ log[i] for i in range(IMAGES)) / IMAGES
            pairs += 1
    return total / pairs


@pytest.mark.parametrize("local_crops", [0, 2])
@pytest.mark.parametrize("step", [0, EPOCH])
def test_value_and_gradient_against_numpy(step: int, local_crops: int) -> None:
    """The second epoch has the final temperature; nothing of the teacher gets a gradient."""
    net = method(local_crops=local_crops)
    p = arrays(net)
    trained = [name for name in p if name.startswith("student.")]
    measured, direction = slope(lambda q: oracle(net, q, step), p, trained)
    value = oracle(net, p, step)
    loss = loss_of(net, step)
    assert loss.item() == pytest.approx(value, rel=1e-12)
    assert (gradient(net, loss) @ direction).item() == pytest.approx(measured, rel=1e-6)
    assert all(parameter.grad is None for parameter in net.teacher.parameters())


def test_the_centre_follows_the_teacher_after_its_use() -> None:
    net = method()
    p, centre = arrays(net), net.centre.numpy().copy()
    loss_of(net, 0)
    mean = outputs(p, "teacher", given(net, 0).views[:2]).mean((0, 1))
    np.testing.assert_allclose(net.centre.numpy(), 0.9 * centre + 0.1 * mean, rtol=1e-12)
    still = method(centre_momentum=1.0)
    before = still.centre.clone()
    loss_of(still, 0)
    assert torch.equal(still.centre, before)


@pytest.mark.parametrize("step", [0, 5, STEPS - 1])
def test_the_teacher_follows_the_student(step: int) -> None:
    net = method()
    p = arrays(net)
    running = net.teacher.backbone.batch_norm.running_mean.clone()
    loss_of(net, step)
    statistics = net.teacher.backbone.batch_norm.running_mean.clone()
    assert not torch.equal(statistics, running), "the teacher is in training mode"
    net.after_step(clock(step))
    m = 1.0 - 0.1 * (1 + math.cos(math.pi * step / STEPS)) / 2
    for name, value in net.teacher.named_parameters():
        wanted = m * p[f"teacher.{name}"] + (1 - m) * p[f"student.{name}"]
        np.testing.assert_allclose(value.numpy(), wanted, rtol=1e-12, err_msg=name)
    assert torch.equal(net.teacher.backbone.batch_norm.running_mean, statistics)
    copied = method(momentum=0.0, momentum_end=0.0)
    copied.after_step(clock(step))
    assert torch.equal(copied.teacher.prototypes.direction, copied.student.prototypes.direction)


def test_student_and_teacher_start_equal() -> None:
    torch.manual_seed(0)
    net = DINO(Tiny(), **BASE)
    for name, value in net.teacher.state_dict().items():
        assert torch.equal(value, net.student.state_dict()[name])
    assert not any(parameter.requires_grad for parameter in net.teacher.parameters())
    assert net.encoder_name == "teacher.backbone."


def test_prototypes_stand_still_at_first() -> None:
    for step, trained in ((0, False), (EPOCH - 1, False), (EPOCH, True)):
        net = method()
        gradient(net, loss_of(net, step))
        net.after_clip()
        for parameter in net.student.prototypes.parameters():
            assert (parameter.grad is not None) is trained
        assert net.student.projector[0].weight.grad is not None
    assert not method(norm_last_layer=True).student.prototypes.gain.requires_grad


def test_only_full_size_views_reach_the_teacher() -> None:
    net, seen = method(), []
    net.teacher.backbone.register_forward_hook(lambda _, inputs, output: seen.append(tuple(inputs[0].shape)))
    loss_of(net, 0)
    assert seen == [(2 * IMAGES, 1, 8, 8)]
    assert net.views(clock(0)) == ("global_a", "global_b", "local_a", "local_a")


def test_a_case_counted_by_hand() -> None:
    """Two views, two prototypes, one image; the teacher's temperature 1, the student's 0.5."""
    student, teacher = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]), torch.tensor([[[2.0, 0.0]], [[0.0, 0.0]]])
    loss = over_pairs(cross_entropies(student.double(), teacher.double().softmax(2), 0.5), "flat")
    high = 1 / (1 + math.exp(-2))
    first = -(high * math.log(1 - high) + (1 - high) * math.log(high))  # view 1 teaches view 2
    second = -(math.log(high) + math.log(1 - high)) / 2
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-12)


def test_collapse_gives_ln_k() -> None:
    net = method()
    with torch.no_grad():
        net.student.prototypes.gain.zero_()
    assert loss_of(net, 0).item() == pytest.approx(math.log(4), rel=1e-12)


def test_order_labels_and_indices_do_not_matter() -> None:
    loss = loss_of(method(), 0)
    shuffled = loss_of(method(), 0, torch.tensor([4, 2, 0, 5, 1, 3]))
    torch.testing.assert_close(shuffled, loss, rtol=1e-12, atol=0)
    net = method()
    whole = given(net, 0)
    other = Batch(whole.views, [], whole.indices.flip(0), 2 - whole.labels_for_monitoring)
    assert torch.equal(net(other, clock(0))[0]["group"], loss)
    assert METHOD.uses_labels is False


def test_what_is_trained_and_what_is_carried() -> None:
    net = method(head_norm=True)
    assert {g["name"]: len(g["params"]) for g in net.parameter_groups()} == {"decayed": 6, "not_decayed": 10}
    assert {name.partition(".")[0] for name in net.state_dict()} == {"student", "teacher", "centre"}
    monitors = net(given(net, 0), clock(0))[1]
    assert not any(value.requires_grad for value in monitors.values())
    assert set(monitors) == {"batch_entropy", "sample_entropy", "occupancy", "spread", "rank"}


def test_the_recipe_at_paper_scale_is_the_authors() -> None:
    """The command for 300 epochs in their README, and the defaults of main_dino.py."""
    config: dict[str, Any] = stage_of(PROJECT, "pretrain", "runs/paper/imagenet-1k/dino/base/seed0").config
    optimizer, values, recipes = config["optimizer"], config["method"]["values"], config["augmentation"]
    assert optimizer["schedule"]["base"] == pytest.approx(5e-4 * config["pretrain"]["batch"] / 256)
    assert optimizer["schedule"]["warmup"] * config["pretrain"]["epochs"] == pytest.approx(10)
    assert (optimizer["values"]["weight_decay"], optimizer["final_weight_decay"]) == (0.04, 0.4)
    assert optimizer["clip"] == {"rule": "each", "maximum": 3.0}
    assert (values["prototypes"], values["hidden"], values["embedding"], values["local_crops"]) == (65536, 2048, 256, 8)
    temperatures = values["teacher_temperature"], values["final_teacher_temperature"], values["teacher_warmup"]
    assert temperatures == (0.04, 0.07, 30)
    assert (values["momentum"], values["centre_momentum"], values["freeze_epochs"]) == (0.996, 0.9, 1)
    assert [recipes[name]["scale"] for name in ("global_a", "global_b", "local_a")] == [[0.4, 1], [0.4, 1], [0.05, 0.4]]
    assert [recipes[name]["blur"]["probability"] for name in ("global_a", "global_b", "local_a")] == [1.0, 0.1, 0.5]
    assert [recipes[name].get("solarise") is None for name in ("global_a", "global_b", "local_a")] == [
        True,
        False,
        True,
    ]
    assert config["method"]["encoder_passes"] == pytest.approx(8 + 24 * (96 / 224) ** 2, abs=0.01)


def run(rows: slice) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    net = method(head_norm=True)
    for step in (0, 1):
        loss = loss_of(net, step, rows)
        net.after_step(clock(step))
    return loss.detach(), gradient(net, loss), dict(net.named_buffers())
