"""A pyramid behind each kind of network, and copies that may be trained."""

import copy
from typing import Any

import pytest
import torch

from polygrain.backbones.load import load_backbone
from polygrain.evaluate.given import trainable
from polygrain.evaluate.scenes.pyramid import Pyramid
from polygrain.provenance.errors import UserError

RESNET: dict[str, Any] = {
    "name": "resnet", "widths": [4, 6, 8], "strides": [1, 2, 2], "blocks": [1, 1, 1], "stem_stride": 2
}  # fmt: skip
SWIN: dict[str, Any] = {
    "name": "swin", "image_size": 32, "patch": 2, "widths": [8, 16], "depths": [1, 1], "heads": [2, 2], "window": 4,
    "drop_path": 0.2,
}  # fmt: skip
VIT: dict[str, Any] = {
    "name": "vit", "image_size": 32, "patch": 4, "width": 8, "depth": 2, "heads": 2, "drop_path": 0.2
}  # fmt: skip


@pytest.mark.parametrize(
    ("backbone", "strides"), [(RESNET, [2, 4, 8]), (SWIN, [2, 4]), (VIT, [2, 4, 8])], ids=["resnet", "swin", "vit"]
)
def test_levels_of_each_kind_of_network_in_training(backbone: dict[str, Any], strides: list[int]) -> None:
    """Maps of one width, each level half as fine as the one before; every weight that is used gets a gradient."""
    torch.manual_seed(0)
    network = load_backbone(**backbone, channels=1).eval().requires_grad_(False)
    for left_out in range(2):
        pyramid = Pyramid(trainable(network), 5, channels=1, side=32, left_out=left_out)
        assert pyramid.strides == strides[left_out:]
        maps = pyramid(torch.randn(3, 1, 32, 32))
        assert [tuple(level.shape) for level in maps] == [(3, 5, 32 // s, 32 // s) for s in strides[left_out:]]
        torch.stack([level.square().sum() for level in maps]).sum().backward()
        for part in ("embed.weight", "stem.weight", "finer.weight", "fuse.layer_blocks.0.0.weight"):
            weight = dict(pyramid.named_parameters()).get(part, dict(pyramid.network.named_parameters()).get(part))
            assert weight is None or (weight.grad is not None and bool(weight.grad.any())), part


def test_the_levels_are_the_maps_after_each_stage() -> None:
    network = load_backbone(**RESNET, channels=1).eval()
    pyramid, views = Pyramid(network, 5, channels=1, side=32).eval(), torch.randn(2, 1, 32, 32)
    first, second, third = pyramid._levels(views)
    assert torch.equal(third, network(views).map)
    assert torch.equal(network.stages[1]([first])[0], second)
    swin = load_backbone(**SWIN, channels=1).eval()
    maps = Pyramid(swin, 5, channels=1, side=32).eval()._levels(views)
    assert torch.equal(swin.norm(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2), swin(views).map)


def test_building_it_moves_no_statistic_and_leaves_the_mode() -> None:
    network = trainable(load_backbone(**RESNET, channels=1))
    before = copy.deepcopy(network.state_dict())
    pyramid = Pyramid(network, 5, channels=1, side=32)
    assert pyramid.training
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_copy_to_train_has_no_drop_path_and_the_frozen_network_keeps_its_own() -> None:
    frozen = load_backbone(**VIT, channels=1).eval().requires_grad_(False)
    copied = trainable(frozen)
    views = torch.randn(2, 1, 32, 32)
    assert torch.equal(copied(views).pooled, frozen(views).pooled)
    copied(views).pooled.sum().backward()
    assert copied.embed.weight.grad is not None
    assert frozen.embed.weight.grad is None
    frozen.train()
    with pytest.raises(RuntimeError, match="drop path has no key"):
        frozen(views)


def test_what_cannot_be_fine_tuned_or_leaves_no_level_is_one_line() -> None:
    with pytest.raises(UserError, match="backbone pixels: has no weights, so it cannot be fine-tuned"):
        Pyramid(load_backbone(name="pixels", image_size=28, width=5, channels=1), 5, channels=1, side=64)
    with pytest.raises(UserError, match="3 levels are left out, which leaves none"):
        Pyramid(load_backbone(**RESNET, channels=1), 5, channels=1, side=32, left_out=3)
