"""A plain pre-norm vision transformer (Dosovitskiy et al. 2021) for views of several sizes.

Class token, learned absolute positions, exact GELU, layer norm with eps 1e-6, stochastic depth rising linearly
over the blocks. Legend: B images, N patches, T = N + 1 tokens (class first), D width, G side of the position table,
g side of the patch grid.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from polygrain.backbones.contract import Backbone, Encoded, from_tokens
from polygrain.backbones.droppath import DropPath
from polygrain.provenance.errors import UserError


def build(
    *, channels: int, image_size: int, patch: int, width: int, depth: int, heads: int, drop_path: float
) -> "VisionTransformer":
    """A transformer whose position table fits views of `image_size` px; other multiples of `patch` px are served too.

    `drop_path` is the rate of the last block. Raises UserError when patch does not divide image_size or heads width.
    """
    for whole, part, names in ((image_size, patch, "patch"), (width, heads, "heads")):
        if whole % part:
            raise UserError(f"backbone vit: {names} {part} does not divide {whole}")
    return VisionTransformer(channels, image_size // patch, patch, width, depth, heads, drop_path)


class VisionTransformer(Backbone):
    """Linear weights, positions and class token start from a normal law of std 0.02 cut at +-2, biases from 0.

    The patch embedding keeps torch's initialisation of a convolution.
    """

    def __init__(
        self, channels: int, grid: int, patch: int, width: int, depth: int, heads: int, drop_path: float
    ) -> None:
        super().__init__()
        self.width, self.grid, self.patch = width, grid, patch
        self.embed = nn.Conv2d(channels, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.class_position = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(grid, grid, width))
        self.blocks = nn.ModuleList(
            Block(width, heads, drop_path * place / max(depth - 1, 1), f"block {place}") for place in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        for parameter in (self.class_token, self.class_position, self.positions):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images_BCSS: Tensor) -> Encoded:
        """Encode images whose side is a multiple of the patch; tokens and pooled come after the final norm.

        Raises UserError for any other side.
        """
        side = images_BCSS.shape[-1]
        if images_BCSS.shape[-2] != side or side % self.patch:
            rows, columns = images_BCSS.shape[-2:]
            raise UserError(f"backbone vit: patch {self.patch} does not tile a view of {rows} x {columns} px")
        patches_BND = self.embed(images_BCSS).flatten(2).mT
        positions_1ND = self._positions(side // self.patch)
        first_B1D = (self.class_token + self.class_position).expand(len(patches_BND), -1, -1)
        tokens_BTD = torch.cat((first_B1D, patches_BND + positions_1ND), dim=1)
        for block in self.blocks:
            tokens_BTD = block(tokens_BTD)
        tokens_BTD = self.norm(tokens_BTD)
        return from_tokens(tokens_BTD[:, 1:], tokens_BTD[:, 0], side // self.patch)

    def _positions(self, side: int) -> Tensor:
        table: Tensor = self.positions
        if side != self.grid:
            weight_gG = bicubic_matrix(self.grid, side).to(table)
            # rows, then columns: two fixed products, whose backward is deterministic where that of a resize is not
            table = torch.einsum("jH,iHD->ijD", weight_gG, torch.einsum("iG,GHD->iHD", weight_gG, table))
        return table.flatten(0, 1)[None]


class Block(nn.Module):
    """x + drop(attention(norm(x))), then x + drop(mlp(norm(x))), the hidden layer four times as wide."""

    def __init__(self, width: int, heads: int, drop_path: float, name: str) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp1 = nn.Linear(width, 4 * width)
        self.mlp2 = nn.Linear(4 * width, width)
        self.drop1 = DropPath(drop_path, f"{name} attention")
        self.drop2 = DropPath(drop_path, f"{name} mlp")

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to the same shape."""
        x_BTD = x_BTD + self.drop1(self._attention(self.norm1(x_BTD)))
        added: Tensor = self.drop2(self.mlp2(gelu(self.mlp1(self.norm2(x_BTD)))))
        return x_BTD + added

    def _attention(self, x_BTD: Tensor) -> Tensor:
        query, key, value = self.qkv(x_BTD).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed: Tensor = self.projection(scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return mixed


@cache
def bicubic_matrix(source: int, target: int) -> Tensor:
    """Weights [target, source], float64, of torch's bicubic resize without antialiasing and with unaligned corners.

    Keys' cubic with a = -0.75 around position (i + 0.5) * source / target - 0.5; places outside count as the border.
    """
    a = -0.75
    position = (torch.arange(target, dtype=torch.float64) + 0.5) * source / target - 0.5
    weight = torch.zeros(target, source, dtype=torch.float64)
    for shift in range(-1, 3):
        place = position.floor() + shift
        t = (position - place).abs()
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        far = a * (t**3 - 5 * t**2 + 8 * t - 4)
        column = place.long().clamp(0, source - 1)
        weight += torch.where(t <= 1, near, far)[:, None] * nn.functional.one_hot(column, source)
    return weight
