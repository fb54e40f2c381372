"""The Swin of SMoG's authors: window attention cell by cell in numpy, its block as written, torchvision's elsewhere."""

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear
from torchvision.models.swin_transformer import PatchMerging, shifted_window_attention

from polygrain.backbones.droppath import set_drop_path_key
from polygrain.backbones.load import load_backbone
from polygrain.backbones.swin import Merge, SwinBlock, WindowAttention

SWIN_T: dict[str, Any] = {
    "image_size": 224, "patch": 4, "widths": [96, 192, 384, 768], "depths": [2, 2, 6, 2], "heads": [3, 6, 12, 24],
    "window": 7, "drop_path": 0.2,
}  # fmt: skip
SMALL: dict[str, Any] = {
    "image_size": 32, "patch": 2, "widths": [12, 24, 48], "depths": [2, 2, 2], "heads": [2, 3, 4], "window": 4,
    "drop_path": 0.0,
}  # fmt: skip


def _load(values: dict[str, Any], channels: int = 1) -> Any:
    torch.manual_seed(0)
    return load_backbone("swin", channels=channels, **values)


def _spread(module: nn.Module) -> Any:
    """Weights far enough from zero that every term shows."""
    generator = torch.Generator().manual_seed(2)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return module.double()


def _attention_by_cells(module: WindowAttention, x_hwC: np.ndarray) -> np.ndarray:
    """One cell after the other: who shares its window and its side of the border, and what it takes from them."""
    window, shift, heads = module.window, module.shift, module.heads
    weights = {name: value.detach().numpy() for name, value in module.named_parameters()}
    rows, columns, width = x_hwC.shape
    high, wide = (-(-side // window) * window for side in (rows, columns))
    padded = np.zeros((high, wide, width))
    padded[:rows, :columns] = x_hwC
    qkv = padded @ weights["qkv.weight"].T + weights["qkv.bias"]
    query, key, value = (part.reshape(high, wide, heads, -1) for part in np.split(qkv, 3, axis=-1))

    def seat(place: int, side: int) -> tuple[int, int, bool]:
        """Window, position in it, and whether the window's shift carried the cell around the border."""
        moved = (place - shift) % side
        return moved // window, moved % window, place < shift

    out = np.zeros((rows, columns, width))
    for row in range(rows):
        for column in range(columns):
            mine = seat(row, high), seat(column, wide)
            scores, values = [], []
            for other_row in range(high):
                for other_column in range(wide):
                    other = seat(other_row, high), seat(other_column, wide)
                    if any(a[0] != b[0] or a[2] != b[2] for a, b in zip(mine, other, strict=True)):
                        continue
                    down, across = (a[1] - b[1] + window - 1 for a, b in zip(mine, other, strict=True))
                    bias = weights["relative_bias"][down * (2 * window - 1) + across]
                    product = (query[row, column] * key[other_row, other_column]).sum(-1)
                    scores.append(product / np.sqrt(width // heads) + bias)
                    values.append(value[other_row, other_column])
            share = np.exp(np.array(scores) - np.max(scores, axis=0))
            share /= share.sum(axis=0)
            mixed = (share[:, :, None] * np.array(values)).sum(axis=0).reshape(-1)
            out[row, column] = weights["projection.weight"] @ mixed + weights["projection.bias"]
    return out


@pytest.mark.parametrize(
    ("side", "window", "shift"),
    [(8, 4, 0), (8, 4, 2), (6, 4, 2), (5, 4, 0), (6, 7, 3), (3, 7, 0), (9, 3, 1)],
    ids=["plain", "shifted", "padded and shifted", "padded", "one padded window, shifted", "smaller", "odd"],
)
def test_attention_is_the_loop_over_cells(side: int, window: int, shift: int) -> None:
    module = _spread(WindowAttention(6, 2, window, shift))
    x = torch.randn(2, side, side, 6, dtype=torch.float64)
    result = module(x).detach().numpy()
    for image in range(2):
        np.testing.assert_allclose(result[image], _attention_by_cells(module, x[image].numpy()), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("side", "shift"), [(14, 3), (21, 3), (14, 0), (7, 0)])
def test_attention_is_torchvisions_where_the_window_divides_the_map(side: int, shift: int) -> None:
    module = _spread(WindowAttention(12, 3, 7, shift))
    x = torch.randn(2, side, side, 12, dtype=torch.float64)
    bias = module.relative_bias[module.relative_index].permute(2, 0, 1)[None]
    expected = shifted_window_attention(
        x, module.qkv.weight, module.projection.weight, bias, [7, 7], 3, [shift, shift],
        qkv_bias=module.qkv.bias, proj_bias=module.projection.bias,
    )  # fmt: skip
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-12)


def test_relative_positions_are_numbered_as_torchvisions() -> None:
    theirs = torchvision.models.swin_transformer.ShiftedWindowAttention(12, [7, 7], [0, 0], 3)
    ours = WindowAttention(12, 3, 7, 0)
    assert torch.equal(ours.relative_index.flatten(), theirs.relative_position_index)
    assert ours.relative_bias.shape == theirs.relative_position_bias_table.shape


@pytest.mark.parametrize("side", [6, 5])
def test_merge_is_torchvisions(side: int) -> None:
    ours, theirs = _spread(Merge(4, 8)), PatchMerging(4).double()
    theirs.norm.load_state_dict(ours.norm.state_dict())
    theirs.reduction.load_state_dict(ours.linear.state_dict())
    x = torch.randn(2, side, side, 4, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)


def test_block_keeps_the_order_of_the_authors() -> None:
    """Attention with its shortcut, batch norm over images and cells, then the MLP with a shortcut from the norm."""
    block = _spread(SwinBlock(6, 2, 4, 2, 0.0, "block")).train()
    x = torch.randn(3, 6, 6, 6, dtype=torch.float64)
    attended = x + block.attention(layer_norm(x, (6,), block.norm1.weight, block.norm1.bias, eps=1e-5))
    cells = attended.detach().reshape(-1, 6)
    mean, variance = cells.mean(0), cells.var(0, correction=0)
    normed = (attended - mean) / (variance + 1e-5).sqrt() * block.norm2.weight + block.norm2.bias

    def mlp(y: Tensor) -> Tensor:
        hidden = gelu(linear(y, block.mlp1.weight, block.mlp1.bias))
        return linear(hidden, block.mlp2.weight, block.mlp2.bias)

    result = block(x)
    torch.testing.assert_close(result, normed + mlp(normed), rtol=0, atol=1e-11)
    stock = attended + mlp(normed)  # the usual shortcut is another network
    assert float((result - stock).detach().norm() / stock.detach().norm()) > 0.1
    torch.testing.assert_close(block.norm2.running_mean, 0.1 * mean)
    torch.testing.assert_close(block.norm2.running_var, 0.9 + 0.1 * cells.var(0))


def test_block_has_the_right_gradient() -> None:
    torch.manual_seed(0)
    block = SwinBlock(4, 2, 2, 1, 0.0, "block").double()
    x = torch.randn(1, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in block.named_parameters()]

    def function(x: Tensor, *parameters: Tensor) -> Any:
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *block.parameters()))


def _without_norm2(ours: Any, theirs: Any) -> None:
    """torchvision's network with our weights; batch norm is the identity in ours, the norm before the MLP in theirs."""
    parts: dict[str, nn.Module] = {"features.0.0": ours.embed, "features.0.2": ours.embed_norm, "norm": ours.norm}
    for place, stage in enumerate(ours.stages):
        blocks = list(stage)
        if place > 0:
            merge = blocks.pop(0)
            parts |= {f"features.{2 * place}.norm": merge.norm, f"features.{2 * place}.reduction": merge.linear}
        for number, block in enumerate(blocks):
            name = f"features.{2 * place + 1}.{number}"
            parts |= {f"{name}.norm1": block.norm1, f"{name}.mlp.0": block.mlp1, f"{name}.mlp.3": block.mlp2}
            parts |= {f"{name}.attn.qkv": block.attention.qkv, f"{name}.attn.proj": block.attention.projection}
            theirs.get_submodule(name).attn.relative_position_bias_table = block.attention.relative_bias
            theirs.get_submodule(name).norm2 = nn.Identity()
            nn.init.constant_(block.norm2.running_var, 1.0 - block.norm2.eps)
    for name, part in parts.items():
        theirs.get_submodule(name).load_state_dict(part.state_dict())
    theirs.head = nn.Identity()


@pytest.mark.parametrize("size", [224, 96])
def test_without_batch_norm_it_is_torchvisions_swin_t(size: int) -> None:
    """The whole Swin-T in float64: stages, shifts, merges, final norm. At 96 px it is made for 96 px (see below)."""
    ours = _load({**SWIN_T, "image_size": size}, channels=3).eval()
    theirs = torchvision.models.swin_t(weights=None).eval()
    stock = sum(parameter.numel() for parameter in theirs.parameters()) - 768 * 1000 - 1000
    assert sum(parameter.numel() for parameter in ours.parameters()) == stock == 27_519_354
    ours, theirs = ours.double(), theirs.double()
    _without_norm2(ours, theirs)
    images = torch.randn(1, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        encoded, pooled = ours(images), theirs(images)
        assert float(pooled.std()) > 0.1
        torch.testing.assert_close(encoded.pooled, pooled, rtol=0, atol=1e-11)
        torch.testing.assert_close(encoded.pooled, encoded.tokens.mean(1))


def _shifts(backbone: Any) -> list[list[int]]:
    return [[block.attention.shift for block in stage if isinstance(block, SwinBlock)] for stage in backbone.stages]


def test_shifts_are_fixed_by_the_size_that_the_network_is_made_for() -> None:
    """At 224 px the last stage's map is one window. Smaller crops keep the shifts, as in the authors' code."""
    assert _shifts(_load(SWIN_T)) == [[0, 3], [0, 3], [0, 3, 0, 3, 0, 3], [0, 0]]
    assert _shifts(_load({**SWIN_T, "image_size": 96})) == [[0, 3], [0, 3], [0] * 6, [0, 0]]
    assert _shifts(_load(SMALL)) == [[0, 2], [0, 2], [0, 0]]
    assert _shifts(_load({**SMALL, "image_size": 36})) == [[0, 2], [0, 2], [0, 2]]  # maps 18, 9, 5


@pytest.mark.parametrize(("size", "cells"), [(32, 4), (28, 4), (16, 2), (64, 8), (18, 3)])
def test_sizes_that_the_window_does_not_divide_are_served(size: int, cells: int) -> None:
    assert _load(SMALL)(torch.randn(2, 1, size, size)).map.shape == (2, 48, cells, cells)


def test_swin_starts_as_described() -> None:
    backbone = _load({**SMALL, "widths": [48, 96, 192], "heads": [3, 6, 12]})
    for name, parameter in backbone.named_parameters():
        if name.startswith("embed."):
            continue
        if name.endswith("relative_bias") or (name.endswith("weight") and parameter.ndim == 2):
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.2), name
        else:
            assert (parameter == (1.0 if name.endswith("weight") else 0.0)).all(), name
    assert sum("relative" in name for name, _ in backbone.named_parameters()) == 6
    assert not any("index" in name for name in backbone.state_dict())


def test_drop_path_rises_to_its_rate_and_is_off_in_evaluation() -> None:
    backbone = _load({**SMALL, "drop_path": 0.5})
    blocks = [module for module in backbone.modules() if isinstance(module, SwinBlock)]
    assert [block.drop1.rate for block in blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert [block.drop2.rate for block in blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    images = torch.randn(4, 1, 32, 32)
    state = torch.random.get_rng_state()
    maps = []
    for seed in (3, 3, 4):
        set_drop_path_key(backbone, seed, 5, 4)
        maps.append(backbone(images).map)
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])
    assert torch.equal(state, torch.random.get_rng_state())
    backbone.eval()
    plain = _load(SMALL).eval()
    plain.load_state_dict(backbone.state_dict())
    assert torch.equal(backbone(images).map, plain(images).map)
