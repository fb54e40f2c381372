"""Every ablation cell and preset is a run that starts: it builds, takes steps and costs what its file declares."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polygrain.backbones.resnet import ResNet
from polygrain.config.project import Project
from polygrain.config.runs import Run
from polygrain.config.stages import stage_of
from polygrain.data.packed import open_packed
from polygrain.provenance.files import canonical_json, sha256_file, write_text
from polygrain.train.run import Training
from polygrain.train.state import Identity

PROJECT = Project(Path(__file__).resolve().parents[2])
# cells made for one scale: as many groups as cpu scale has images; 224 px views, minutes a step on one core
ELSEWHERE = {("smog", "groups-all"), ("smog", "swin")}
CELLS = sorted({(path.parent.name, path.stem) for path in (PROJECT.params / "variant").glob("*/*.yaml")} - ELSEWHERE)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in ten classes, as many images as the smoke scale asks for."""
    folder = tmp_path_factory.mktemp("noise")
    generator = np.random.default_rng(0)
    np.save(folder / "images.npy", generator.integers(0, 256, (640, 1, 28, 28)).astype(np.uint8))
    np.save(folder / "labels.npy", np.arange(640) % 10)
    np.savez(folder / "splits.npz", train=np.arange(560), validation=np.arange(560, 600), test=np.arange(600, 640))
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
        for name in ("images.npy", "labels.npy", "splits.npz")
    }
    content = {"format": 1, "name": "noise", "mean": [0.5], "std": [0.3], "label_subsets": {}, "files": files}
    write_text(folder / "manifest.json", canonical_json(content))
    assert len(open_packed(folder).split("train")) == 560
    return folder


def config_of(scale: str, method: str, variant: str) -> dict[str, Any]:
    return copy.deepcopy(stage_of(PROJECT, "pretrain", Run(scale, "fashion-mnist", method, variant, 0).path).config)


@pytest.mark.parametrize(("method", "variant"), CELLS, ids=lambda part: part)
def test_a_cell_takes_steps_at_the_cost_that_it_declares(method: str, variant: str, data: Path) -> None:
    """Forwards of every copy of the network, weighted by area; one that carries gradient counts 3."""
    assert config_of("cpu", method, variant) != config_of("cpu", method, "base"), "the cell changes nothing"
    config = config_of("smoke", method, variant)
    training = Training(config, data, Path("unused"), Identity("", "", "", ""), resume=False)
    spent: list[float] = []

    def count(stem: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        area = inputs[0].shape[-1] ** 2 / config["input_size"] ** 2
        spent.append(inputs[0].shape[0] * area * (3 if output.requires_grad else 1))

    for module in training.method.modules():
        if isinstance(module, ResNet):
            module.stem.register_forward_hook(count)
    batch, declared = training.data.batch_size, config["method"]
    training.take_step()
    first = sum(spent)
    training.take_step()
    second = sum(spent) - first
    assert second / batch == pytest.approx(declared["encoder_passes"], abs=0.01)
    images = batch * training.data.steps_per_epoch
    assert (first - second) / images == pytest.approx(declared["start_passes"], abs=0.01)
