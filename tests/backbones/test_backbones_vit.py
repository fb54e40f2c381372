"""Papers' vision transformers against timm's, MGC's fixed positions, and Mugs's way of sampling the position table."""

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional

from polygrain.backbones.load import load_backbone
from polygrain.backbones.vit import bicubic_matrix

PARAMS = Path(__file__).parents[2] / "params" / "backbone"
TIMM = {"vit-s": "vit_small_patch16_224", "vit-b": "vit_base_patch16_224", "vit-l": "vit_large_patch16_224"}
SMALL: dict[str, Any] = {"image_size": 32, "patch": 4, "width": 48, "depth": 2, "heads": 3, "drop_path": 0.0}


def _values(stem: str, **changes: Any) -> dict[str, Any]:
    config = OmegaConf.create({"input_size": 224, "backbone": OmegaConf.load(PARAMS / f"{stem}.yaml")})
    values: Any = OmegaConf.to_container(config, resolve=True)
    return {key: value for key, value in {**values["backbone"], **changes}.items() if key != "name"}


def _load(values: dict[str, Any], channels: int = 3) -> Any:
    torch.manual_seed(0)
    return load_backbone("vit", channels=channels, **values)


def _copy(ours: Any, theirs: Any, table_1DGG: Tensor) -> None:
    """Our weights into timm's network, with the given patch positions."""
    patches = table_1DGG.flatten(2).mT
    state = {
        "cls_token": ours.class_token, "pos_embed": torch.cat((ours.positions[:, :1], patches), dim=1),
        "patch_embed.proj.weight": ours.embed.weight, "patch_embed.proj.bias": ours.embed.bias,
        "norm.weight": ours.norm.weight, "norm.bias": ours.norm.bias,
    }  # fmt: skip
    names = {"qkv": "attn.qkv", "projection": "attn.proj", "mlp1": "mlp.fc1", "mlp2": "mlp.fc2"}
    for key, value in ours.blocks.state_dict().items():
        place, part, kind = key.split(".")
        state[f"blocks.{place}.{names.get(part, part)}.{kind}"] = value
    theirs.load_state_dict(state)


@pytest.mark.parametrize("stem", list(TIMM))
def test_number_of_parameters_is_timms(stem: str) -> None:
    with torch.device("meta"):
        ours, theirs = _load(_values(stem)), timm.create_model(TIMM[stem], num_classes=0)
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (ours, theirs)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("stem", "depth", "size", "resample"),
    [
        ("vit-s", 12, 96, "size"), ("vit-s", 3, 96, "factor"), ("vit-s", 2, 224, "size"), ("vit-s", 2, 224, "factor"),
        ("vit-b", 1, 224, "size"), ("vit-b", 1, 96, "factor"), ("vit-l", 1, 96, "size"),
    ],
)  # fmt: skip
def test_outputs_are_timms(stem: str, depth: int, size: int, resample: str) -> None:
    """Float64; depth as given, to be quick. The table for 96 px is torch's resize, by size or by Mugs's factor."""
    ours = _load(_values(stem, depth=depth, resample=resample)).double().eval()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.05)
    theirs = timm.create_model(TIMM[stem], num_classes=0, depth=depth, img_size=size).double().eval()
    table = ours.positions.detach()[:, 1:].mT.unflatten(2, (14, 14))
    if size == 96 and resample == "size":
        table = functional.interpolate(table, (6, 6), mode="bicubic")
    elif size == 96:
        table = functional.interpolate(table, scale_factor=(6.1 / 14, 6.1 / 14), mode="bicubic")
    _copy(ours, theirs, table)
    images = torch.randn(1, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        encoded, expected = ours(images), theirs.forward_features(images)
    assert float(expected.std()) > 1e-2
    torch.testing.assert_close(encoded.pooled, expected[:, 0], rtol=0, atol=1e-10)
    torch.testing.assert_close(encoded.tokens, expected[:, 1:], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("source", "target"), [(14, 6), (14, 7), (8, 4), (4, 2), (8, 16), (3, 5)])
def test_factor_is_torchs_resize_by_the_factor(source: int, target: int) -> None:
    weight = bicubic_matrix(source, target, 0.1)
    table = torch.randn(1, 3, source, source, dtype=torch.float64)
    factor = (target + 0.1) / source
    expected = functional.interpolate(table, scale_factor=(factor, factor), mode="bicubic", align_corners=False)
    torch.testing.assert_close(weight @ table @ weight.T, expected, atol=1e-12, rtol=0)


def test_factor_is_as_far_from_a_plain_resize_as_the_specification_says() -> None:
    """28 % of a white-noise table's norm, from 14 x 14 to 6 x 6."""
    table = torch.randn(500, 14, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    by_size, by_factor = (w @ table @ w.T for w in (bicubic_matrix(14, 6), bicubic_matrix(14, 6, 0.1)))
    assert float((by_factor - by_size).norm() / by_size.norm()) == pytest.approx(0.285, abs=0.01)


def test_nothing_is_resampled_where_the_grid_fits() -> None:
    images = torch.randn(2, 1, 32, 32)
    maps = [_load({**SMALL, "resample": name}, channels=1)(images).map for name in ("size", "factor")]
    assert torch.equal(maps[0], maps[1])


def _wave(row: int, column: int, width: int) -> list[float]:
    quarter = width // 4
    omega = [10000 ** (-i / quarter) for i in range(quarter)]
    angles = (row, math.sin), (row, math.cos), (column, math.sin), (column, math.cos)
    return [wave(place * w) for place, wave in angles for w in omega]


@pytest.mark.parametrize("resample", ["size", "factor"])
def test_sincos_positions_are_mgcs_and_stay(resample: str) -> None:
    """Row before column, sine before cosine, nothing for the class token; resized like a learned table."""
    backbone = _load({**SMALL, "positions": "sincos", "resample": resample}, channels=1)
    table = torch.tensor([[_wave(row, column, 48) for column in range(8)] for row in range(8)], dtype=torch.float64)
    torch.testing.assert_close(backbone.positions[0, 1:], table.float().flatten(0, 1), rtol=0, atol=1e-6)
    assert _wave(1, 0, 8) == pytest.approx([math.sin(1), 0.0099998, math.cos(1), 0.99995, 0, 0, 1, 1], abs=1e-6)
    assert not backbone.positions[0, 0].any()
    # neither trained nor stored
    names = [*dict(backbone.named_parameters()), *backbone.state_dict()]
    assert not any("position" in name for name in names)
    assert "class_token" in names
    for block in backbone.blocks:  # blocks that add nothing
        nn.init.zeros_(block.projection.weight)
        nn.init.zeros_(block.mlp2.weight)
    images = torch.randn(2, 1, 16, 16)
    factor = (4 + (0.1 if resample == "factor" else 0.0)) / 8
    resized = functional.interpolate(table.permute(2, 0, 1)[None], scale_factor=(factor, factor), mode="bicubic")
    embedded = backbone.embed(images) + resized
    expected = functional.layer_norm(embedded.permute(0, 2, 3, 1), (48,), eps=1e-6)
    torch.testing.assert_close(backbone(images).map.permute(0, 2, 3, 1).double(), expected, atol=1e-5, rtol=0)
    first = functional.layer_norm(backbone.class_token[0, 0], (48,), eps=1e-6)
    torch.testing.assert_close(backbone(images).pooled, first.expand(2, -1), atol=1e-5, rtol=0)


def test_the_small_network_is_what_it_was() -> None:
    """Golden values of the first release: names, draws and outputs, for the table's size and a smaller one."""
    torch.manual_seed(7)
    backbone = load_backbone("vit", channels=1, **SMALL)
    first = ["class_token", "positions", "embed.weight", "embed.bias", "blocks.0.norm1.weight"]
    assert list(backbone.state_dict())[:5] == first
    images = torch.linspace(-2, 2, 2 * 32 * 32).reshape(2, 1, 32, 32).sin()
    golden = {32: [0.519533, 1.198745, -1.103676, -0.662282], 16: [0.602653, 1.240009, -1.101347, -0.591041]}
    for size, expected in golden.items():
        assert backbone(images[..., :size, :size]).pooled[0, :4].tolist() == pytest.approx(expected, abs=1e-5)


def test_trunk_and_finish_are_the_two_halves() -> None:
    backbone = _load(SMALL, channels=1)
    images = torch.randn(2, 1, 16, 16)
    tokens = backbone.trunk(images)
    assert tokens.shape == (2, 17, 48)
    finished, whole = backbone.finish(tokens), backbone(images)
    for part in ("tokens", "map", "pooled"):
        assert torch.equal(getattr(finished, part), getattr(whole, part))
    normed = functional.layer_norm(tokens, (48,), backbone.norm.weight, backbone.norm.bias, eps=1e-6)
    torch.testing.assert_close(whole.pooled, normed[:, 0])


def test_an_image_can_be_the_mean_of_its_patches():
    images = torch.rand(2, 3, 32, 32)
    by_class, by_mean = (_load({**SMALL, "pooled": pooled}) for pooled in ("class", "mean"))
    tokens, mean = by_class(images).tokens, by_mean(images).pooled
    assert torch.equal(mean, tokens.mean(dim=1))
    assert not torch.allclose(by_class(images).pooled, mean)
