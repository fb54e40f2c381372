"""Every backbone keeps the one contract: shapes, tokens, pooled, gradients, repeatability, closed loading."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from polygrain.backbones.contract import Backbone
from polygrain.backbones.load import load_backbone
from polygrain.provenance.errors import UserError

RESNET = {"widths": [16, 32, 64, 128], "strides": [1, 2, 2, 1], "blocks": [1, 1, 1, 1], "stem_stride": 2}
VIT = {"image_size": 32, "patch": 4, "width": 48, "depth": 2, "heads": 3, "drop_path": 0.0}
CASES: list[tuple[str, dict[str, Any], int, int]] = [
    *(("resnet", RESNET, size, -(-size // 8)) for size in (16, 28, 32, 64)),
    *(("vit", VIT, size, size // 4) for size in (16, 28, 32, 64)),
    ("timm", {"model": "resnet18", "image_size": None}, 64, 2),
    ("timm", {"model": "vit_tiny_patch16_224", "image_size": None}, 224, 14),
    ("timm", {"model": "vit_tiny_patch16_224", "image_size": 64}, 64, 4),
    ("timm", {"model": "swin_tiny_patch4_window7_224", "image_size": None}, 224, 7),
    ("pixels", {"image_size": 28, "width": 5}, 28, 1),
]


def _load(name: str, values: dict[str, Any], channels: int = 1) -> Backbone:
    torch.manual_seed(0)
    return load_backbone(name, channels=channels, **values)


def _images(size: int, channels: int = 1, count: int = 2) -> torch.Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "values", "size", "cells"), CASES)
def test_contract(name: str, values: dict[str, Any], size: int, cells: int) -> None:
    backbone, images = _load(name, values), _images(size)
    encoded = backbone(images)
    assert encoded.map.shape == (2, backbone.width, cells, cells)
    assert encoded.tokens.shape == (2, cells * cells, backbone.width)
    assert encoded.pooled.shape == (2, backbone.width)
    # tokens are the map's cells, row by row
    for row, column in ((0, 0), (0, cells - 1), (cells - 1, 0), (cells - 1, cells - 1)):
        assert torch.equal(encoded.tokens[:, row * cells + column], encoded.map[:, :, row, column])
    if name in ("resnet", "pixels"):
        torch.testing.assert_close(encoded.pooled, encoded.tokens.mean(dim=1))
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    if trained:
        (encoded.pooled.square().mean() + encoded.tokens.square().mean() * 0.5).backward()
    for label, parameter in backbone.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.isfinite().all(), label


@pytest.mark.parametrize("model", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_timm_layouts_come_out_as_one(model: str) -> None:
    backbone: Any = _load("timm", {"model": model, "image_size": None}).eval()
    images = _images(224)
    with torch.no_grad():
        encoded, raw = backbone(images), backbone.network.forward_features(images)
    if model.startswith("resnet"):
        assert torch.equal(encoded.map, raw)
    elif model.startswith("swin"):
        assert torch.equal(encoded.map[:, :, 2, 5], raw[:, 2, 5])
    else:
        assert torch.equal(encoded.tokens, raw[:, 1:])
        assert torch.equal(encoded.pooled, raw[:, 0])


@pytest.mark.parametrize(("name", "values", "size"), [("resnet", RESNET, 32), ("vit", VIT, 28)])
def test_channels_last_is_contiguous_and_repeats_to_the_bit(name: str, values: dict[str, Any], size: int) -> None:
    images = _images(size, channels=3, count=8)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last, torch.channels_last):
        backbone = _load(name, values, channels=3).to(memory_format=layout).train()
        pooled = backbone(images.contiguous(memory_format=layout)).pooled
        pooled.square().sum().backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in backbone.parameters()])
        results.append((pooled.detach(), gradients))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-5)
    # an activation within rounding of zero takes the other side of its ReLU now and then, so gradients agree as a whole
    assert (results[0][1] - results[1][1]).norm() < 0.02 * results[0][1].norm()
    assert torch.equal(results[1][0], results[2][0])
    assert torch.equal(results[1][1], results[2][1])


@pytest.mark.parametrize(("name", "values", "size"), [("resnet", RESNET, 32), ("vit", {**VIT, "drop_path": 0.5}, 32)])
def test_evaluation_repeats_and_does_not_mix_samples(name: str, values: dict[str, Any], size: int) -> None:
    backbone = _load(name, values).eval()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    images = _images(size, count=6)
    with torch.no_grad():
        whole = backbone(images).pooled
        assert torch.equal(whole, backbone(images).pooled)
        torch.testing.assert_close(backbone(images[3:5]).pooled, whole[3:5], atol=1e-5, rtol=1e-5)
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key])


def test_same_seed_same_parameters() -> None:
    one, other = _load("resnet", RESNET).state_dict(), _load("resnet", RESNET).state_dict()
    assert all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("resnett", {}, "no backbone 'resnett'; did you mean 'resnet'"),
        ("load", {}, "no backbone 'load'"),
        ("resnet", {**RESNET, "width": [8]}, "backbone resnet: unknown key 'width'; did you mean 'widths'"),
        ("resnet", {"widths": [8], "strides": [1], "blocks": [1]}, "key 'stem_stride' is missing"),
        ("resnet", {**RESNET, "blocks": [1]}, "the same number of stages"),
        ("vit", {**VIT, "patch": 5}, "patch 5 does not divide 32"),
        ("vit", {**VIT, "heads": 7}, "heads 7 does not divide 48"),
        ("timm", {"model": "resnet19", "image_size": None}, "no model 'resnet19'; did you mean 'resnet"),
        ("timm", {"model": "resnet18", "image_size": 64}, "resnet18 refuses image_size"),
        ("pixels", {"image_size": 2, "width": 5}, "more than the 4 pixels"),
    ],
)
def test_faults_are_named(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_backbone(name, channels=1, **values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "values", "size"), [("vit", VIT, 30), ("pixels", {"image_size": 28, "width": 4}, 32)])
def test_views_of_a_wrong_size_are_refused(name: str, values: dict[str, Any], size: int) -> None:
    with pytest.raises(UserError, match=f"{size} x {size}"):
        _load(name, values)(_images(size))


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("params/backbone/*.yaml")), ids=lambda p: p.stem)
def test_each_yaml_builds(path: Path) -> None:
    config = OmegaConf.create({"input_size": 32, "backbone": OmegaConf.load(path)})
    values: Any = OmegaConf.to_container(config, resolve=True)
    backbone = load_backbone(**values["backbone"], channels=1).eval()
    with torch.no_grad():
        assert backbone(_images(32)).pooled.shape == (2, backbone.width)
