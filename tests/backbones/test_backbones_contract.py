"""Every backbone keeps the one contract: shapes, tokens, pooled, gradients, repeatability, closed loading."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from polygrain.backbones.contract import Backbone
from polygrain.backbones.load import load_backbone
from polygrain.config.signature import values_model
from polygrain.provenance.errors import UserError

RESNET = {"widths": [16, 32, 64, 128], "strides": [1, 2, 2, 1], "blocks": [1, 1, 1, 1], "stem_stride": 2}
DEEP = {**RESNET, "stem_kernel": 7, "stem_pool": True, "bottleneck": True}
VIT = {"image_size": 32, "patch": 4, "width": 48, "depth": 2, "heads": 3, "drop_path": 0.0}
SWIN = {
    "image_size": 32, "patch": 2, "widths": [12, 24, 48], "depths": [2, 2, 2], "heads": [2, 3, 4], "window": 4,
    "drop_path": 0.0,
}  # fmt: skip
CASES: list[tuple[str, dict[str, Any], int, int]] = [
    *(("resnet", RESNET, size, -(-size // 8)) for size in (16, 28, 32, 64)),
    *(("resnet", DEEP, size, -(-size // 16)) for size in (32, 49)),
    *(("vit", VIT, size, size // 4) for size in (16, 28, 32, 64)),
    ("vit", {**VIT, "positions": "sincos", "resample": "factor"}, 16, 4),
    *(("swin", SWIN, size, -(-size // 8)) for size in (16, 28, 32, 64)),
    ("timm", {"model": "resnet18", "image_size": None}, 64, 2),
    ("timm", {"model": "vit_tiny_patch16_224", "image_size": None}, 224, 14),
    ("timm", {"model": "vit_tiny_patch16_224", "image_size": 64}, 64, 4),
    ("timm", {"model": "swin_tiny_patch4_window7_224", "image_size": None}, 224, 7),
    ("torchvision", {"model": "resnet18", "image_size": None}, 64, 2),
    ("torchvision", {"model": "swin_t", "image_size": None}, 96, 3),
    ("torchvision", {"model": "vit_b_16", "image_size": 64}, 32, 2),
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
    if name in ("resnet", "pixels", "swin"):
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


@pytest.mark.parametrize(
    ("name", "values", "size"), [("resnet", RESNET, 32), ("resnet", DEEP, 49), ("vit", VIT, 28), ("swin", SWIN, 28)]
)
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


@pytest.mark.parametrize(
    ("name", "values", "size"),
    [("resnet", RESNET, 32), ("vit", {**VIT, "drop_path": 0.5}, 32), ("swin", {**SWIN, "drop_path": 0.5}, 28)],
)
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
        ("resnet", {**RESNET, "stem_kernel": 4}, "stem_kernel must be odd, not 4"),
        ("vit", {**VIT, "patch": 5}, "patch 5 does not divide 32"),
        ("vit", {**VIT, "heads": 7}, "heads 7 does not divide 48"),
        ("vit", {**VIT, "width": 6, "positions": "sincos"}, "a width that 4 divides, not 6"),
        ("swin", {**SWIN, "heads": [2, 3]}, "the same number of stages"),
        ("swin", {**SWIN, "heads": [2, 3, 5]}, "heads 5 does not divide 48"),
        ("swin", {**SWIN, "patch": 3}, "patch 3 does not divide 32"),
        ("timm", {"model": "resnet19", "image_size": None}, "no model 'resnet19'; did you mean 'resnet"),
        ("timm", {"model": "resnet18", "image_size": 64}, "resnet18 refuses image_size"),
        (
            "timm",
            {"model": "vit_tiny_patch16_224", "image_size": None, "zero_init_residual": False},
            "zero_init_residual",
        ),
        ("torchvision", {"model": "resnet19", "image_size": None}, "no model 'resnet19'; did you mean 'resnet"),
        ("torchvision", {"model": "resnet18", "image_size": 64}, "resnet18 refuses image_size"),
        (
            "torchvision",
            {"model": "swin_t", "image_size": None, "zero_init_residual": True},
            "refuses zero_init_residual",
        ),
        ("torchvision", {"model": "squeezenet1_1", "image_size": None}, "squeezenet1_1 is not supported"),
        ("pixels", {"image_size": 2, "width": 5}, "more than the 4 pixels"),
    ],
)
def test_faults_are_named(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_backbone(name, channels=1, **values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "values", "size"),
    [("vit", VIT, 30), ("swin", SWIN, 31), ("pixels", {"image_size": 28, "width": 4}, 32)],
)
def test_views_of_a_wrong_size_are_refused(name: str, values: dict[str, Any], size: int) -> None:
    with pytest.raises(UserError, match=f"{size} x {size}"):
        _load(name, values)(_images(size))


def _published_size(path: Path) -> Backbone:
    """The network whose parameters its Cost line counts: small ones for grey images of 32 px, others for 224 px."""
    grey = "one channel" in path.read_text(encoding="utf-8")
    config = OmegaConf.create({"input_size": 32 if grey else 224, "backbone": OmegaConf.load(path)})
    values: Any = OmegaConf.to_container(config, resolve=True)
    with torch.device("meta"):
        return load_backbone(**values["backbone"], channels=1 if grey else 3)


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("params/backbone/*.yaml")), ids=lambda p: p.stem)
def test_each_yaml_builds(path: Path) -> None:
    """At 32 px, without numbers: shapes are all that a meta tensor has, and ViT-L's parameters are 1.2 GB."""
    config = OmegaConf.create({"input_size": 32, "backbone": OmegaConf.load(path)})
    values: Any = OmegaConf.to_container(config, resolve=True)
    module = f"polygrain.backbones.{values['backbone']['name']}"
    model = values_model(module, "build", without=("channels",))
    model.of(path.name, {key: value for key, value in values["backbone"].items() if key != "name"})
    with torch.device("meta"):
        backbone = load_backbone(**values["backbone"], channels=1).eval()
    images = torch.empty(2, 1, 32, 32, device="meta")
    assert backbone(images).pooled.shape == (2, backbone.width)
    text = path.read_text(encoding="utf-8")
    assert "# Cost" in text
    count = sum(parameter.numel() for parameter in _published_size(path).parameters())
    assert f"{count or 'no trained'} parameter" in text.replace(",", "")
