"""Linear evaluation on augmented views, by a plain re-derivation of LARS and of the schedule, and on known data."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stripes import striped_encoder

from polygrain.config.project import Project
from polygrain.config.stages import stage_of
from polygrain.evaluate.linear_augmented import RawBufferLars, evaluate, step_rate
from polygrain.provenance.code import code_hashes
from polygrain.provenance.errors import UserError

VALUES: dict[str, Any] = {
    "epochs": 12, "batch": 16, "rate": 2.0, "momentum": 0.9, "trust": 0.1, "eps": 1e-8,
    "scale": [0.5, 1.0], "ratio": [0.75, 4 / 3], "flip": 0.5, "test_every": 5, "seed": 0,
}  # fmt: skip


def test_lars_buffers_the_raw_gradient_and_scales_afterwards() -> None:
    """Float64, five steps: a weight, and a bias that starts at zero and so takes one full step."""
    generator = np.random.default_rng(1)
    start, steps = [generator.normal(size=(3, 4)), np.zeros(3)], 5
    gradients = [[generator.normal(size=part.shape) for part in start] for _ in range(steps)]
    weights = [torch.from_numpy(part.copy()) for part in start]
    optimiser = RawBufferLars(weights, momentum=0.9, trust=0.001, eps=1e-8)
    for step in range(steps):
        optimiser.step([torch.from_numpy(part) for part in gradients[step]], rate=0.8 - 0.1 * step)
    for number, expected in enumerate(start):
        buffer = np.zeros_like(expected)
        for step in range(steps):
            gradient = gradients[step][number]
            buffer = gradient if step == 0 else 0.9 * buffer + gradient
            length = math.sqrt((expected**2).sum())
            ratio = 0.001 * length / (math.sqrt((gradient**2).sum()) + 1e-8) if length else 1.0
            expected = expected - (0.8 - 0.1 * step) * ratio * buffer
        np.testing.assert_allclose(weights[number].numpy(), expected, rtol=1e-12)


def test_the_rate_has_two_steps_at_the_base_and_ends_at_zero() -> None:
    rates = [step_rate(0.8, step, 12) for step in range(12)]
    cosine = [0.8 * (1 + math.cos(math.pi * place / 10)) / 2 for place in range(1, 11)]
    assert rates == pytest.approx([0.8, 0.8, *cosine])
    assert rates[-1] == 0.0
    assert step_rate(0.8, 0, 1) == 0.8


def test_it_learns_what_is_there_and_nothing_from_shuffled_labels(tmp_path: Path) -> None:
    labels = np.arange(240) % 6
    found = evaluate(striped_encoder(tmp_path / "true", labels), **VALUES)
    shuffled = np.random.default_rng(2).permutation(labels)
    chance = evaluate(striped_encoder(tmp_path / "shuffled", shuffled), **VALUES)
    value = {name.removeprefix("toy/"): number.value for name, number in found.values.items()}
    assert value["top1"] > 0.8
    assert 1 / 6 - 0.15 < chance.values["toy/top1"].value < 1 / 6 + 0.15
    assert value["best-top1"] >= value["top1"] == found.examples["toy"].scores["top1"].mean()
    assert value["best-top5"] >= value["top5"] >= value["top1"]
    assert found.examples["toy"].index.tolist() == list(range(180, 240))


def test_the_same_bits_twice_and_the_crops_count(tmp_path: Path) -> None:
    encoder = striped_encoder(tmp_path / "data", np.arange(240) % 6)
    short = {**VALUES, "epochs": 6}
    first, again = evaluate(encoder, **short), evaluate(encoder, **short)
    whole = evaluate(encoder, **{**short, "scale": [1.0, 1.0], "ratio": [1.0, 1.0], "flip": 0.0})
    predicted = [result.examples["toy"].predicted for result in (first, again, whole)]
    assert first.values == again.values
    assert np.array_equal(predicted[0], predicted[1])
    assert not np.array_equal(predicted[0], predicted[2])


@pytest.mark.parametrize("change", [{"epochs": 0}, {"rate": 0.0}, {"momentum": 1.0}, {"test_every": 0}])
def test_values_that_make_no_sense_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="linear-augmented: epochs"):
        evaluate(striped_encoder(tmp_path / "data", np.arange(240) % 6), **{**VALUES, **change})


def test_its_code_holds_the_format_of_the_images_and_nothing_else_that_is_loaded_by_name() -> None:
    project = Project.here()
    stage = stage_of(project, "evaluate", "runs/smoke/fashion-mnist/mncl/base/seed0/results/linear-augmented")
    hashed = {f"polygrain.{name}" for name in ("train.images.pixels", "train.images.encoded", "views.randaugment")}
    assert hashed & code_hashes(stage.entries, project.source).keys() == {"polygrain.train.images.pixels"}
