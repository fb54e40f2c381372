"""Parts that are ours: ViT's block, learned positions and size, drop path, the map of pixels."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from polygrain.backbones.droppath import DropPath, set_drop_path_key
from polygrain.backbones.load import load_backbone
from polygrain.backbones.transformer import TransformerBlock
from polygrain.backbones.vit import bicubic_matrix

VIT: dict[str, Any] = {"image_size": 32, "patch": 4, "width": 48, "depth": 3, "heads": 3, "drop_path": 0.0}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_vit_small_has_the_published_number_of_parameters() -> None:
    values = {"image_size": 224, "patch": 16, "width": 384, "depth": 12, "heads": 6, "drop_path": 0.1}
    assert _count(load_backbone("vit", channels=3, **values)) == 21_665_664


def test_vit_starts_as_described() -> None:
    torch.manual_seed(0)
    backbone = load_backbone("vit", channels=1, **{**VIT, "width": 192})
    for name, parameter in backbone.named_parameters():
        if name.startswith("embed"):
            continue
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.15), name


def test_vit_block_is_the_formula() -> None:
    """Attention written out head by head in float64."""
    torch.manual_seed(0)
    block = TransformerBlock(24, 3, 0.0, "block").double()
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    normed = block.norm1(x)
    heads = []
    for head in range(3):
        part = [slice(24 * which + 8 * head, 24 * which + 8 * head + 8) for which in range(3)]
        query, key, value = (normed @ block.qkv.weight[rows].T + block.qkv.bias[rows] for rows in part)
        heads.append(torch.softmax(query @ key.mT / 8**0.5, dim=-1) @ value)
    attended = x + block.projection(torch.cat(heads, dim=-1))
    hidden = block.mlp1(block.norm2(attended))
    expected = attended + block.mlp2(hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)))
    torch.testing.assert_close(block(x), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("source", "target"), [(8, 4), (8, 7), (8, 16), (14, 6), (4, 2), (5, 5)])
def test_positions_are_torchs_bicubic_resize(source: int, target: int) -> None:
    weight = bicubic_matrix(source, target)
    torch.testing.assert_close(weight.sum(dim=1), torch.ones(target, dtype=torch.float64))
    table = torch.randn(1, 3, source, source, dtype=torch.float64)
    expected = functional.interpolate(table, (target, target), mode="bicubic", align_corners=False)
    torch.testing.assert_close(weight @ table @ weight.T, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("side", [16, 32, 48])
def test_position_table_reaches_its_patch(side: int) -> None:
    """With blocks that add nothing, a token is the norm of its patch's embedding plus its place in the table."""
    torch.manual_seed(0)
    backbone: Any = load_backbone("vit", channels=1, **VIT)
    for block in backbone.blocks:
        nn.init.zeros_(block.projection.weight)
        nn.init.zeros_(block.mlp2.weight)
    nn.init.normal_(backbone.positions)
    images = torch.randn(2, 1, side, side)
    grid = side // 4
    resized = functional.interpolate(
        backbone.positions[:, 1:].mT.unflatten(2, (8, 8)), (grid, grid), mode="bicubic", align_corners=False
    )
    expected = functional.layer_norm((backbone.embed(images) + resized).permute(0, 2, 3, 1), (48,), eps=1e-6)
    torch.testing.assert_close(backbone(images).map.permute(0, 2, 3, 1), expected, atol=1e-5, rtol=0)
    first = functional.layer_norm((backbone.class_token + backbone.positions[:, :1])[0, 0], (48,), eps=1e-6)
    torch.testing.assert_close(backbone(images).pooled, first.expand(2, -1), atol=1e-5, rtol=0)


def test_drop_path_is_keyed_by_seed_step_place_and_pass() -> None:
    ones = torch.ones(4000, 2, 3)

    def masks(seed: int = 0, step: int = 0, place: str = "block 0") -> list[torch.Tensor]:
        module = DropPath(0.25, place).train()
        set_drop_path_key(module, seed, step, 4000)
        return [module(ones), module(ones)]

    first, second = masks()
    assert first.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert float((first == 0).double().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(first, first[:, :1, :1].expand_as(first))
    assert torch.equal(first, masks()[0])
    for other in (second, masks(seed=1)[0], masks(step=1)[0], masks(place="block 1")[0]):
        assert not torch.equal(first, other)
    # a sample's draw does not depend on how many follow it
    module = DropPath(0.25, "block 0").train()
    set_drop_path_key(module, 0, 0, 100)
    assert torch.equal(module(ones[:100]), first[:100])


def test_drop_path_rises_to_its_rate_and_is_off_in_evaluation() -> None:
    backbone: Any = load_backbone("vit", channels=1, **{**VIT, "drop_path": 0.4})
    assert [block.drop1.rate for block in backbone.blocks] == [0.0, 0.2, 0.4]
    assert [block.drop2.rate for block in backbone.blocks] == [0.0, 0.2, 0.4]
    images = torch.randn(8, 1, 32, 32)
    with pytest.raises(RuntimeError, match="set_drop_path_key"):
        backbone.train()(images)
    state = torch.random.get_rng_state()
    set_drop_path_key(backbone, 3, 5, 8)
    first, second = backbone(images).pooled, backbone(images).pooled
    set_drop_path_key(backbone, 3, 5, 8)
    assert torch.equal(backbone(images).pooled, first)
    assert not torch.equal(first, second)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(backbone.eval()(images).pooled, backbone(images).pooled)


def test_pixels_are_the_linear_map_of_their_buffers() -> None:
    backbone: Any = load_backbone("pixels", channels=2, image_size=3, width=4)
    images = torch.randn(5, 2, 3, 3)
    assert not backbone(images).pooled.any()
    backbone.mean.copy_(torch.randn(18))
    backbone.components.copy_(torch.randn(18, 4))
    expected = (images.reshape(5, 18).double() - backbone.mean.double()) @ backbone.components.double()
    torch.testing.assert_close(backbone(images).pooled.double(), expected, atol=1e-5, rtol=0)
    assert sorted(backbone.state_dict()) == ["components", "mean"]
