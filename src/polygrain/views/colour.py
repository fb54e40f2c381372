"""torchvision's colour operations on float images [B, C, H, W] in [0, 1], C 1 or 3, with one factor per image."""

import torch
from torch import Tensor

from polygrain.views.draw import BRIGHTNESS, CONTRAST, HUE, SATURATION, JitterDraw
from polygrain.views.recipe import Jitter

_LUMA = (0.2989, 0.587, 0.114)


def greyscale(images_BCHW: Tensor) -> Tensor:
    """Luma of each image, [B, 1, H, W]; one-channel images are returned as they are."""
    if images_BCHW.shape[1] == 1:
        return images_BCHW
    red, green, blue = images_BCHW.unbind(dim=1)
    luma: Tensor = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    return luma[:, None]


def adjust_hue(images_BCHW: Tensor, shift_B: Tensor) -> Tensor:
    """Shift the hue of RGB images by `shift_B` turns (-0.5..0.5) in HSV space; value and saturation stay."""
    value, low = images_BCHW.amax(dim=1), images_BCHW.amin(dim=1)
    chroma = value - low
    red, green, blue = ((value[:, None] - images_BCHW) / torch.where(chroma > 0, chroma, 1.0)[:, None]).unbind(dim=1)
    is_red, is_green = images_BCHW[:, 0] == value, images_BCHW[:, 1] == value
    sixths = torch.where(is_red, blue - green, torch.where(is_green, 2.0 + red - blue, 4.0 + green - red))
    sixths = sixths + 6.0 * shift_B[:, None, None]
    # each channel is value - chroma * fall; fall is 0 where the hue is near the channel, 1 where it is far
    offset = torch.tensor([5.0, 3.0, 1.0], device=images_BCHW.device)[:, None, None]
    turned = sixths[:, None] + offset
    turned = turned - 6.0 * torch.floor(turned / 6.0)  # several times faster than torch.remainder
    fall = torch.minimum(turned, 4.0 - turned).clamp_(0.0, 1.0)
    return value[:, None] - chroma[:, None] * fall


def colour_jitter(images_BCHW: Tensor, drawn: JitterDraw, jitter: Jitter) -> Tensor:
    """Brightness, contrast, saturation and hue in each image's own order, where `drawn.mask` is True."""
    active = _active(jitter, images_BCHW.shape[1])
    if not active:
        return images_BCHW
    # the drawn order, active operations only: [B, number of active]
    rank_B4 = torch.argsort(drawn.order, dim=1)
    operations = torch.tensor(active, device=images_BCHW.device)
    order_BA = operations[rank_B4[:, operations].argsort(dim=1)]
    if HUE not in active:
        jittered = images_BCHW
        for operation_B in order_BA.unbind(dim=1):
            jittered = _blend(jittered, operation_B, drawn.factors, SATURATION in active)
    else:
        jittered = _with_hue(images_BCHW, order_BA, drawn.factors, SATURATION in active)
    return torch.where(_column(drawn.mask), jittered, images_BCHW)


def _active(jitter: Jitter, channels: int) -> list[int]:
    strengths = {BRIGHTNESS: jitter.brightness, CONTRAST: jitter.contrast}
    if channels == 3:
        strengths |= {SATURATION: jitter.saturation, HUE: jitter.hue}
    return [operation for operation, strength in strengths.items() if strength > 0]


def _with_hue(images_BCHW: Tensor, order_BA: Tensor, factors_B4: Tensor, saturation: bool) -> Tensor:
    """Change hue, the most expensive operation, once for all images, between the blends before and after it."""
    last = order_BA.shape[1] - 1
    turn_B = (order_BA == HUE).long().argmax(dim=1)
    for place in range(last):
        operation_B = torch.where(turn_B > place, order_BA[:, place], HUE)
        images_BCHW = _blend(images_BCHW, operation_B, factors_B4, saturation)
    images_BCHW = adjust_hue(images_BCHW, factors_B4[:, HUE])
    for place in range(1, last + 1):
        operation_B = torch.where(turn_B < place, order_BA[:, place], HUE)
        images_BCHW = _blend(images_BCHW, operation_B, factors_B4, saturation)
    return images_BCHW


def _blend(images_BCHW: Tensor, operation_B: Tensor, factors_B4: Tensor, saturation: bool) -> Tensor:
    """Any operation but hue: f * image + (1 - f) * (black, mean luma or luma), clipped to [0, 1]; HUE: unchanged."""
    grey = greyscale(images_BCHW)
    mean = grey.mean(dim=(1, 2, 3), keepdim=True)
    other = torch.where(_column(operation_B == CONTRAST), mean, 0.0)
    if saturation:
        other = torch.where(_column(operation_B == SATURATION), grey, other)
    factor_B = factors_B4.gather(1, operation_B[:, None])[:, 0]
    factor = _column(torch.where(operation_B == HUE, 1.0, factor_B))
    return (images_BCHW * factor).add_((1.0 - factor) * other).clamp_(0.0, 1.0)


def solarise(images_BCHW: Tensor, mask_B: Tensor, threshold: float) -> Tensor:
    """Invert pixels at or above `threshold` in the images of `mask_B`."""
    return torch.where(_column(mask_B) & (images_BCHW >= threshold), 1.0 - images_BCHW, images_BCHW)


def to_grey(images_BCHW: Tensor, mask_B: Tensor) -> Tensor:
    """Replace the images of `mask_B` by their luma, in all channels."""
    return torch.where(_column(mask_B), greyscale(images_BCHW), images_BCHW)


def _column(values_B: Tensor) -> Tensor:
    return values_B[:, None, None, None]
