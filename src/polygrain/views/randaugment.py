"""RandAugment's operations on whole batches of 8-bit images, with one magnitude per image; each rounds as Pillow does.

Operations and magnitudes are drawn beforehand and done one after the other, each on 8-bit pixels. Those that treat
pixels one by one become a table of 256 values per image and channel; those that move pixels become a matrix.
Legend: B images of the batch, N images that get one operation, C channels (1 or 3), H, W, P = H * W pixels, L = 256.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from polygrain.views.draw import RandAugmentDraw
from polygrain.views.recipe import OPERATIONS

_LEVELS = 256
_MOVES = ("rotate", "shear-x", "shear-y", "translate-x", "translate-y")


def randaugment(images_BCHW: Tensor, drawn: RandAugmentDraw, flip_B: Tensor, fill: Sequence[int]) -> Tensor:
    """Do each image's operations in turn: uint8 [B, C, H, W] to a new tensor. `fill`: one value per channel.

    The papers flip first, then do the operations, then crop. Here the crop flips at the end, so operations that move
    pixels work on the mirrored image where `flip_B` is True.
    """
    images_BCHW = images_BCHW.clone(memory_format=torch.contiguous_format)
    fill_C = torch.tensor(list(fill), dtype=torch.uint8, device=images_BCHW.device)
    for operation_B, magnitude_B, cubic_B in zip(*(part.unbind(1) for part in drawn.parts), strict=True):
        present = {OPERATIONS[code] for code in operation_B.unique().tolist() if code >= 0}
        _look_up(images_BCHW, operation_B, magnitude_B, present)
        for name in present & set(_BLENDS):
            rows = _rows(operation_B, name)
            other_NCHW = _BLENDS[name](images_BCHW[rows])
            images_BCHW[rows] = _blend(images_BCHW[rows], other_NCHW, _factor(magnitude_B[rows])).to(torch.uint8)
        if present & set(_MOVES):
            _move(images_BCHW, operation_B, magnitude_B, cubic_B, flip_B, fill_C)
    return images_BCHW


def _rows(operation_B: Tensor, name: str) -> Tensor:
    return (operation_B == OPERATIONS.index(name)).nonzero()[:, 0]


# --- operations on single pixels: tables uint8 [N, C or 1, L]


def _look_up(images_BCHW: Tensor, operation_B: Tensor, magnitude_B: Tensor, present: set[str]) -> None:
    rows, tables = [], []
    for name in OPERATIONS:
        if name in present and name in _TABLES:
            rows.append(_rows(operation_B, name))
            table = _TABLES[name](images_BCHW[rows[-1]], magnitude_B[rows[-1]])
            tables.append(table.clamp(0, 255).to(torch.uint8).expand(-1, images_BCHW.shape[1], -1))
    if rows:
        row_N, table_NCL = torch.cat(rows), torch.cat(tables)
        pixels_NCHW = images_BCHW[row_N]
        images_BCHW[row_N] = table_NCL.gather(2, pixels_NCHW.flatten(2).long()).view_as(pixels_NCHW)


def _levels(like: Tensor) -> Tensor:
    return torch.arange(_LEVELS, device=like.device)


def _histogram(images_NCHW: Tensor) -> Tensor:
    N, C = images_NCHW.shape[:2]
    channel_NC1 = torch.arange(N * C, device=images_NCHW.device).view(N, C, 1)
    flat = (images_NCHW.flatten(2).long() + _LEVELS * channel_NC1).flatten()
    return torch.bincount(flat, minlength=N * C * _LEVELS).view(N, C, _LEVELS)


def _auto_contrast(images_NCHW: Tensor, magnitude_N: Tensor) -> Tensor:
    low_NC1 = images_NCHW.flatten(2).amin(dim=2, keepdim=True).double()
    high_NC1 = images_NCHW.flatten(2).amax(dim=2, keepdim=True).double()
    scale_NC1 = torch.full_like(low_NC1, 255.0) / (high_NC1 - low_NC1)  # a number over a tensor rounds twice
    level_L = _levels(images_NCHW).double()
    return torch.where(high_NC1 > low_NC1, (level_L * scale_NC1 - low_NC1 * scale_NC1).trunc(), level_L)


def _equalise(images_NCHW: Tensor, magnitude_N: Tensor) -> Tensor:
    count_NCL = _histogram(images_NCHW)
    level_L = _levels(images_NCHW)
    last_NC1 = torch.where(count_NCL > 0, level_L, 0).amax(dim=2, keepdim=True)
    pixels = images_NCHW.shape[2] * images_NCHW.shape[3]
    step_NC1 = (pixels - count_NCL.gather(2, last_NC1)) // 255
    below_NCL = count_NCL.cumsum(dim=2) - count_NCL
    equal_NCL = (step_NC1 // 2 + below_NCL) // step_NC1.clamp(min=1)
    return torch.where(step_NC1 > 0, equal_NCL, level_L)


def _invert(images_NCHW: Tensor, magnitude_N: Tensor) -> Tensor:
    return (255 - _levels(images_NCHW)).expand(len(images_NCHW), 1, -1)


def _posterise(images_NCHW: Tensor, magnitude_N: Tensor) -> Tensor:
    width_N = 2 ** (4 + (0.4 * magnitude_N.abs()).long())  # 4 - int(0.4 m) bits are kept
    return _levels(images_NCHW) // width_N[:, None, None] * width_N[:, None, None]


def _solarise(images_NCHW: Tensor, magnitude_N: Tensor) -> Tensor:
    level_L = _levels(images_NCHW)
    return torch.where(level_L < (256 - 25.6 * magnitude_N.abs())[:, None, None], level_L, 255 - level_L)


def _solarise_add(images_NCHW: Tensor, magnitude_N: Tensor) -> Tensor:
    level_L = _levels(images_NCHW)
    added_N = (11 * magnitude_N.abs()).long()
    return torch.where(level_L < 128, (level_L + added_N[:, None, None]).clamp(max=255), level_L)


def _contrast(images_NCHW: Tensor, magnitude_N: Tensor) -> Tensor:
    mean_N = _luma(images_NCHW).flatten(1).double().mean(dim=1)
    return _blend(_levels(images_NCHW), (mean_N + 0.5).floor()[:, None, None], _factor(magnitude_N)[:, :, 0])


def _brightness(images_NCHW: Tensor, magnitude_N: Tensor) -> Tensor:
    level_L = _levels(images_NCHW)
    return _blend(level_L, torch.zeros_like(level_L), _factor(magnitude_N)[:, :, 0])


_TABLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "auto-contrast": _auto_contrast,
    "equalise": _equalise,
    "invert": _invert,
    "posterise": _posterise,
    "solarise": _solarise,
    "solarise-add": _solarise_add,
    "contrast": _contrast,
    "brightness": _brightness,
}


# --- operations that blend with another image: uint8 [N, C or 1, H, W]


def _factor(magnitude_N: Tensor) -> Tensor:
    """Weight of the image itself in a blend, [N, 1, 1, 1]; above 1 it moves away from the other image."""
    return (1.0 + 0.09 * magnitude_N)[:, None, None, None]


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """In single precision and rounded down, as Pillow does."""
    return (other.float() + factor.float() * (images.float() - other.float())).clamp(0.0, 255.0).floor()


def _luma(images_NCHW: Tensor) -> Tensor:
    """The grey image [N, 1, H, W] with Pillow's integer weights."""
    if images_NCHW.shape[1] == 1:
        return images_NCHW
    red, green, blue = images_NCHW.int().unbind(dim=1)
    luma: Tensor = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    return luma[:, None].to(torch.uint8)


def _smooth(images_NCHW: Tensor) -> Tensor:
    """The 3 x 3 mean with weight 5 for the centre, rounded; border pixels stay."""
    wide = images_NCHW.int()
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * wide[:, :, 1:-1, 1:-1]
    smooth = images_NCHW.clone()
    smooth[:, :, 1:-1, 1:-1] = ((2 * total + 13) // 26).to(torch.uint8)
    return smooth


_BLENDS: dict[str, Callable[[Tensor], Tensor]] = {"colour": _luma, "sharpness": _smooth}


# --- operations that move pixels


def _move(
    images_BCHW: Tensor, operation_B: Tensor, magnitude_B: Tensor, cubic_B: Tensor, flip_B: Tensor, fill_C: Tensor
) -> None:
    height, width = images_BCHW.shape[-2:]
    matrix_B23 = _matrix(operation_B, magnitude_B, height, width)
    moved_B = torch.isin(operation_B, torch.tensor([OPERATIONS.index(name) for name in _MOVES]).to(operation_B))
    for cubic in (False, True):
        rows = (moved_B & (cubic_B == cubic)).nonzero()[:, 0]
        if len(rows):
            turned_NCHW = _flipped(images_BCHW[rows], flip_B[rows])
            moved_NCHW = sample(turned_NCHW, matrix_B23[rows], fill_C, cubic=cubic)
            images_BCHW[rows] = _flipped(moved_NCHW, flip_B[rows])


def _flipped(images_NCHW: Tensor, flip_N: Tensor) -> Tensor:
    return torch.where(flip_N[:, None, None, None], images_NCHW.flip(-1), images_NCHW)


def _matrix(operation_N: Tensor, magnitude_N: Tensor, height: int, width: int) -> Tensor:
    """Source of an output pixel: column' = a column + b row + c, row' = d column + e row + f; [N, 2, 3]."""

    def amount(name: str, largest: float) -> Tensor:
        return torch.where(operation_N == OPERATIONS.index(name), magnitude_N * (largest / 10.0), 0.0)

    angle_N = amount("rotate", math.radians(30.0))
    cos_N, sin_N = torch.cos(angle_N), torch.sin(angle_N)
    a, b, d, e = cos_N, amount("shear-x", 0.3) - sin_N, amount("shear-y", 0.3) + sin_N, cos_N
    centre_column_N, centre_row_N = (torch.where(angle_N != 0.0, side / 2.0, 0.0) for side in (width, height))
    c = centre_column_N - cos_N * centre_column_N + sin_N * centre_row_N + amount("translate-x", 0.45) * width
    f = centre_row_N - sin_N * centre_column_N - cos_N * centre_row_N + amount("translate-y", 0.45) * height
    return torch.stack((a, b, c, d, e, f), dim=1).view(-1, 2, 3)


def sample(images_NCHW: Tensor, matrix_N23: Tensor, fill_C: Tensor, *, cubic: bool) -> Tensor:
    """Fetch every pixel of uint8 images [N, C, H, W] from the source position that `matrix_N23` gives.

    Coordinates are continuous: pixel i covers [i, i + 1). Pixels from outside are `fill_C`; neighbours beyond the
    border are those at the border. Interpolation is Pillow's, bilinear or bicubic with a = -1, rounded down.
    """
    height, width = images_NCHW.shape[-2:]
    column_W = torch.arange(width, dtype=torch.float64, device=images_NCHW.device) + 0.5
    row_H1 = torch.arange(height, dtype=torch.float64, device=images_NCHW.device)[:, None] + 0.5
    a, b, c, d, e, f = matrix_N23.flatten(1)[:, :, None, None].unbind(dim=1)
    from_column_NHW, from_row_NHW = a * column_W + b * row_H1 + c, d * column_W + e * row_H1 + f
    inside_NHW = (from_column_NHW >= 0) & (from_column_NHW < width) & (from_row_NHW >= 0) & (from_row_NHW < height)
    column_NKP, across_N1P = _neighbours(from_column_NHW.flatten(1), width, cubic)
    row_NKP, down_N1P = _neighbours(from_row_NHW.flatten(1), height, cubic)
    between: Callable[..., Tensor] = _cubic if cubic else _linear
    pixels_NCP = images_NCHW.flatten(2)
    middle = column_NKP.shape[1] // 2 - 1

    def line(row_NJP: Tensor, column_NJP: Tensor, way_N1P: Tensor) -> Tensor:
        """Interpolate along one axis."""
        index_NKP = row_NJP * width + column_NJP
        N, K, P = index_NKP.shape
        index_NC = index_NKP.view(N, 1, K * P).expand(-1, pixels_NCP.shape[1], -1)
        return between(*pixels_NCP.gather(2, index_NC).double().view(N, -1, K, P).unbind(dim=2), way_N1P)

    # where pixels move along one axis only (all but rotate), one interpolation gives the same bits as two
    if not down_N1P.any():
        moved_NCP = line(row_NKP[:, middle, None], column_NKP, across_N1P)
    elif not across_N1P.any():
        moved_NCP = line(row_NKP, column_NKP[:, middle, None], down_N1P)
    else:
        lines = (line(row_NP[:, None], column_NKP, across_N1P) for row_NP in row_NKP.unbind(dim=1))
        moved_NCP = between(*lines, down_N1P)
    moved_NCHW = moved_NCP.clamp(0.0, 255.0).to(torch.uint8).view_as(images_NCHW)
    return torch.where(inside_NHW[:, None], moved_NCHW, fill_C[:, None, None])


def _neighbours(place_NP: Tensor, side: int, cubic: bool) -> tuple[Tensor, Tensor]:
    """The K = 2 or 4 pixels around positions, int64 [N, K, P], and the distance [N, 1, P] from the (K/2)-th of them."""
    before_N1P = torch.floor(place_NP - 0.5)[:, None]
    offset_K1 = torch.arange(-1 if cubic else 0, 3 if cubic else 2, device=place_NP.device)[:, None]
    return (before_N1P.long() + offset_K1).clamp_(0, side - 1), (place_NP - 0.5)[:, None] - before_N1P


def _linear(v1: Tensor, v2: Tensor, way: Tensor) -> Tensor:
    return v1 + (v2 - v1) * way


def _cubic(v1: Tensor, v2: Tensor, v3: Tensor, v4: Tensor, way: Tensor) -> Tensor:
    """The cubic with a = -1 through v2 (way 0) and v3 (way 1)."""
    third = 2.0 * (v1 - v2) + v3 - v4
    fourth = v2 - v1 - v3 + v4
    return v2 + way * (v3 - v1 + way * (third + way * fourth))
