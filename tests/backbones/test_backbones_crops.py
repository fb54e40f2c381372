"""Crops of two sizes through every backbone: fused, laid out and rounded, against one plain pass at a time."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polygrain.backbones.contract import Backbone, Encoded
from polygrain.backbones.load import load_backbone
from polygrain.provenance.errors import UserError

RESNET = {"widths": [8, 16, 32], "strides": [1, 2, 2], "blocks": [1, 1, 1], "stem_stride": 2}
IMAGENET = {
    "widths": [16, 32, 64, 128], "strides": [1, 2, 2, 2], "blocks": [1, 1, 1, 1], "stem_stride": 2, "stem_kernel": 7,
    "stem_pool": True, "bottleneck": True,
}  # fmt: skip
VIT = {"image_size": 32, "patch": 4, "width": 48, "depth": 2, "heads": 3, "drop_path": 0.0}
VIT_16 = {"image_size": 224, "patch": 16, "width": 96, "depth": 2, "heads": 2, "drop_path": 0.0, "resample": "factor"}
SWIN = {
    "image_size": 32, "patch": 2, "widths": [12, 24, 48], "depths": [2, 2, 2], "heads": [2, 3, 4], "window": 4,
    "drop_path": 0.0,
}  # fmt: skip
SWIN_T = {
    **SWIN, "image_size": 224, "patch": 4, "widths": [24, 48, 96, 192], "depths": [2, 2, 2, 2], "heads": [3, 6, 12, 24],
    "window": 7,
}  # fmt: skip
SMALL, LARGE = (32, 16), (224, 96)  # two crops of the first, four of the second
Case = tuple[str, dict[str, Any], tuple[int, int]]
WITHOUT_NORM: list[Case] = [
    ("vit", VIT, SMALL),
    ("vit", {**VIT, "positions": "sincos", "resample": "factor"}, SMALL),
    ("vit", VIT_16, LARGE),
]
WITH_NORM: list[Case] = [
    ("resnet", RESNET, SMALL),
    ("resnet", IMAGENET, LARGE),
    ("swin", SWIN, SMALL),
    ("swin", SWIN_T, LARGE),
    ("timm", {"model": "resnet18", "image_size": None}, (64, 32)),
    ("torchvision", {"model": "resnet18", "image_size": None}, (64, 32)),
]


def _load(name: str, values: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return load_backbone(name, channels=1, **values)


def _crops(sizes: tuple[int, int], count: int = 2) -> list[Tensor]:
    """Two large crops and four small ones, one large one at the end so that order matters."""
    generator = torch.Generator().manual_seed(1)
    large, small = sizes
    return [
        torch.randn(count, 1, side, side, generator=generator) for side in (large, small, small, small, small, large)
    ]


def _close(one: Encoded, other: Encoded, tolerance: float = 2e-5) -> None:
    for part in ("tokens", "map", "pooled"):
        torch.testing.assert_close(getattr(one, part), getattr(other, part), rtol=tolerance, atol=tolerance)


def _running(backbone: Backbone) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in backbone.named_buffers() if "running" in name or "tracked" in name}


@pytest.mark.parametrize(
    ("name", "values", "sizes", "joint"),
    [
        *((*case, joint) for case in WITHOUT_NORM for joint in (False, True)),
        ("torchvision", {"model": "vit_b_16", "image_size": 32}, SMALL, False),
    ],
)
def test_fused_is_crop_by_crop_without_batch_norm(name: str, values: Any, sizes: tuple[int, int], joint: bool) -> None:
    backbone, crops = _load(name, values), _crops(sizes)
    with torch.no_grad():
        for encoded, crop in zip(backbone.encode_crops(crops, joint_norm=joint), crops, strict=True):
            _close(encoded, backbone(crop))


@pytest.mark.parametrize(("name", "values", "sizes"), WITH_NORM)
def test_fused_is_crop_by_crop_in_evaluation(name: str, values: Any, sizes: tuple[int, int]) -> None:
    backbone, crops = _load(name, values).eval(), _crops(sizes, count=1)
    with torch.no_grad():
        for encoded, crop in zip(backbone.encode_crops(crops), crops, strict=True):
            _close(encoded, backbone(crop), 1e-4)


@pytest.mark.parametrize(("name", "values", "sizes"), WITH_NORM)
def test_batch_norm_takes_its_statistics_per_size(name: str, values: Any, sizes: tuple[int, int]) -> None:
    """The large crops in one pass, the small ones in another, the running statistics moved in that order."""
    fused = _load(name, values).train()
    apart, crops = copy.deepcopy(fused), _crops(sizes)
    with torch.no_grad():
        encoded = fused.encode_crops(crops)
        for places in ([0, 5], [1, 2, 3, 4]):
            maps = apart(torch.cat([crops[place] for place in places])).map.split(2)
            for place, expected in zip(places, maps, strict=True):
                torch.testing.assert_close(encoded[place].map, expected)
        alone = apart.train()(crops[0]).map
    assert not torch.allclose(encoded[0].map, alone, rtol=1e-3, atol=1e-3)
    apart = _load(name, values).train()
    with torch.no_grad():
        apart(torch.cat([crops[0], crops[5]]))
        apart(torch.cat(crops[1:5]))
    moved = _running(fused)
    assert moved
    for key, value in _running(apart).items():
        torch.testing.assert_close(moved[key], value, msg=key)
        assert not key.endswith("tracked") or int(value) == 2


@pytest.mark.parametrize(("name", "values", "sizes"), [case for case in WITH_NORM if case[0] != "resnet"])
def test_what_cannot_normalise_jointly_says_so(name: str, values: Any, sizes: tuple[int, int]) -> None:
    backbone = _load(name, values)
    before = _running(backbone)
    with pytest.raises(UserError, match="jointly"):
        backbone.encode_crops(_crops(sizes), joint_norm=True)
    assert all(torch.equal(value, before[key]) for key, value in _running(backbone).items())


@pytest.mark.parametrize(
    ("name", "values", "joint"),
    [("resnet", RESNET, False), ("resnet", RESNET, True), ("resnet", IMAGENET, True), ("vit", VIT, False),
     ("swin", SWIN, False)],
)  # fmt: skip
def test_channels_last_is_contiguous(name: str, values: Any, joint: bool) -> None:
    sizes = (64, 32) if values is IMAGENET else SMALL
    results: list[list[Encoded]] = []
    for layout in (torch.contiguous_format, torch.channels_last):
        backbone = _load(name, values).to(memory_format=layout).train()
        crops = [crop.contiguous(memory_format=layout) for crop in _crops(sizes)]
        with torch.no_grad():
            results.append(backbone.encode_crops(crops, joint_norm=joint))
    for one, other in zip(*results, strict=True):
        _close(one, other, 1e-4)


@pytest.mark.parametrize(
    ("name", "values", "joint"), [("resnet", RESNET, True), ("vit", VIT, False), ("swin", SWIN, False)]
)
def test_bfloat16_stays_within_bounds(name: str, values: Any, joint: bool) -> None:
    """Under autocast: pooled within 2 % of float32, as a whole, and the gradient within 20 %."""
    results = []
    for enabled in (False, True):
        backbone = _load(name, values).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            encoded = backbone.encode_crops(_crops(SMALL, count=8), joint_norm=joint)
        pooled = torch.cat([x.pooled.float() for x in encoded])
        nn.functional.normalize(pooled, dim=1).sin().sum().backward()
        results.append((pooled.detach(), torch.cat([p.grad.flatten() for p in backbone.parameters()])))
    for (exact, rounded), bound in zip(zip(*results, strict=True), (0.02, 0.2), strict=True):
        assert 0 < float((rounded - exact).norm() / exact.norm()) < bound
