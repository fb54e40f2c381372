"""SMoG's windowed transformer (section 3, "Swin block"): a Swin (Liu et al. 2021) with a batch norm in its blocks.

A block is x <- x + attention(layer norm(x)), then x <- batch norm(x) and x <- x + MLP(x). The batch norm runs over
images and tokens, so per crop size. Legend: B images, h/w rows and columns of a map, C its width, W side of a window,
T = W^2 tokens of a window, n windows of a map, H heads.
"""

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from polygrain.backbones.contract import Backbone, Encoded, from_map
from polygrain.backbones.droppath import DropPath
from polygrain.nn.linear import Linear
from polygrain.provenance.errors import UserError


def build(
    *,
    channels: int,
    image_size: int,
    patch: int,
    widths: Sequence[int],
    depths: Sequence[int],
    heads: Sequence[int],
    window: int,
    drop_path: float,
) -> "Swin":
    """One stage per entry of `widths`, `depths` (blocks) and `heads`; every stage but the first halves the map's side.

    Stages whose map at `image_size` is larger than the window shift their windows, for views of any size. `drop_path`:
    of the last block. Raises UserError when lists differ in length, patch does not divide image_size, or heads a width.
    """
    if not len(widths) == len(depths) == len(heads) > 0:
        raise UserError("backbone swin: widths, depths and heads must name the same number of stages, at least one")
    pairs = ((width, count, "heads") for width, count in zip(widths, heads, strict=True))
    for whole, part, name in ((image_size, patch, "patch"), *pairs):
        if whole % part:
            raise UserError(f"backbone swin: {name} {part} does not divide {whole}; change one of them")
    return Swin(channels, image_size, patch, widths, depths, heads, window, drop_path)


class Swin(Backbone):
    """Linear weights and relative positions start truncated normal (std 0.02, at +-2), biases at 0."""

    def __init__(
        self,
        channels: int,
        image_size: int,
        patch: int,
        widths: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        window: int,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.width, self.patch = widths[-1], patch
        self.embed = nn.Conv2d(channels, widths[0], patch, patch)
        self.embed_norm = nn.LayerNorm(widths[0])
        self.stages = nn.Sequential()
        side, first = image_size // patch, 0
        for place, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            stage = nn.Sequential()
            if place > 0:
                stage.append(Merge(widths[place - 1], width))
                side = -(-side // 2)
            for block in range(depth):
                shift = window // 2 if block % 2 and side > window else 0
                rate = drop_path * (first + block) / max(sum(depths) - 1, 1)
                stage.append(SwinBlock(width, heads[place], window, shift, rate, f"block {first + block}"))
            self.stages.append(stage)
            first += depth
        self.norm = nn.LayerNorm(widths[-1])
        for name, parameter in self.named_parameters():
            if name.endswith("relative_bias"):
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images_BCSS: Tensor) -> Encoded:
        """Encode images; `pooled` is the tokens' mean. Raises UserError unless square and a multiple of the patch."""
        rows, columns = images_BCSS.shape[-2:]
        if rows != columns or rows % self.patch:
            raise UserError(f"backbone swin: patch {self.patch} does not tile a view of {rows} x {columns} px")
        map_BhwC = self.embed_norm(self.embed(images_BCSS).permute(0, 2, 3, 1))
        return from_map(self.norm(self.stages(map_BhwC)).permute(0, 3, 1, 2))


class Merge(nn.Module):
    """Each 2 x 2 cells become one: their vectors concatenated (down the first column first), layer norm, linear."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * inputs)
        self.linear = Linear(4 * inputs, outputs, bias=False)

    def forward(self, x_BhwC: Tensor) -> Tensor:
        """[B, h, w, C] to [B, h / 2, w / 2, outputs]; an odd side gets a row or column of zeros."""
        x_BhwC = _padded(x_BhwC, 2)
        parts = [x_BhwC[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        merged: Tensor = self.linear(self.norm(torch.cat(parts, dim=-1)))
        return merged


class SwinBlock(nn.Module):
    """x + drop(attention(layer norm(x))), then y + drop(mlp(y)) with y its batch norm: the shortcut starts at y."""

    def __init__(self, width: int, heads: int, window: int, shift: int, drop_path: float, name: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads, window, shift)
        self.norm2 = nn.BatchNorm1d(width)
        self.mlp1 = Linear(width, 4 * width)
        self.mlp2 = Linear(4 * width, width)
        self.drop1 = DropPath(drop_path, f"{name} attention")
        self.drop2 = DropPath(drop_path, f"{name} mlp")

    def forward(self, x_BhwC: Tensor) -> Tensor:
        """[B, h, w, C] to the same shape."""
        x_BhwC = x_BhwC + self.drop1(self.attention(self.norm1(x_BhwC)))
        x_BhwC = self.norm2(x_BhwC.flatten(0, 2)).view_as(x_BhwC)
        added: Tensor = self.drop2(self.mlp2(gelu(self.mlp1(x_BhwC))))
        return x_BhwC + added


class WindowAttention(nn.Module):
    """Attention inside windows of W x W cells, with a learned bias per head and relative position.

    A map that W does not divide is padded with zeros at the right and the bottom, which are cells like any other. With
    a shift the windows start `shift` cells further down and right and wrap around the border; cells of opposite borders
    do not attend to each other.
    """

    relative_index: Tensor

    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv = Linear(width, 3 * width)
        self.projection = Linear(width, width)
        self.relative_bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_index", relative_index(window), persistent=False)

    def forward(self, x_BhwC: Tensor) -> Tensor:
        """[B, h, w, C] to the same shape."""
        rows, columns = x_BhwC.shape[1:3]
        padded = _padded(x_BhwC, self.window)
        if self.shift:
            padded = padded.roll((-self.shift, -self.shift), dims=(1, 2))
        qkv = self.qkv(_windows(padded, self.window)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(3, 0, 1, 4, 2, 5)  # each [B, n, H, T, C / H]
        bias_HTT = self.relative_bias[self.relative_index].permute(2, 0, 1)
        scores_BnHTT = (query * query.shape[-1] ** -0.5) @ key.mT + bias_HTT
        if self.shift:
            apart = border_mask(padded.shape[1], padded.shape[2], self.window, self.shift)
            scores_BnHTT = scores_BnHTT.masked_fill(apart.to(padded.device)[:, None], float("-inf"))
        mixed_BnTC: Tensor = self.projection((scores_BnHTT.softmax(dim=-1) @ value).transpose(2, 3).flatten(3))
        whole = _from_windows(mixed_BnTC, *padded.shape[1:3])
        if self.shift:
            whole = whole.roll((self.shift, self.shift), dims=(1, 2))
        return whole[:, :rows, :columns]


def _padded(x_BhwC: Tensor, multiple: int) -> Tensor:
    """Zeros at the right and the bottom up to the next multiple."""
    return pad(x_BhwC, (0, 0, 0, -x_BhwC.shape[2] % multiple, 0, -x_BhwC.shape[1] % multiple))


def _windows(x_BhwC: Tensor, window: int) -> Tensor:
    """[B, h, w, ...] to [B, n, T, ...]: windows row by row, cells of each row by row."""
    images, rows, columns, *rest = x_BhwC.shape
    cut = x_BhwC.reshape(images, rows // window, window, columns // window, window, *rest).transpose(2, 3)
    return cut.flatten(1, 2).flatten(2, 3)


def _from_windows(x_BnTC: Tensor, rows: int, columns: int) -> Tensor:
    """The reverse of `_windows`: [B, n, T, C] to [B, rows, columns, C]."""
    images, _, cells, channels = x_BnTC.shape
    window = math.isqrt(cells)
    cut = x_BnTC.reshape(images, rows // window, columns // window, window, window, channels).transpose(2, 3)
    return cut.reshape(images, rows, columns, channels)


def relative_index(window: int) -> Tensor:
    """[T, T] row of the bias table: (rows from key down to query + W - 1) * (2 W - 1) + the same of columns."""
    place = torch.arange(window)
    apart = place[:, None] - place + window - 1
    index = apart[:, None, :, None] * (2 * window - 1) + apart[None, :, None, :]
    return index.reshape(window**2, window**2)


@cache
def border_mask(rows: int, columns: int, window: int, shift: int) -> Tensor:
    """[n, T, T], True where two cells of a shifted window come from opposite borders of the map."""
    row, column = torch.arange(rows) >= rows - shift, torch.arange(columns) >= columns - shift
    side_nT = _windows((2 * row[:, None] + column)[None], window)[0]
    return side_nT[:, :, None] != side_nT[:, None, :]
