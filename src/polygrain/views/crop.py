"""Crop, resize and flip, and Gaussian blur, as matrix products, which are deterministic on every device.

Large images of many sizes are cut one by one instead, in 8 bits, by torch's own antialiased kernel.
Legend: B images, C channels, H/W source sides, S side of the view, R taps of a blur from its centre outwards.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def resize_matrix(
    start_B: Tensor, length_B: Tensor, flip_B: Tensor | None, source: int, size: int, interpolation: str = "bilinear"
) -> Tensor:
    """Weights [B, size, source], float32, that resample pixels start..start+length-1 of an axis to `size` pixels.

    `bilinear`: a triangle of half-width max(1, length / size) source pixels around each output pixel's centre, clipped
    to the box, normalised. `bicubic`: the cubic with a = -0.5, twice as wide. Where `flip_B` is True it runs backwards.
    """
    output_S = torch.arange(size, dtype=torch.float32, device=start_B.device)
    pixel_H = torch.arange(source, dtype=torch.float32, device=start_B.device) + 0.5
    place_BS = output_S if flip_B is None else torch.where(flip_B[:, None], size - 1 - output_S, output_S)
    scale_B1 = (length_B / size)[:, None]
    centre_BS = (place_BS + 0.5) * scale_B1
    inside_BH = pixel_H - start_B[:, None]
    reach_B11 = scale_B1.clamp(min=1.0)[..., None]
    distance_BSH = (inside_BH[:, None, :] - centre_BS[..., None]).abs_()
    if interpolation == "bicubic":
        weight_BSH = _cubic(distance_BSH.div_(reach_B11))
    else:
        weight_BSH = distance_BSH.div_(-reach_B11).add_(1.0).clamp_(min=0.0)
    weight_BSH *= ((inside_BH > 0) & (inside_BH < length_B[:, None]))[:, None, :]
    return weight_BSH.div_(weight_BSH.sum(dim=-1, keepdim=True))


def _cubic(distance: Tensor) -> Tensor:
    """Keys's cubic with a = -0.5 of a distance >= 0."""
    near = (1.5 * distance - 2.5) * distance**2 + 1.0
    far = ((2.5 - 0.5 * distance) * distance - 4.0) * distance + 2.0
    return torch.where(distance < 1.0, near, torch.where(distance < 2.0, far, 0.0))


def crop_resize_flip(
    images_BCHW: Tensor, box_B4: Tensor, flip_B: Tensor | None, size: int, interpolation: str = "bilinear"
) -> Tensor:
    """Cut each image's box out of [B, C, H, W], resize to [B, C, size, size], mirror it; bicubic may leave 0..1."""
    height, width = images_BCHW.shape[-2:]
    top, left, h, w = box_B4.unbind(dim=1)
    down_BSH = resize_matrix(top, h, None, height, size, interpolation)
    across_BSW = resize_matrix(left, w, flip_B, width, size, interpolation)
    return _sandwich(down_BSH, images_BCHW, across_BSW)


def cut(image_CHW: Tensor, box: Sequence[int], flip: bool, size: int, interpolation: str = "bilinear") -> Tensor:
    """Cut `box` = top, left, height, width out of a uint8 image, resize it to [C, size, size], mirror it if `flip`.

    As `crop_resize_flip`, but rounded to 8 bits, as in the papers' pipelines: several times faster.
    """
    top, left, height, width = box
    view = _resized(image_CHW[:, top : top + height, left : left + width], size, size, interpolation)
    return view.flip(-1) if flip else view


def central_view(image_CHW: Tensor, size: int, resize: int | None) -> Tensor:
    """The evaluation view of a uint8 image, [C, size, size]: shorter side resized to `resize`, centre cut out.

    If `resize` is None the whole image becomes the square. Rounds as torchvision. Raises ValueError if resize < size.
    """
    if resize is None:
        return _resized(image_CHW, size, size)
    if resize < size:
        raise ValueError(f"no centre of {size} pixels in an image whose shorter side is {resize}")
    height, width = image_CHW.shape[-2:]
    short = min(height, width)
    image_CHW = _resized(image_CHW, resize * height // short, resize * width // short)
    top, left = (round((side - size) / 2) for side in image_CHW.shape[-2:])
    return image_CHW[:, top : top + size, left : left + size]


def _resized(image_CHW: Tensor, height: int, width: int, interpolation: str = "bilinear") -> Tensor:
    return interpolate(image_CHW[None], (height, width), mode=interpolation, antialias=True)[0]


def gaussian_blur(images_BCSS: Tensor, sigma_B: Tensor, radius: int) -> Tensor:
    """Blur each image by its sigma (px; 0: same bits), mirrored at the border. ValueError unless radius < side."""
    side = images_BCSS.shape[-1]
    if radius >= side:
        raise ValueError(f"blur radius {radius} does not fit an image of {side} pixels")
    tap = torch.arange(radius + 1, dtype=torch.float32, device=sigma_B.device)
    sigma_B1 = sigma_B[:, None]
    taps_BR = torch.exp(-0.5 * (tap / torch.where(sigma_B1 > 0, sigma_B1, 1.0)) ** 2)
    taps_BR = torch.where(sigma_B1 > 0, taps_BR, tap == 0)
    taps_BR = taps_BR / (2.0 * taps_BR.sum(dim=1, keepdim=True) - 1.0)
    matrix_BSS = _reflected(taps_BR, side)
    return _sandwich(matrix_BSS, images_BCSS, matrix_BSS)


def blur_radius(sigma: float, size: int) -> int:
    """Kernel radius for a recipe whose largest sigma is `sigma`: three sigma rounded up, but below `size`."""
    return min(math.ceil(3.0 * sigma), size - 1)


def _reflected(taps_BR: Tensor, side: int) -> Tensor:
    """Blur matrices [B, S, S]: output i takes pixel k directly, and once for each reflection within the radius."""
    tap_R11 = torch.arange(taps_BR.shape[1], device=taps_BR.device)[:, None, None]
    out_S1 = torch.arange(side, device=taps_BR.device)[:, None]
    in_1S = out_S1.T
    direct_SS = (out_S1 - in_1S).abs()
    # the border pixels are the mirrors and are not reflected themselves
    before_SS = torch.where(in_1S > 0, out_S1 + in_1S, -1)
    behind_SS = torch.where(in_1S < side - 1, 2 * (side - 1) - out_S1 - in_1S, -1)
    count_RSS = (direct_SS == tap_R11).float() + (before_SS == tap_R11) + (behind_SS == tap_R11)
    return (taps_BR @ count_RSS.flatten(1)).view(-1, side, side)


def _sandwich(down_BSH: Tensor, images_BCHW: Tensor, across_BSW: Tensor) -> Tensor:
    """`down @ image @ across^T` for every image and channel: [B, C, S, S]."""
    B, C, H, W = images_BCHW.shape
    rows = torch.bmm(images_BCHW.reshape(B, C * H, W), across_BSW.mT).view(B, C, H, -1)
    if C == 1:
        return torch.bmm(down_BSH, rows[:, 0])[:, None]
    return torch.matmul(down_BSH[:, None], rows)
