"""Residual networks (He, Zhang, Ren and Sun 2016) with stem, blocks, widths and strides as plain values.

A 3x3 stem without pooling suits small images, a 7x7 stem of stride 2 with pooling ImageNet; bottleneck blocks (stride
in the 3x3 convolution) make ResNet-50 and wider networks. Crops of several sizes can share statistics (SMoG section 3).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from polygrain.backbones.contract import Backbone, Encoded, from_map, from_tokens
from polygrain.provenance.errors import UserError

EXPANSION = 4  # a bottleneck gives this many times its inner width


def build(
    *,
    channels: int,
    widths: Sequence[int],
    strides: Sequence[int],
    blocks: Sequence[int],
    stem_stride: int,
    stem_kernel: int = 3,
    stem_pool: bool = False,
    bottleneck: bool = False,
    zero_init_residual: bool = False,
) -> "ResNet":
    """Build one stage per entry of `widths`, `strides` (of its first block) and `blocks` (how many).

    `widths` are those of the 3x3 convolutions; a bottleneck's output is 4 times as wide. `stem_pool` adds a 3x3
    max-pool of stride 2. `zero_init_residual`: a block's last batch norm has weight 0, so the block starts as its
    shortcut. Raises UserError when the lists differ in length or stem_kernel is even.
    """
    if not len(widths) == len(strides) == len(blocks) > 0:
        raise UserError("backbone resnet: widths, strides and blocks must name the same number of stages, at least one")
    if stem_kernel % 2 == 0:
        raise UserError(f"backbone resnet: stem_kernel must be odd, not {stem_kernel}")
    stem = nn.Conv2d(channels, widths[0], stem_kernel, stem_stride, padding=stem_kernel // 2, bias=False)
    return ResNet(stem, stem_pool, widths, strides, blocks, bottleneck, zero_init_residual)


class ResNet(Backbone):
    """Stem and stages. Convolutions start as Kaiming normal (fan out), batch norms with weight 1 and bias 0."""

    def __init__(
        self,
        stem: nn.Conv2d,
        stem_pool: bool,
        widths: Sequence[int],
        strides: Sequence[int],
        blocks: Sequence[int],
        bottleneck: bool,
        zero_init_residual: bool,
    ) -> None:
        super().__init__()
        expansion = EXPANSION if bottleneck else 1
        self.width = widths[-1] * expansion
        self.norm = nn.Identity()
        self.stem, self.stem_pool = stem, stem_pool
        self.stem_norm = nn.BatchNorm2d(widths[0])
        self.stages = nn.Sequential()
        inputs = widths[0]
        for inner, stride, count in zip(widths, strides, blocks, strict=True):
            stage = nn.Sequential()
            for place in range(count):
                stage.append(Block(inputs, inner, stride if place == 0 else 1, bottleneck))
                inputs = inner * expansion
            self.stages.append(stage)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if zero_init_residual and isinstance(module, Block):
                nn.init.zeros_(module.layers()[-1][1].weight)

    def forward(self, images_BCSS: Tensor) -> Encoded:
        """Encode images of any side; the map's side is S over the product of all strides, rounded up at each."""
        return self.encode_jointly([images_BCSS])[0]

    def trunk(self, images_BCSS: Tensor) -> Tensor:
        """The map's cells row by row, [B, N, D]; the network has no final norm."""
        encoded: Encoded = self(images_BCSS)
        return encoded.tokens

    def finish(self, tokens_BND: Tensor) -> Encoded:
        """The encoding of the cells of a square map; `pooled` is their mean."""
        return from_tokens(tokens_BND, tokens_BND.mean(dim=1), math.isqrt(tokens_BND.shape[1]))

    def encode_jointly(self, batches: list[Tensor]) -> list[Encoded]:
        """Encode with one set of statistics for all sizes, updated once; shortcuts' batch norms still work per size."""
        maps = [relu(x) for x in normalise(self.stem_norm, [self.stem(x) for x in batches])]
        if self.stem_pool:
            maps = [max_pool2d(x, 3, stride=2, padding=1) for x in maps]
        return [from_map(x) for x in self.stages(maps)]


class Block(nn.Module):
    """relu(shortcut(x) + branch(x)); the shortcut is a 1x1 convolution with batch norm where the shape changes."""

    def __init__(self, inputs: int, inner: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = inner * (EXPANSION if bottleneck else 1)
        if bottleneck:
            shapes = [(inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, outputs, 1, 1)]
        else:
            shapes = [(inputs, inner, 3, stride), (inner, outputs, 3, 1)]
        self.depth = len(shapes)
        for place, (into, out, kernel, step) in enumerate(shapes, start=1):
            self.add_module(f"conv{place}", nn.Conv2d(into, out, kernel, step, padding=kernel // 2, bias=False))
            self.add_module(f"norm{place}", nn.BatchNorm2d(out))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def layers(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """The branch's convolutions, each with its batch norm."""
        return [(getattr(self, f"conv{place}"), getattr(self, f"norm{place}")) for place in range(1, self.depth + 1)]

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """One map [B, inputs, h, w] per crop size to [B, outputs, h / stride, w / stride], normalised jointly."""
        branch = maps
        for place, (convolution, norm) in enumerate(self.layers()):
            inner = branch if place == 0 else [relu(x) for x in branch]
            branch = normalise(norm, [convolution(x) for x in inner])
        return [torch.relu_(y + self.shortcut(x)) for x, y in zip(maps, branch, strict=True)]


def normalise(norm: nn.Module, maps: list[Tensor]) -> list[Tensor]:
    """Batch norm of maps [B, C, h, w] of several sizes with the statistics of all their pixels; one call of `norm`."""
    if len(maps) == 1:
        return [norm(maps[0])]
    cells = [x.permute(0, 2, 3, 1) for x in maps]  # [B, h, w, C], contiguous where the map is channels_last
    rows_RC = torch.cat([x.flatten(0, 2) for x in cells])
    # as one channels_last map of R pixels, which any batch norm of maps takes, synchronised or not
    normed_RC = norm(rows_RC[None, :, None].permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(0, 2)
    parts = normed_RC.split([x.shape[:3].numel() for x in cells])
    return [part.view(x.shape).permute(0, 3, 1, 2) for part, x in zip(parts, cells, strict=True)]
