"""Every ablation cell and preset is a run that starts: it builds, takes steps and costs what its file declares."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from polygrain.backbones.resnet import ResNet
from polygrain.backbones.vit import VisionTransformer
from polygrain.config.project import Project
from polygrain.config.runs import Run
from polygrain.config.stages import stage_of
from polygrain.train.run import Training
from polygrain.train.state import Identity

PROJECT = Project(Path(__file__).resolve().parents[2])
# cells made for scale paper: 224 px views, minutes a step on one core, or a number of epochs
ELSEWHERE = {("smog", "swin"), ("mugs", "vit-l"), ("wcl", "epochs-200"), ("wcl", "epochs-800")}
# a run at smoke scale ends before their first reset, and is refused
LATER = {("smog", f"reset-every-{epochs}") for epochs in (2, 3, 5)}
CELLS = sorted({(path.parent.name, path.stem) for path in (PROJECT.params / "variant").glob("*/*.yaml")} - ELSEWHERE)
METHODS = sorted(path.stem for path in (PROJECT.params / "method").glob("*.yaml"))


def config_of(scale: str, method: str, variant: str) -> dict[str, Any]:
    return copy.deepcopy(stage_of(PROJECT, "pretrain", Run(scale, "fashion-mnist", method, variant, 0).path).config)


@pytest.mark.parametrize(("method", "variant"), CELLS + [(method, "base") for method in METHODS], ids=lambda part: part)
def test_a_cell_takes_steps_at_the_cost_and_on_the_grains_that_it_declares(
    method: str, variant: str, noise: Path
) -> None:
    """Forwards of every copy of the network, weighted by area; one that carries gradient counts 3."""
    config = config_of("smoke" if (method, variant) not in LATER else "cpu", method, variant)
    if (method, variant) in LATER:
        config["pretrain"]["images"] = config["method"]["values"]["images"] = 512
    if variant != "base" and config == config_of("smoke", method, "base"):  # smoke may have that value
        assert config_of("cpu", method, variant) != config_of("cpu", method, "base"), "the cell changes nothing"
    batch = 64 if (method, variant) == ("wcl", "kmeans") else 32  # its 32 clusters need more images than that
    config["pretrain"]["batch"] = batch
    if "batch" in config["method"]["values"]:
        config["method"]["values"]["batch"] = batch
    if config["steps"] == 0:
        assert config["method"]["grains"] == []
        return
    training = Training(config, noise, Path("unused"), Identity("", "", "", ""), resume=False)
    spent: list[float] = []

    def count(network: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in network.parameters())
        area = inputs[0].shape[-1] ** 2 / config["input_size"] ** 2
        spent.append(inputs[0].shape[0] * area * (3 if trained else 1))

    for module in training.method.modules():
        if isinstance(module, ResNet | VisionTransformer):
            stem = module.stem if isinstance(module, ResNet) else module.embed  # its own layer may be frozen
            stem.register_forward_pre_hook(lambda _, inputs, network=module: count(network, inputs))
    terms: list[set[str]] = []
    training.method.register_forward_hook(lambda _, inputs, output: terms.append(set(output[0])))
    batch, declared = training.data.batch_size, config["method"]
    training.take_step()
    first = sum(spent)
    assert terms == [set(declared["grains"])]
    training.take_step()
    second = sum(spent) - first
    assert second / batch == pytest.approx(declared["encoder_passes"], abs=0.01)
    images = batch * training.data.steps_per_epoch
    assert (first - second) / images == pytest.approx(declared["start_passes"], abs=0.01)
