"""Models of timm and torchvision behind the contract: their outputs, their start, and nothing drawn in training."""

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from polygrain.backbones.load import load_backbone
from polygrain.provenance.errors import UserError


def _load(name: str, model: str, channels: int = 3, image_size: int | None = None, **values: Any) -> Any:
    torch.manual_seed(0)
    return load_backbone(name, channels=channels, model=model, image_size=image_size, **values)


@pytest.mark.parametrize(
    ("model", "size", "cells"), [("resnet18", 64, 2), ("resnet50", 64, 2), ("swin_t", 64, 2), ("vit_b_16", 48, 3)]
)
def test_torchvision_models_are_torchvisions(model: str, size: int, cells: int) -> None:
    """From one seed: the same parameters, and what their classifier gets from them."""
    sized = {"image_size": size} if model == "vit_b_16" else {}
    ours = _load("torchvision", model, **sized).eval()
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(model, weights=None, **sized).eval()
    theirs.set_submodule({"resnet": "fc", "swin_t": "head"}.get(model[:6], "heads"), nn.Identity())
    state = theirs.state_dict()
    assert [key.removeprefix("network.") for key in ours.state_dict()] == list(state)
    assert all(torch.equal(value, state[key.removeprefix("network.")]) for key, value in ours.state_dict().items())
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        encoded, expected = ours(images), theirs(images)
    assert encoded.map.shape == (1, ours.width, cells, cells)
    torch.testing.assert_close(encoded.pooled, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", ["resnet34", "resnet101", "wide_resnet50_2"])
def test_other_residual_networks_of_torchvision_are_there(model: str) -> None:
    with torch.device("meta"):
        backbone = _load("torchvision", model, channels=1)
    encoded = backbone(torch.empty(2, 1, 224, 224, device="meta"))
    assert encoded.map.shape == (2, backbone.width, 7, 7)


def test_torchvisions_transformer_serves_other_sizes_as_ours_does() -> None:
    """With blocks that add nothing, tokens are the norm of the patches and torch's resize of the table."""
    backbone = _load("torchvision", "vit_b_16", channels=1, image_size=64)
    network = backbone.network
    for block in network.encoder.layers:
        for weight in (block.self_attention.out_proj.weight, block.mlp[3].weight, block.mlp[3].bias):
            nn.init.zeros_(weight)
    table = network.encoder.pos_embedding[0, 1:].T.unflatten(1, (4, 4))[None]
    images = torch.randn(2, 1, 96, 96)
    resized = nn.functional.interpolate(table, (6, 6), mode="bicubic")
    embedded = (network.conv_proj(images) + resized).permute(0, 2, 3, 1)
    expected = nn.functional.layer_norm(embedded, (768,), eps=1e-6).permute(0, 3, 1, 2)
    torch.testing.assert_close(backbone(images).map, expected, rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="patch 16 does not tile a view of 40 x 40 px"):
        backbone(torch.randn(1, 1, 40, 40))


@pytest.mark.parametrize(
    ("model", "first", "std"),
    [
        ("resnet18", "conv1", (2 / (64 * 49)) ** 0.5),  # Kaiming's fan out does not see the input channels
        ("swin_t", "features.0.0", (1 / (3 * 16)) ** 0.5),  # uniform on +-fan_in^-0.5, fan_in = 16
        ("vit_b_16", "conv_proj", 1 / 16),  # fan_in^-0.5, fan_in = 256
    ],
)
def test_a_first_convolution_on_one_channel_starts_by_its_models_law(model: str, first: str, std: float) -> None:
    convolution = _load("torchvision", model, channels=1).network.get_submodule(first)
    assert convolution.weight.shape[1] == 1
    assert float(convolution.weight.detach().std()) == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize(
    ("name", "model", "value", "zero"),
    [
        ("torchvision", "resnet18", False, False), ("torchvision", "resnet50", True, True),
        ("timm", "resnet18", False, False), ("timm", "resnet50", True, True), ("timm", "resnet18", None, True),
    ],
)  # fmt: skip
def test_residual_branches_start_as_asked(name: str, model: str, value: bool | None, zero: bool) -> None:
    backbone = _load(name, model, **({} if value is None else {"zero_init_residual": value}))
    last = "bn3" if model == "resnet50" else "bn2"
    norms = {key: m for key, m in backbone.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert len(norms) == (53 if model == "resnet50" else 20)
    for key, norm in norms.items():
        assert bool(norm.weight.any()) == (not (zero and key.endswith(last))), key


@pytest.mark.parametrize(
    ("name", "model", "size"),
    [("timm", "swin_tiny_patch4_window7_224", 224), ("torchvision", "swin_t", 64)],
)
def test_training_draws_nothing(name: str, model: str, size: int) -> None:
    """Both libraries would drop paths of a Swin by default, from torch's generator."""
    backbone = _load(name, model).train()
    images = torch.randn(1, 3, size, size)
    state = torch.random.get_rng_state()
    with torch.no_grad():
        maps = [backbone(images).map for _ in range(2)]
    assert torch.equal(maps[0], maps[1])
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_timm_transformer_says_that_it_takes_one_size() -> None:
    backbone = _load("timm", "vit_tiny_patch16_224", channels=1, image_size=64)
    with pytest.raises(UserError, match="no views of 32 px"):
        backbone(torch.randn(1, 1, 32, 32))
