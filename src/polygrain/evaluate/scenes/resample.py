"""Maps made finer, and regions cut out of them, as matrix products: gradients have the same bits on every device.

Both are linear along rows and along columns apart, so the result is `down @ map @ across^T` for every channel.

Legend: B images, M regions of an image, C channels, h, w rows and columns of the map, R of the result, N = B * M, P
samples along a side.
"""

import torch
from torch import Tensor

from polygrain.views.crop import resize_matrix

_SAMPLES = 2  # points of a bin along a side, as Mask R-CNN's heads take them


def upsampled(maps_BChw: Tensor, side: int) -> Tensor:
    """Square maps, bilinearly upsampled to [B, C, side, side]; as torch's `interpolate` with align_corners False."""
    rows = maps_BChw.shape[-1]
    whole = torch.tensor([0.0, float(rows)], device=maps_BChw.device)
    matrix_Rh = resize_matrix(whole[:1], whole[1:], None, rows, side)[0].to(maps_BChw.dtype)
    each = matrix_Rh.expand(len(maps_BChw), 1, -1, -1)
    return _between(maps_BChw, each, each)


def regions(maps_BChw: Tensor, boxes_BM4: Tensor, bins: int) -> Tensor:
    """RoIAlign (He et al. 2017), aligned by half a cell, [N, C, bins, bins]: the mean of 2 x 2 samples of each bin.

    boxes_BM4: left, top, width and height, in cells of the map; the map is zero a cell outside of it.
    """
    left_N, top_N, width_N, height_N = boxes_BM4.flatten(0, 1).unbind(dim=1)
    shape = (*boxes_BM4.shape[:2], bins)
    down_BMRh = _bins(top_N, height_N, maps_BChw.shape[2], bins).view(*shape, -1)
    across_BMRw = _bins(left_N, width_N, maps_BChw.shape[3], bins).view(*shape, -1)
    return _between(maps_BChw, down_BMRh, across_BMRw)


def _bins(start_N: Tensor, length_N: Tensor, cells: int, bins: int) -> Tensor:
    """Weights [N, bins, cells] of the cells along an axis in each bin of start..start+length."""
    count = bins * _SAMPLES
    share_P = (torch.arange(count, dtype=start_N.dtype, device=start_N.device) + 0.5) / count
    place_NP = start_N[:, None] + share_P * length_N[:, None] - 0.5  # cell 0 has its centre at 0
    inside_NP = (place_NP >= -1) & (place_NP <= cells)
    held_NP = place_NP.clamp(0, cells - 1)
    cell_w = torch.arange(cells, dtype=start_N.dtype, device=start_N.device)
    weight_NPw = (1 - (held_NP[..., None] - cell_w).abs()).clamp(min=0) * inside_NP[..., None]
    return weight_NPw.view(len(start_N), bins, _SAMPLES, cells).mean(dim=2)


def _between(maps_BChw: Tensor, down_BMRh: Tensor, across_BMRw: Tensor) -> Tensor:
    """`down @ map @ across^T`, [N, C, R, R], channels last: the products run over whole rows of all channels."""
    B, C, h, w = maps_BChw.shape
    M, R = down_BMRh.shape[1:3]
    rows = torch.bmm(down_BMRh.reshape(B, M * R, h), maps_BChw.permute(0, 2, 3, 1).reshape(B, h, w * C))
    return torch.matmul(across_BMRw.reshape(B * M, 1, R, w), rows.view(B * M, R, w, C)).permute(0, 3, 1, 2)
