"""All decisions about a view, drawn before any pixel is touched, so that crop geometry is data.

Every draw is a pure function of (seed, epoch, view number, sample index, purpose): a sample gets the same view in any
batch, order, worker or process. The law of the crop is that of torchvision's RandomResizedCrop.

Legend: B images, T tries.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from polygrain.nn.random import hash64, uniform
from polygrain.views.recipe import Jitter, Recipe

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_TRIES = 10

Source = tuple[int, int] | Tensor
"""Height and width of the images, px: one pair for all, or int64 [B, 2]."""


@dataclass(frozen=True)
class JitterDraw:
    """Colour jitter of a batch: `mask` bool [B] (who gets it), `factors` float32 [B, 4] and `order` int64 [B, 4].

    Column i of `factors` belongs to operation i (brightness, contrast, saturation: a factor; hue: a shift in turns);
    `order[b, k]` is the operation that is k-th for sample b.
    """

    mask: Tensor
    factors: Tensor
    order: Tensor

    def to(self, device: torch.device) -> "JitterDraw":
        """Copy to another device."""
        return JitterDraw(self.mask.to(device), self.factors.to(device), self.order.to(device))


@dataclass(frozen=True)
class Parameters:
    """What was drawn for a batch of B views; a part that its recipe never applies is None.

    `box` int64 [B, 4] = top, left, height, width in source pixels; `flip`, `grey`, `solarise` bool [B]; `sigma`
    float32 [B] in pixels of the view, 0 where a view is not blurred.
    """

    box: Tensor
    flip: Tensor
    jitter: JitterDraw | None
    grey: Tensor | None
    sigma: Tensor | None
    solarise: Tensor | None

    def to(self, device: torch.device) -> "Parameters":
        """Copy to another device."""
        moved = [None if part is None else part.to(device) for part in (self.grey, self.sigma, self.solarise)]
        jitter = None if self.jitter is None else self.jitter.to(device)
        return Parameters(self.box.to(device), self.flip.to(device), jitter, *moved)


def draw(recipe: Recipe, *, seed: int, epoch: int, indices: Tensor, view: int, source: Source) -> Parameters:
    """Draw view number `view` of the samples `indices` (int64 [B]), whose images have `source` = (H, W) pixels."""
    key_B = hash64(seed, "view", epoch, view, indices)
    size_B2 = torch.as_tensor(source, device=key_B.device).expand(len(key_B), 2)
    blur, solarise = recipe.blur, recipe.solarise
    return Parameters(
        box=_crop(recipe, key_B, size_B2),
        flip=uniform(key_B, "flip") < recipe.flip,
        jitter=_jitter(recipe.jitter, key_B) if recipe.jitter else None,
        grey=uniform(key_B, "grey") < recipe.grey if recipe.grey else None,
        sigma=_sigma(blur.probability, blur.sigma, key_B) if blur else None,
        solarise=uniform(key_B, "solarise") < solarise.probability if solarise else None,
    )


def _crop(recipe: Recipe, key_B: Tensor, size_B2: Tensor) -> Tensor:
    """Boxes [B, 4] by torchvision's law: ten tries at once, the first that fits is taken, else the central crop."""
    height_B1, width_B1 = size_B2[:, :1], size_B2[:, 1:]
    tries = torch.arange(_TRIES, device=key_B.device)
    key_BT1 = hash64(key_B[:, None], "crop", tries)[..., None]
    area, ratio, down, right = uniform(key_BT1, torch.arange(4, device=key_B.device)).unbind(-1)
    area_BT = height_B1 * width_B1 * (recipe.scale[0] + area * (recipe.scale[1] - recipe.scale[0]))
    low, high = (math.log(end) for end in recipe.ratio)
    ratio_BT = torch.exp(low + ratio * (high - low))
    w_BT = torch.sqrt(area_BT * ratio_BT).round().long()
    h_BT = torch.sqrt(area_BT / ratio_BT).round().long()
    fits_BT = (w_BT > 0) & (w_BT <= width_B1) & (h_BT > 0) & (h_BT <= height_B1)
    top_BT = (down * (height_B1 - h_BT + 1)).floor().long()
    left_BT = (right * (width_B1 - w_BT + 1)).floor().long()
    # argmax of a mask is not promised to be its first true place; the smallest number of a fitting try is
    first_B = torch.where(fits_BT, tries, _TRIES - 1).amin(dim=1)
    box_BT4 = torch.stack((top_BT, left_BT, h_BT, w_BT), dim=-1)
    box_B4 = box_BT4.gather(1, first_B[:, None, None].expand(-1, 1, 4))[:, 0]
    return torch.where(fits_BT.any(dim=1)[:, None], box_B4, _central(recipe, size_B2))


def _central(recipe: Recipe, size_B2: Tensor) -> Tensor:
    """The largest central boxes [B, 4] within the ratio bounds, for sources that no try fits."""
    height_B, width_B = size_B2.unbind(dim=1)
    low, high = recipe.ratio
    ratio_B = width_B.double() / height_B
    h_B = torch.where(ratio_B < low, (width_B.double() / low).round().long(), height_B)
    w_B = torch.where(ratio_B > high, (height_B.double() * high).round().long(), width_B)
    return torch.stack(((height_B - h_B) // 2, (width_B - w_B) // 2, h_B, w_B), dim=1)


def _jitter(jitter: Jitter, key_B: Tensor) -> JitterDraw:
    strengths = (jitter.brightness, jitter.contrast, jitter.saturation)
    low = torch.tensor([*(max(0.0, 1.0 - s) for s in strengths), -jitter.hue], dtype=torch.float64)
    high = torch.tensor([*(1.0 + s for s in strengths), jitter.hue], dtype=torch.float64)
    low, high = low.to(key_B.device), high.to(key_B.device)
    operations = torch.arange(4, device=key_B.device)
    factors_B4 = low + uniform(key_B[:, None], "jitter factor", operations) * (high - low)
    order_B4 = torch.argsort(hash64(key_B[:, None], "jitter order", operations), dim=1, stable=True)
    return JitterDraw(uniform(key_B, "jitter") < jitter.probability, factors_B4.float(), order_B4)


def _sigma(probability: float, bounds: tuple[float, float], key_B: Tensor) -> Tensor:
    sigma_B = bounds[0] + uniform(key_B, "blur sigma") * (bounds[1] - bounds[0])
    return torch.where(uniform(key_B, "blur") < probability, sigma_B, 0.0).float()
