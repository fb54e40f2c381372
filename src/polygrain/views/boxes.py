"""Where a view is cut: boxes, int64 top, left, height, width, as pure functions of a sample's key and image size.

Crops follow torchvision's RandomResizedCrop. Legend: B images, N images still without a box, T tries.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from polygrain.nn.exact import square_root
from polygrain.nn.random import hash64, uniform
from polygrain.provenance.errors import UserError
from polygrain.views.recipe import Erasing, Range, Recipe

_TRIES = 10
# tries for an overlapping crop, made in rounds of growing size for the samples still without a box
_ROUNDS = (0, 10, 100, 1000)


def crop_box(recipe: Recipe, key_B: Tensor, size_B2: Tensor) -> Tensor:
    """Boxes [B, 4] as torchvision draws them: of ten tries the first that fits, else the central crop."""
    box_BT4, fits_BT = _tries(recipe, key_B, size_B2, 0, _TRIES)
    return torch.where(fits_BT.any(dim=1)[:, None], _first(box_BT4, fits_BT), _central(recipe, size_B2))


def overlapping_box(recipe: Recipe, key_B: Tensor, size_B2: Tensor, first_B4: Tensor | None) -> Tensor:
    """Boxes [B, 4]: the first of the same tries that fits and whose IoU with `first_B4` is above the minimum.

    MGC's rule for its second view (specification section 4.2). Where all 1000 tries fail, as in very long images, it is
    the whole image. Deviation: MGC then continues until a try does not fit. Raises UserError without a first view.
    """
    if first_B4 is None or recipe.overlap is None:
        raise UserError("augmentation: the first view has a recipe with 'overlap', which refers to the first view")
    box_B4 = torch.cat((torch.zeros_like(size_B2), size_B2), dim=1)
    open_N = torch.arange(len(key_B), device=key_B.device)
    for start, stop in pairwise(_ROUNDS):
        box_NT4, fits_NT = _tries(recipe, key_B[open_N], size_B2[open_N], start, stop)
        good_NT = fits_NT & _overlap_above(recipe.overlap.minimum, box_NT4, first_B4[open_N, None])
        found_N = good_NT.any(dim=1)
        box_B4[open_N[found_N]] = _first(box_NT4, good_NT)[found_N]
        open_N = open_N[~found_N]
        if not len(open_N):
            break
    return box_B4


def _overlap_above(minimum: float, box: Tensor, other: Tensor) -> Tensor:
    """Whether the IoU of two boxes [..., 4] is above `minimum`, computed from whole pixels."""
    near, far = torch.maximum(box[..., :2], other[..., :2]), torch.minimum(_end(box), _end(other))
    shared = (far - near).clamp(min=0).prod(dim=-1)
    union = box[..., 2:].prod(dim=-1) + other[..., 2:].prod(dim=-1) - shared
    return shared > minimum * union.double()


def _end(box: Tensor) -> Tensor:
    return box[..., :2] + box[..., 2:]


def _first(box_BT4: Tensor, good_BT: Tensor) -> Tensor:
    """Each sample's first good box [B, 4], its last box where none is good."""
    # torch does not promise that argmax of a mask is its first True; the smallest number of a good try is
    tries = torch.arange(good_BT.shape[1], device=good_BT.device)
    first_B = torch.where(good_BT, tries, good_BT.shape[1] - 1).amin(dim=1)
    return box_BT4.gather(1, first_B[:, None, None].expand(-1, 1, 4))[:, 0]


def _tries(recipe: Recipe, key_B: Tensor, size_B2: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Boxes [B, T, 4] of tries number `start` to `stop` - 1, and whether each fits into its image."""
    height_B1, width_B1 = size_B2[:, :1], size_B2[:, 1:]
    tries = torch.arange(start, stop, device=key_B.device)
    key_BT1 = hash64(key_B[:, None], "crop", tries)[..., None]
    area, ratio, down, right = uniform(key_BT1, torch.arange(4, device=key_B.device)).unbind(-1)
    area_BT = height_B1 * width_B1 * _between(recipe.scale, area)
    ratio_BT = _log_between(recipe.ratio, ratio)
    w_BT = square_root(area_BT * ratio_BT).round().long()
    h_BT = square_root(area_BT / ratio_BT).round().long()
    fits_BT = (w_BT > 0) & (w_BT <= width_B1) & (h_BT > 0) & (h_BT <= height_B1)
    top_BT = (down * (height_B1 - h_BT + 1)).floor().long()
    left_BT = (right * (width_B1 - w_BT + 1)).floor().long()
    return torch.stack((top_BT, left_BT, h_BT, w_BT), dim=-1), fits_BT


def _central(recipe: Recipe, size_B2: Tensor) -> Tensor:
    """The largest central boxes [B, 4] within the ratio bounds, for images in which no try fits."""
    height_B, width_B = size_B2.unbind(dim=1)
    low, high = recipe.ratio
    ratio_B = width_B.double() / height_B
    h_B = torch.where(ratio_B < low, (width_B.double() / low).round().long(), height_B)
    w_B = torch.where(ratio_B > high, (height_B.double() * high).round().long(), width_B)
    return torch.stack(((height_B - h_B) // 2, (width_B - w_B) // 2, h_B, w_B), dim=1)


def erased_box(values: Erasing, size: int, key_B: Tensor) -> Tensor:
    """Boxes [B, 4] in views of side `size`: the first of ten tries that is smaller than the view, else an empty box."""
    tries = torch.arange(_TRIES, device=key_B.device)
    key_BT1 = hash64(key_B[:, None], "erased box", tries)[..., None]
    area, ratio, down, right = uniform(key_BT1, torch.arange(4, device=key_B.device)).unbind(-1)
    area_BT = size**2 * _between(values.area, area)
    ratio_BT = _log_between(values.ratio, ratio)
    h_BT = square_root(area_BT * ratio_BT).round().long()
    w_BT = square_root(area_BT / ratio_BT).round().long()
    fits_BT = (h_BT > 0) & (h_BT < size) & (w_BT > 0) & (w_BT < size)
    top_BT, left_BT = (down * (size - h_BT + 1)).floor().long(), (right * (size - w_BT + 1)).floor().long()
    box_B4 = _first(torch.stack((top_BT, left_BT, h_BT, w_BT), dim=-1), fits_BT)
    return torch.where(fits_BT.any(dim=1)[:, None], box_B4, 0)


def _between(bounds: Range, share: Tensor) -> Tensor:
    return bounds[0] + share * (bounds[1] - bounds[0])


def _log_between(bounds: Range, share: Tensor) -> Tensor:
    low, high = (math.log(end) for end in bounds)
    return torch.exp(low + share * (high - low))
