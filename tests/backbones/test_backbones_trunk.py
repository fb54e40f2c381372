"""Tokens before the final norm: `finish(trunk(x))` is `forward(x)`, in values, gradients and statistics."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polygrain.backbones.contract import Backbone, Encoded
from polygrain.backbones.load import load_backbone
from polygrain.provenance.errors import UserError

VIT = {"image_size": 32, "patch": 4, "width": 24, "depth": 2, "heads": 3, "drop_path": 0.0}
RESNET = {"widths": [8, 16], "strides": [1, 2], "blocks": [1, 1], "stem_stride": 2}
SWIN = {
    "image_size": 32, "patch": 2, "widths": [12, 24, 48], "depths": [2, 2, 2], "heads": [2, 3, 4], "window": 4,
    "drop_path": 0.0,
}  # fmt: skip
BOTTLENECK = {**RESNET, "stem_kernel": 7, "stem_pool": True, "bottleneck": True}
SINCOS = {**VIT, "positions": "sincos", "resample": "factor"}
# name, values, side of the view, cells in a row of the map, class tokens
CASES: list[tuple[str, dict[str, Any], int, int, int]] = [
    ("vit", VIT, 32, 8, 1),
    ("vit", VIT, 16, 4, 1),
    ("vit", SINCOS, 16, 4, 1),
    ("vit", {**VIT, "pooled": "mean"}, 32, 8, 1),
    ("resnet", RESNET, 32, 8, 0),
    ("resnet", RESNET, 28, 7, 0),
    ("resnet", BOTTLENECK, 32, 4, 0),
]
ELSEWHERE: list[tuple[str, dict[str, Any], int]] = [
    ("swin", SWIN, 32),
    ("pixels", {"image_size": 28, "width": 5}, 28),
    ("timm", {"model": "resnet18", "image_size": None}, 64),
    ("torchvision", {"model": "resnet18", "image_size": None}, 64),
]


def load(name: str, values: dict[str, Any]) -> Backbone:
    torch.manual_seed(0)
    return load_backbone(name, channels=1, **values)


def images(size: int) -> Tensor:
    return torch.randn(3, 1, size, size, generator=torch.Generator().manual_seed(1))


def parts(encoded: Encoded) -> tuple[Tensor, Tensor, Tensor]:
    return encoded.tokens, encoded.map, encoded.pooled


@pytest.mark.parametrize(("name", "values", "size", "cells", "first"), CASES)
@pytest.mark.parametrize("training", [True, False])
def test_the_chain_is_forward(
    name: str, values: dict[str, Any], size: int, cells: int, first: int, training: bool
) -> None:
    whole, chain = (load(name, values).train(training) for _ in range(2))
    expected, tokens_BTD = whole(images(size)), chain.trunk(images(size))
    found = chain.finish(tokens_BTD)
    assert chain.class_tokens == first
    assert tokens_BTD.shape == (3, first + cells**2, chain.width)
    assert found.map.shape == (3, chain.width, cells, cells)
    for ours, theirs in zip(parts(found), parts(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    for encoded in (found, expected):
        weight = torch.linspace(0.5, 2.0, encoded.map.numel()).view_as(encoded.map)
        ((encoded.map * weight).square().mean() + encoded.pooled.square().mean()).backward()
    for (label, a), b in zip(chain.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=label)
    for (label, a), b in zip(chain.named_buffers(), whole.buffers(), strict=True):
        assert torch.equal(a, b), f"{label}: statistics moved otherwise"


@pytest.mark.parametrize("values", [VIT, SINCOS])
def test_a_transformer_shows_the_class_token_first_and_its_final_norm_apart(values: dict[str, Any]) -> None:
    vit = load("vit", values)
    assert isinstance(vit.norm, nn.LayerNorm)
    with torch.no_grad():
        vit.norm.weight.uniform_(0.5, 2.0)
        vit.norm.bias.uniform_(-1.0, 1.0)
    tokens_BTD = vit.trunk(images(32))
    encoded = vit(images(32))
    # the norm again, from its definition
    mean, variance = tokens_BTD.mean(dim=2, keepdim=True), tokens_BTD.var(dim=2, correction=0, keepdim=True)
    normed = (tokens_BTD - mean) / (variance + 1e-6).sqrt() * vit.norm.weight + vit.norm.bias
    torch.testing.assert_close(encoded.pooled, normed[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoded.tokens, normed[:, 1:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(vit.norm(tokens_BTD), normed, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(tokens_BTD[:, 1:], encoded.tokens, atol=0.1), "the norm does nothing here"
    # before the norm only the trunk is at work: another norm leaves its tokens as they are
    other = copy.deepcopy(vit)
    with torch.no_grad():
        other.norm.weight.zero_()
    assert torch.equal(other.trunk(images(32)), tokens_BTD)
    assert other(images(32)).pooled.std(dim=0).max() == 0


def test_a_residual_network_has_neither_class_token_nor_norm() -> None:
    resnet = load("resnet", RESNET)
    assert isinstance(resnet.norm, nn.Identity)
    assert not list(resnet.norm.state_dict())
    tokens_BND = resnet.trunk(images(32))
    encoded = load("resnet", RESNET)(images(32))
    for row, column in ((0, 0), (0, 7), (7, 0), (3, 5)):
        assert torch.equal(tokens_BND[:, row * 8 + column], encoded.map[:, :, row, column])
    torch.testing.assert_close(resnet.finish(tokens_BND).pooled, encoded.map.mean(dim=(2, 3)))


@pytest.mark.parametrize("case", [CASES[0], CASES[4]], ids=lambda case: case[0])
def test_tokens_may_be_changed_between_trunk_and_finish(case: tuple[str, dict[str, Any], int, int, int]) -> None:
    name, values, size, cells, first = case
    backbone = load(name, values).eval()
    tokens_BTD = backbone.trunk(images(size)).detach()
    order = torch.randperm(cells**2, generator=torch.Generator().manual_seed(2))
    mixed = torch.cat([tokens_BTD[:, :first], tokens_BTD[:, first:][:, order]], dim=1)
    plain, found = backbone.finish(tokens_BTD), backbone.finish(mixed)
    assert torch.equal(found.tokens, plain.tokens[:, order])
    assert torch.equal(found.map.flatten(2), plain.map.flatten(2)[:, :, order])
    torch.testing.assert_close(found.pooled, plain.pooled)


@pytest.mark.parametrize(("name", "values", "size"), ELSEWHERE, ids=lambda part: part if isinstance(part, str) else "")
def test_a_network_that_shows_no_tokens_before_its_norm_says_so(name: str, values: dict[str, Any], size: int) -> None:
    backbone = load(name, values)
    for call in (lambda: backbone.trunk(images(size)), lambda: backbone.finish(torch.zeros(2, 4, backbone.width))):
        with pytest.raises(UserError, match=r"^backbone \w+: shows no tokens before its norm; use vit or resnet$"):
            call()
    assert backbone.class_tokens == 0
