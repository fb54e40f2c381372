"""A residual network for small images: 3x3 stem without pooling, basic blocks, widths and strides as plain values.

He, Zhang, Ren and Sun 2016, basic block; with widths 64-128-256-512, strides 1-2-2-2 and two blocks each it is the
ResNet-18 that is usual for 32 px images.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from polygrain.backbones.contract import Backbone, Encoded, from_map
from polygrain.provenance.errors import UserError


def build(
    *, channels: int, widths: Sequence[int], strides: Sequence[int], blocks: Sequence[int], stem_stride: int
) -> "ResNet":
    """Build one stage per entry of `widths`, `strides` (of its first block) and `blocks` (how many).

    Raises UserError when the three differ in length.
    """
    if not len(widths) == len(strides) == len(blocks) > 0:
        raise UserError("backbone resnet: widths, strides and blocks must name the same number of stages, at least one")
    return ResNet(channels, widths, strides, blocks, stem_stride)


class ResNet(Backbone):
    """Stem and stages. Convolutions start from Kaiming's normal law (fan out), batch norms from weight 1 and bias 0."""

    def __init__(
        self, channels: int, widths: Sequence[int], strides: Sequence[int], blocks: Sequence[int], stem_stride: int
    ) -> None:
        super().__init__()
        self.width = widths[-1]
        self.stem = nn.Conv2d(channels, widths[0], 3, stem_stride, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        inputs = [widths[0], *widths]
        self.stages = nn.Sequential(
            *(_stage(inputs[stage], widths[stage], strides[stage], blocks[stage]) for stage in range(len(widths)))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_BCSS: Tensor) -> Encoded:
        """Encode images of any side; the map's side is S over the product of all strides, rounded up at each."""
        features: Tensor = self.stages(relu(self.stem_norm(self.stem(images_BCSS))))
        return from_map(features)


class BasicBlock(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))).

    The shortcut is the identity, or a 1x1 convolution with batch norm where the shape changes.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, h, w] to [B, outputs, h / stride, w / stride]."""
        inner = relu(self.norm1(self.conv1(x)))
        summed: Tensor = self.norm2(self.conv2(inner)) + self.shortcut(x)
        return torch.relu_(summed)


def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
