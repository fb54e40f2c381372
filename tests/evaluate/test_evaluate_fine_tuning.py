"""Fine-tuning, by a plain re-derivation of its optimiser, by hand-counted layers, and on known data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stripes import BACKBONE, striped_encoder
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from polygrain.backbones.load import load_backbone
from polygrain.evaluate import fine_tuning
from polygrain.evaluate.crops import Plan, crops
from polygrain.evaluate.fine_tuning import evaluate, layers_of, parameter_groups
from polygrain.provenance.errors import UserError
from polygrain.views.recipe import Recipe

VALUES: dict[str, Any] = {
    "labels": ["all", "20%"], "epochs": [6, 12], "head_factors": [5.0, 20.0], "rates": [0.0001, 0.02],
    "layer_decay": 0.7, "momentum": 0.9, "weight_decay": 0.001, "drops": [0.6, 0.8], "drop": 0.2, "batch": 16,
    "scale": [0.6, 1.0], "ratio": [0.75, 4 / 3], "flip": 0.5, "seed": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        (["stem.weight", "stem_norm.bias", "stages.0.0.conv1.weight", "stages.0.0.norm1.bias",
          "stages.0.1.conv1.weight", "stages.1.0.shortcut.0.weight"], [0, 0, 1, 1, 2, 3]),
        (["class_token", "embed.weight", "blocks.0.qkv.weight", "blocks.1.mlp1.bias", "norm.weight"], [0, 0, 1, 2, 3]),
        (["network.conv1.weight", "network.bn1.bias", "network.layer1.0.conv1.weight", "network.layer1.1.bn2.weight",
          "network.layer2.0.downsample.0.weight"], [0, 0, 1, 2, 3]),
        (["weight"], [0]),
    ],
)  # fmt: skip
def test_blocks_are_counted_by_the_names_of_their_parameters(names: list[str], layers: list[int]) -> None:
    assert layers_of(names) == layers


def test_each_block_learns_by_the_decay_slower_than_the_next_and_the_head_by_its_factor() -> None:
    network, head = load_backbone(**BACKBONE, channels=1), torch.nn.Linear(16, 6)
    groups = parameter_groups(network, head, 0.5, 20.0)
    scale = {id(weight): group["lr_scale"] for group in groups for weight in group["params"]}
    decayed = {id(weight): group["decay"] for group in groups for weight in group["params"]}
    expected = {"stem": 0.25, "stem_norm": 0.25, "stages.0": 0.5, "stages.1": 1.0}
    for name, weight in network.named_parameters():
        assert scale[id(weight)] == next(rate for start, rate in expected.items() if name.startswith(f"{start}."))
        assert decayed[id(weight)] == (weight.ndim > 1)
    assert [scale[id(weight)] for weight in head.parameters()] == [20.0, 20.0]
    assert len(scale) == len(list(network.parameters())) + 2


def test_the_weights_are_those_of_plain_momentum_with_rates_that_drop(tmp_path: Path) -> None:
    """Written out: g + wd w, a buffer times the momentum, every layer's rate, drops at 60 and 80 % of the steps."""
    encoder = striped_encoder(tmp_path, np.arange(240) % 6)
    plan = Plan(Recipe(16, (0.6, 1.0), (0.75, 4 / 3), 0.5, interpolation="bicubic"), 2, 16, 0, "fine-tuning")
    training = fine_tuning._Training(plan, 20, 20.0, 0.5, 0.9, 0.01, (12, 16), 0.2)
    tuned = fine_tuning._Tuned(encoder, "toy", "all", training, 0.03)

    network = encoder.finetunable()
    weights = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    weights |= {"head.weight": torch.zeros(6, 16), "head.bias": torch.zeros(6)}
    rate = {
        name: {"stem": 0.25, "stem_norm": 0.25, "stages": 0.5, "head": 20.0}[name.split(".")[0]] for name in weights
    }
    rate |= {name: 1.0 for name in weights if name.startswith("stages.1")}
    velocity = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for step, (views, labels) in enumerate(crops(encoder, "toy", plan)):
        leaves = {name: weight.requires_grad_() for name, weight in weights.items()}
        trunk = {name: weight for name, weight in leaves.items() if not name.startswith("head")}
        pooled = functional_call(network, trunk, (views,)).pooled
        loss = cross_entropy(pooled @ leaves["head.weight"].T + leaves["head.bias"], labels)
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        drop = 1.0 if step < 12 else 0.2 if step < 16 else 0.04
        with torch.no_grad():
            for name, weight in weights.items():
                decay = 0.01 if weight.ndim > 1 else 0.0
                velocity[name] = 0.9 * velocity[name] + gradients[name] + decay * weight
                weights[name] = weight - 0.03 * drop * rate[name] * velocity[name]
    assert step == 19
    found = {**dict(tuned._network.named_parameters()), **{f"head.{k}": v for k, v in tuned._head.named_parameters()}}
    for name, weight in weights.items():
        torch.testing.assert_close(found[name].detach(), weight.detach(), rtol=2e-3, atol=2e-4, msg=name)


def test_it_learns_what_is_there_and_nothing_from_shuffled_labels(tmp_path: Path) -> None:
    labels = np.arange(240) % 6
    found = evaluate(striped_encoder(tmp_path / "true", labels), **VALUES)
    shuffled = np.random.default_rng(2).permutation(labels)
    chance = evaluate(striped_encoder(tmp_path / "shuffled", shuffled), **VALUES)
    assert found.values["toy/top1"].value > 0.95
    assert found.values["toy/20%/top1"].value > 0.7
    assert found.selected["toy"]["rate"] == 0.02
    for key in ("toy", "toy/20%"):
        assert abs(chance.values[f"{key}/top1"].value - 1 / 6) < 0.15
        assert found.examples[key].index.tolist() == list(range(180, 240))
        assert found.examples[key].scores["top1"].mean() == found.values[f"{key}/top1"].value


def test_the_same_bits_twice_and_the_frozen_network_stays_as_it_is(tmp_path: Path) -> None:
    encoder = striped_encoder(tmp_path, np.arange(240) % 6)
    before = {name: value.clone() for name, value in encoder.network.state_dict().items()}
    first, again = evaluate(encoder, **VALUES), evaluate(encoder, **VALUES)
    assert first.values == again.values
    assert first.selected == again.selected
    assert all(torch.equal(value, before[name]) for name, value in encoder.network.state_dict().items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": [1]}, "labels \\(2\\) needs at least one entry"),
        ({"labels": [], "epochs": [], "head_factors": []}, "labels \\(0\\) needs at least one entry"),
        ({"epochs": [0, 1]}, "must be positive"),
        ({"rates": []}, "must be positive"),
        ({"rates": [0.0]}, "must be positive"),
        ({"layer_decay": 1.1}, "layer_decay \\(1.1\\) in"),
        ({"labels": ["all", "a few"]}, "no label subset 'a few'"),
        ({"rates": [1e20], "labels": ["all"], "epochs": [2], "head_factors": [1.0]}, "the loss of toy is not finite"),
    ],
)
def test_values_that_make_no_sense_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        evaluate(striped_encoder(tmp_path / "data", np.arange(240) % 6), **{**VALUES, **change})
