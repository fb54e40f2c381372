"""Linear maps of many rows, on a CPU by oneDNN's convolution.

The matrix product of MKL's branch that all processors share (`polygrain.provenance.pins`) reaches 35 to 40 GFLOP/s on a
core; the same product as a 1x1 convolution over maps of 4 x 4 rows takes oneDNN's AVX2 kernels, which reach 80 to 100,
forward and backward. Legend: N rows, D inputs, O outputs.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

_SIDES = (4, 2)  # of the maps; on 8 x 8 and 16 x 16 some products take twice as long
_MAPS = 16  # with fewer, torch takes another convolution, slower than the matrix product


def linear_map(x_ND: Tensor, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Compute x W^T + b along the last axis, [..., O]; rows in any number of axes.

    float32 rows on a CPU that fill enough maps take the convolution; all others torch's matrix product.
    """
    rows, width = x_ND.shape[:-1], x_ND.shape[-1]
    if x_ND.device.type == "cpu" and x_ND.dtype == torch.float32:
        for side in _SIDES:
            maps, rest = divmod(rows.numel(), side * side)
            if maps >= _MAPS and rest == 0:
                images = x_ND.reshape(maps, side, side, width).permute(0, 3, 1, 2)
                return conv2d(images, weight_OD[:, :, None, None], bias_O).permute(0, 2, 3, 1).reshape(*rows, -1)
    return linear(x_ND, weight_OD, bias_O)


class Linear(nn.Linear):
    """torch's linear layer, its parameters and their start, computed by `linear_map`."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., O]."""
        return linear_map(x, self.weight, self.bias)
