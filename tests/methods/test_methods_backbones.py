"""Every method trains every family of backbones, on small images and at 224 px with small crops.

Methods are found by their files in params/method. A step of real data reaches every parameter of the trained encoder.
"""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from packing import pack
from torch import Tensor, nn

from polygrain.backbones.contract import Backbone
from polygrain.config.project import Project
from polygrain.config.stages import stage_of
from polygrain.train.run import Training
from polygrain.train.state import Identity

PROJECT = Project(Path(__file__).resolve().parents[2])
SMALL = {
    "resnet-smoke": {"name": "resnet", "widths": [8, 16, 32], "strides": [1, 2, 2], "blocks": [1, 1, 1]}
    | {"stem_stride": 2},
    "vit": {"name": "vit", "image_size": 28, "patch": 7, "width": 24, "depth": 2, "heads": 2, "drop_path": 0.0},
}
# the layouts of params/backbone/resnet18.yaml and vit-s.yaml, narrower; the former starts its branches at zero, so that
# in the first step no gradient could pass them
WIDTHS = {"resnet18": {"widths": [16, 32, 64, 128], "zero_init_residual": False}, "vit-s": {"width": 48, "depth": 2}}
LARGE = {
    name: {**yaml.safe_load((PROJECT.params / "backbone" / f"{name}.yaml").read_text()), "image_size": 224, **narrow}
    for name, narrow in WIDTHS.items()
}
del LARGE["resnet18"]["image_size"]
# what holds for one map only: MGC's windows divide the side of the token map, here 4, 4, 7 and 14, and say its grains
WINDOWS = {
    "resnet-smoke": ([1, 2, 4], ["patch", "region", "instance"]),
    "vit": ([1, 2, 4], ["patch", "region", "instance"]),
    "resnet18": ([1, 7], ["patch", "instance"]),
    "vit-s": ([1, 2, 7], ["patch", "region"]),
}
# sizes of the papers' recipes brought down to a batch of 4
TINY = {
    "batch": 4, "images": 8, "groups": 3, "queue": 8, "memory": 8, "neighbours": 2, "prototypes": 12, "hidden": 32,
    "prediction_hidden": 32, "predictor_hidden": 32, "embedding": 24, "bottleneck": 24, "local_neighbours": 1,
    "relation_heads": 4,
}  # fmt: skip


def config_of(scale: str, method: str, variant: str) -> dict[str, Any]:
    dataset = {"smoke": "fashion-mnist", "paper": "imagenet-1k"}[scale]
    return copy.deepcopy(stage_of(PROJECT, "pretrain", f"runs/{scale}/{dataset}/{method}/{variant}/seed0").config)


METHODS = [
    path.stem
    for path in sorted((PROJECT.params / "method").glob("*.yaml"))
    if config_of("smoke", path.stem, "base")["steps"]
]


def pack_slopes(folder: Path, *, images: int, channels: int, side: int) -> Path:
    """Noise on gradients, in ten classes."""
    slope = np.linspace(0, 150, side, dtype=np.int64)
    pixels = np.random.default_rng(0).integers(0, 106, (images, channels, side, side)) + slope
    order, none = np.arange(images), np.arange(0)
    return pack(folder, pixels, order % 10, {"train": order, "validation": none, "test": none})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_slopes(tmp_path_factory.mktemp("small"), images=128, channels=1, side=28)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_slopes(tmp_path_factory.mktemp("large"), images=8, channels=3, side=48)


def fit(config: dict[str, Any], backbone: str, **changes: Any) -> None:
    """Bring a method's values down to what the map and the batch allow."""
    values = config["method"]["values"]
    values |= {key: value for key, value in changes.items() if key in values}
    if config["method"]["name"] == "mugs":
        values["queue"] = dict.fromkeys(("instance", "local-group"), changes["queue"])
    if "windows" in values:
        values["windows"], config["method"]["grains"] = WINDOWS[backbone]
        for key in ("pairs", "row_strides", "column_strides"):
            values[key] = values[key][: len(values["windows"])]


def take_steps(config: dict[str, Any], data: Path, steps: int) -> tuple[Training, dict[str, Tensor]]:
    """Train without warm-up, so that the first step has a rate above 0; returns the evaluated encoder before it."""
    config["optimizer"]["schedule"]["warmup"] = 0.0
    config["steps"], config["pretrain"]["log_every"] = steps + 2, 1
    training = Training(config, data, Path("unused"), Identity("", "", "", ""), resume=False)
    before = {name: value.clone() for name, value in evaluated(training.method).items()}
    for _ in range(steps):
        training.take_step()
    return training, before


def evaluated(method: Any) -> dict[str, Tensor]:
    return {name: value for name, value in method.named_parameters() if name.startswith(method.encoder_name)}


def encoder_parameters(method: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters of every backbone in a method, the momentum copies' not among them."""
    return {
        f"{name}.{inner}": parameter
        for name, module in method.named_modules()
        if isinstance(module, Backbone)
        for inner, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def check(training: Training, before: dict[str, Tensor]) -> None:
    lines = [json.loads(line) for line in training.metrics]
    assert len(lines) == training.step
    for line in lines:
        assert all(math.isfinite(value) for value in line.values()), line
        assert set(training.config["method"]["grains"]) <= set(line)
        assert line["gradient_norm"] > 0
    trained = encoder_parameters(training.method)
    assert trained
    unreached = [name for name, value in trained.items() if value.grad is None or not value.grad.any()]
    assert unreached == []
    after = evaluated(training.method)
    assert set(after) == set(before)
    still = [name for name, value in after.items() if torch.equal(value, before[name])]
    assert still == []


@pytest.mark.parametrize("backbone", SMALL)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_either_family_on_small_images(method: str, backbone: str, small: Path) -> None:
    config = config_of("smoke", method, "base")
    config["backbone"] = SMALL[backbone]
    config["pretrain"] |= {"images": 128, "batch": 32}
    fit(config, backbone, images=128, batch=32, groups=12, memory=64, queue=64)
    check(*take_steps(config, small, steps=2))


@pytest.mark.parametrize("backbone", LARGE)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_either_family_at_224_px_with_its_small_crops(method: str, backbone: str, large: Path) -> None:
    """The paper's recipe, with narrow heads and few small crops."""
    config = config_of("paper", method, "multicrop" if method == "wcl" else "base")
    config["backbone"] = LARGE[backbone]
    config["pretrain"] |= {"device": "cpu", "workers": 0, "images": 8, "batch": 4}
    fit(config, backbone, **TINY)
    crops = {key: 2 for key in ("local_crops", "small") if config["method"]["values"].get(key)}
    config["method"]["values"] |= crops
    training, before = take_steps(config, large, steps=1)
    check(training, before)
    views = training.data.batch(training.clock, training.method.views(training.clock)).views
    assert {view.shape[-1] for view in views} == ({224, 96} if crops else {224})
