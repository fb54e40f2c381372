"""A plain pre-norm vision transformer (Dosovitskiy et al. 2021) for views of several sizes.

Class token, absolute positions (learned, or MGC's fixed sine-cosine table), exact GELU, layer norm with eps 1e-6,
stochastic depth rising linearly over the blocks. Legend: B images, N patches, T = N + 1 tokens (class first), D width,
G side of the position table, g side of the patch grid.
"""

import math
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from polygrain.backbones.contract import Backbone, Encoded, from_tokens
from polygrain.backbones.transformer import TransformerBlock
from polygrain.provenance.errors import UserError


def build(
    *,
    channels: int,
    image_size: int,
    patch: int,
    width: int,
    depth: int,
    heads: int,
    drop_path: float,
    positions: Literal["learned", "sincos"] = "learned",
    resample: Literal["size", "factor"] = "size",
    pooled: Literal["class", "mean"] = "class",
) -> "VisionTransformer":
    """A transformer with a position table for views of `image_size` px, for views of any multiple of `patch` px.

    `drop_path` is the rate of the last block. `positions: sincos` are MGC's: fixed, none for the class token. For other
    views the table is resized bicubically to their grid (`resample: size`), or sampled as in Mugs's release, with the
    factor (g + 0.1) / G (`resample: factor`). `pooled` is the class token, or (`pooled: mean`) the mean of the patch
    tokens, for a method such as MGC that does not train the class token. Raises UserError when patch does not divide
    image_size, heads width, or 4 the width with sincos.
    """
    for whole, part, name in ((image_size, patch, "patch"), (width, heads, "heads")):
        if whole % part:
            raise UserError(f"backbone vit: {name} {part} does not divide {whole}; change one of them")
    if positions == "sincos" and width % 4:
        raise UserError(f"backbone vit: positions sincos need a width that 4 divides, not {width}")
    excess = 0.1 if resample == "factor" else 0.0
    grid, learned = image_size // patch, positions == "learned"
    network = VisionTransformer(channels, grid, patch, width, depth, heads, drop_path, learned=learned, excess=excess)
    network.mean_pooled = pooled == "mean"
    return network


class VisionTransformer(Backbone):
    """Linear weights, learned positions and class token start truncated normal (std 0.02, at +-2), biases at 0.

    `positions` [1, 1 + G * G, D], of class token and patches, is one parameter, as clipping rules work per tensor.
    """

    class_tokens = 1
    mean_pooled = False
    positions: Tensor

    def __init__(
        self,
        channels: int,
        grid: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        drop_path: float,
        *,
        learned: bool,
        excess: float,
    ) -> None:
        super().__init__()
        self.width, self.grid, self.patch, self.excess = width, grid, patch, excess
        self.embed = nn.Conv2d(channels, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        if learned:
            self.positions = nn.Parameter(torch.zeros(1, 1 + grid**2, width))
        else:
            table_1ND = waves(grid, width).flatten(0, 1)[None]
            self.register_buffer("positions", nn.functional.pad(table_1ND, (0, 0, 1, 0)), persistent=False)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads, drop_path * place / max(depth - 1, 1), f"block {place}")
            for place in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        for parameter in (self.class_token, self.positions):
            if isinstance(parameter, nn.Parameter):
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images_BCSS: Tensor) -> Encoded:
        """Encode images; tokens and pooled come after the final norm. Raises UserError as `trunk` does."""
        return self.finish(self.trunk(images_BCSS))

    def trunk(self, images_BCSS: Tensor) -> Tensor:
        """All tokens [B, T, D], class first, before the final norm. Raises UserError if patches do not fit the view."""
        side = images_BCSS.shape[-1]
        if images_BCSS.shape[-2] != side or side % self.patch:
            rows, columns = images_BCSS.shape[-2:]
            raise UserError(f"backbone vit: patch {self.patch} does not tile a view of {rows} x {columns} px")
        patches_BND = self.embed(images_BCSS).flatten(2).mT
        table_GGD = self.positions[0, 1:].view(self.grid, self.grid, self.width)
        positions_1ND = resample_table(table_GGD, side // self.patch, self.excess).flatten(0, 1)[None]
        first_B1D = (self.class_token + self.positions[:, :1]).expand(len(patches_BND), -1, -1)
        tokens_BTD = torch.cat((first_B1D, patches_BND + positions_1ND), dim=1)
        for block in self.blocks:
            tokens_BTD = block(tokens_BTD)
        return tokens_BTD

    def finish(self, tokens_BTD: Tensor) -> Encoded:
        """Apply the final norm and return the three grains."""
        tokens_BTD = self.norm(tokens_BTD)
        pooled_BD = tokens_BTD[:, 1:].mean(dim=1) if self.mean_pooled else tokens_BTD[:, 0]
        return from_tokens(tokens_BTD[:, 1:], pooled_BD, math.isqrt(tokens_BTD.shape[1] - 1))


def waves(grid: int, width: int) -> Tensor:
    """MGC's fixed positions [G, G, D], in the float32 arithmetic of its release.

    Row a, column b: sin(a w), cos(a w), sin(b w), cos(b w), D / 4 numbers each, w_i = 10000^(-4 i / D).
    """
    frequency = 1.0 / 10000.0 ** (torch.arange(width // 4, dtype=torch.float32) / (width // 4))
    angle = torch.arange(grid, dtype=torch.float32)[:, None] * frequency
    wave_GH = torch.cat((angle.sin(), angle.cos()), dim=1)
    return torch.cat((wave_GH[:, None].expand(-1, grid, -1), wave_GH[None].expand(grid, -1, -1)), dim=2)


def resample_table(table_GGD: Tensor, side: int, excess: float = 0.0) -> Tensor:
    """Positions [g, g, D] for a grid of `side` from those of a square one, by `bicubic_matrix`, if the sides differ."""
    grid = len(table_GGD)
    if side == grid:
        return table_GGD
    weight_gG = bicubic_matrix(grid, side, excess).to(table_GGD)
    # rows, then columns: two matrix products, whose backward is deterministic, unlike that of a resize
    return torch.einsum("jH,iHD->ijD", weight_gG, torch.einsum("iG,GHD->iHD", weight_gG, table_GGD))


@cache
def bicubic_matrix(source: int, target: int, excess: float = 0.0) -> Tensor:
    """Weights [target, source], float64, of torch's bicubic resize without antialiasing and with unaligned corners.

    Keys' cubic with a = -0.75 around position (i + 0.5) * source / (target + excess) - 0.5, clamped at the border. With
    an excess it is torch's resize by the factor (target + excess) / source.
    """
    a = -0.75
    position = (torch.arange(target, dtype=torch.float64) + 0.5) * source / (target + excess) - 0.5
    weight = torch.zeros(target, source, dtype=torch.float64)
    for shift in range(-1, 3):
        place = position.floor() + shift
        t = (position - place).abs()
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        far = a * (t**3 - 5 * t**2 + 8 * t - 4)
        column = place.long().clamp(0, source - 1)
        weight += torch.where(t <= 1, near, far)[:, None] * nn.functional.one_hot(column, source)
    return weight
