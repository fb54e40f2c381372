"""Fast-MoCo is MNCL's module with other values: which ones, and its loss against the authors' formula in numpy."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_crops import IMAGES, Array, Tiny, arrays, batch, clock, features, gradient, slope, standard, unit
from torch import Tensor

from polygrain.config.project import Project
from polygrain.config.stages import stage_of
from polygrain.methods.mncl import MNCL

PROJECT = Project(Path(__file__).resolve().parents[2])


def config_of(run: str) -> dict[str, Any]:
    config: dict[str, Any] = stage_of(PROJECT, "pretrain", f"runs/{run}/seed0").config
    return config


def method() -> MNCL:
    values = config_of("smoke/fashion-mnist/fast-moco/base")["method"]["values"]
    torch.manual_seed(0)
    net = MNCL(Tiny(), **{**values, "hidden": 7, "embedding": 4, "predictor_hidden": 5}).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return net


def projected(p: dict[str, Array], rows: Array, prefix: str) -> Array:
    for place in (0, 3, 6):
        rows = standard(rows @ p[f"{prefix}{place}.weight"].T + p[f"{prefix}{place}.bias"])
        rows = rows * p[f"{prefix}{place + 1}.weight"] + p[f"{prefix}{place + 1}.bias"]
        rows = np.maximum(rows, 0) if place < 6 else rows
    return rows


def predicted(p: dict[str, Array], rows: Array) -> Array:
    rows = standard(rows @ p["predictor.0.weight"].T + p["predictor.0.bias"])
    rows = np.maximum(rows * p["predictor.1.weight"] + p["predictor.1.bias"], 0)
    return rows @ p["predictor.3.weight"].T + p["predictor.3.bias"]


def oracle(p: dict[str, Array], views: list[Tensor]) -> float:
    """The mean cross-entropy of six predictions of pairs of tiles with the other view's whole images, temperature 1."""
    pairs, keys = [], []
    for view in views:
        tiles = [view[:, :, a : a + 4, b : b + 4] for b in (0, 4) for a in (0, 4)]
        encoded = features(p, tiles).reshape(4, IMAGES, -1)
        means = [(encoded[a] + encoded[b]) / 2 for a, b in combinations(range(4), 2)]
        pairs.append(predicted(p, projected(p, np.concatenate(means), "projector.")).reshape(6, IMAGES, -1))
        keys.append(unit(projected(p, features(p, [view], "momentum_backbone."), "momentum_projector.")))
    terms = []
    for own, other in ((0, 1), (1, 0)):
        for rows in unit(pairs[own]):
            logits = rows @ keys[other].T
            terms += [np.log(np.exp(logits[i]).sum()) - logits[i, i] for i in range(IMAGES)]
    return float(np.mean(terms))


def test_value_and_gradient_against_numpy() -> None:
    net = method()
    p, given = arrays(net), batch(0, net.views(clock(0)))
    losses, _ = net(given, clock(0))
    assert list(losses) == ["region"]
    assert losses["region"].item() == pytest.approx(oracle(p, given.views), rel=1e-12)
    trained = [name for name, value in net.named_parameters() if value.requires_grad]
    assert not any(name.startswith("momentum") for name in trained)
    measured, direction = slope(lambda q: oracle(q, given.views), p, trained)
    assert (gradient(net, losses["region"]) @ direction).item() == pytest.approx(measured, rel=1e-6)


def test_it_is_the_cell_of_mncl_with_its_own_temperature() -> None:
    own = config_of("smoke/fashion-mnist/fast-moco/base")["method"]
    cell = config_of("smoke/fashion-mnist/mncl/fastmoco")["method"]
    differing = {key for key, value in own["values"].items() if value != cell["values"][key]}
    assert differing == {"region_temperature"}
    assert (own["name"], own["grains"], own["encoder_passes"]) == ("mncl", cell["grains"], cell["encoder_passes"])


def test_the_recipe_at_paper_scale_is_the_authors() -> None:
    """fastmoco_e100/config.yaml of their code, and the defaults of its networks."""
    config = config_of("paper/imagenet-1k/fast-moco/base")
    optimizer, values, recipe = config["optimizer"], config["method"]["values"], config["augmentation"]["global"]
    assert (optimizer["name"], optimizer["values"]["weight_decay"], optimizer["values"]["momentum"]) == (
        "sgd",
        1e-4,
        0.9,
    )
    schedule = optimizer["schedule"]
    assert (schedule["start"], schedule["base"], schedule["final"]) == (0.025, 0.1, 0.0)
    assert (schedule["warmup"] * 100, config["pretrain"]["epochs"], config["pretrain"]["batch"]) == (1, 100, 512)
    assert optimizer["clip"] == {"rule": "global", "maximum": 1.0}
    assert (values["hidden"], values["embedding"], values["predictor_hidden"]) == (2048, 2048, 512)
    assert (values["splits"], values["combined"], values["region_temperature"], values["momentum"]) == (2, 2, 1.0, 0.99)
    assert (values["predictor_constant"], values["decay_all"]) == (True, True)
    assert (recipe["scale"], recipe["interpolation"], recipe["grey"]) == ([0.2, 1.0], "bicubic", 0.2)
    assert recipe["jitter"] == {"probability": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    assert recipe["blur"] == {"probability": 0.5, "sigma": [0.1, 2.0]}
