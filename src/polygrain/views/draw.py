"""All random decisions about a view, drawn before any pixel is computed. Legend: B images, K operations in a row.

Every draw is a pure function of (seed, epoch, view number, sample index, purpose): a sample gets the same view in any
batch, order, worker or process.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from polygrain.nn.random import hash64, normal, uniform
from polygrain.views.boxes import crop_box, erased_box, overlapping_box
from polygrain.views.recipe import OPERATIONS, Erasing, Jitter, Mixed, RandAugment, Recipe, ViewRecipe

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

Source = tuple[int, int] | Tensor
"""Height and width of the images, px: one pair for all, or int64 [B, 2]."""


@dataclass(frozen=True)
class JitterDraw:
    """Colour jitter of a batch: `mask` bool [B] (applied or not), `factors` float32 [B, 4] and `order` int64 [B, 4].

    Column i of `factors` is of operation i (hue: a shift in turns); `order[b, k]` is the k-th operation of sample b.
    """

    mask: Tensor
    factors: Tensor
    order: Tensor

    def to(self, device: torch.device) -> "JitterDraw":
        """Copy to another device."""
        return JitterDraw(self.mask.to(device), self.factors.to(device), self.order.to(device))


@dataclass(frozen=True)
class RandAugmentDraw:
    """Operations of a batch: `operation` int64 [B, K] (index in OPERATIONS; -1: none), in the order of execution.

    `magnitude` float64 [B, K], -10..10, the sign is a direction; `cubic` bool [B, K]: bicubic where pixels move.
    """

    operation: Tensor
    magnitude: Tensor
    cubic: Tensor

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """All three tensors."""
        return self.operation, self.magnitude, self.cubic

    def widened(self, count: int) -> "RandAugmentDraw":
        """The same with `count` operations; added ones are none."""
        more = (0, count - self.operation.shape[1])
        return RandAugmentDraw(pad(self.operation, more, value=-1), pad(self.magnitude, more), pad(self.cubic, more))

    def to(self, device: torch.device) -> "RandAugmentDraw":
        """Copy to another device."""
        return RandAugmentDraw(*(part.to(device) for part in self.parts))


def _nothing(images: int) -> RandAugmentDraw:
    empty = torch.zeros(images, 0)
    return RandAugmentDraw(empty.long(), empty.double(), empty.bool())


@dataclass(frozen=True)
class ErasingDraw:
    """`box` int64 [B, 4] in pixels of the view, of height 0 where nothing is erased; `key` int64 [B] of the noise."""

    box: Tensor
    key: Tensor

    def to(self, device: torch.device) -> "ErasingDraw":
        """Copy to another device."""
        return ErasingDraw(self.box.to(device), self.key.to(device))


@dataclass(frozen=True)
class Parameters:
    """What was drawn for a batch of B views; a part that its recipe never applies is None.

    `box` int64 [B, 4] = top, left, height, width in source pixels; `flip`, `grey`, `solarise` bool [B]; `sigma`
    float32 [B] in pixels of the view, 0 where a view is not blurred. RandAugment acts before the crop: where it moves
    pixels, `box` refers to the image after that.
    """

    box: Tensor
    flip: Tensor
    jitter: JitterDraw | None
    grey: Tensor | None
    sigma: Tensor | None
    solarise: Tensor | None
    randaugment: RandAugmentDraw | None = None
    erasing: ErasingDraw | None = None

    def to(self, device: torch.device) -> "Parameters":
        """Copy to another device."""
        parts = ((field.name, getattr(self, field.name)) for field in fields(self))
        moved: dict[str, Any] = {name: None if part is None else part.to(device) for name, part in parts}
        return Parameters(**moved)


@dataclass(frozen=True)
class MixedParameters:
    """What was drawn for B views of a mixed recipe: `weak` bool [B], True where the weak side is used.

    `sides` are the draws of the weak and the strong side, each for its own images, which are `rows` of the batch
    (int64, ascending); `place` int64 [B] is the position of each sample in the concatenation of both sides.
    """

    weak: Tensor
    sides: tuple[Parameters, Parameters]
    rows: tuple[Tensor, Tensor]
    place: Tensor

    @property
    def box(self) -> Tensor:
        """The boxes, int64 [B, 4]."""
        return self.together([side.box for side in self.sides])

    @property
    def flip(self) -> Tensor:
        """The flips used, bool [B]."""
        return self.together([side.flip for side in self.sides])

    @property
    def randaugment(self) -> RandAugmentDraw | None:
        """The operations of both sides, None where neither has RandAugment."""
        if all(side.randaugment is None for side in self.sides):
            return None
        count = max(side.randaugment.operation.shape[1] for side in self.sides if side.randaugment)
        sides = [(side.randaugment or _nothing(len(side.box))).widened(count).parts for side in self.sides]
        return RandAugmentDraw(*(self.together(list(parts)) for parts in zip(*sides, strict=True)))

    def together(self, parts: list[Tensor]) -> Tensor:
        """Rows of the weak and of the strong side, put into the batch's order."""
        return torch.cat(parts)[self.place]

    def to(self, device: torch.device) -> "MixedParameters":
        """Copy to another device."""
        sides = (self.sides[0].to(device), self.sides[1].to(device))
        rows = (self.rows[0].to(device), self.rows[1].to(device))
        return MixedParameters(self.weak.to(device), sides, rows, self.place.to(device))


Drawn = Parameters | MixedParameters


def draw_view(
    recipe: ViewRecipe, *, seed: int, epoch: int, indices: Tensor, view: int, source: Source, first: Tensor | None
) -> Drawn:
    """As `draw`, also for mixed recipes; `first` int64 [B, 4] are the boxes of view 0, which a recipe may refer to."""
    if isinstance(recipe, Recipe):
        return draw(recipe, seed=seed, epoch=epoch, indices=indices, view=view, source=source, first=first)
    weak_B = _coin(recipe, seed, epoch, indices, view)
    order_B = torch.argsort(~weak_B, stable=True)
    rows = (order_B[: int(weak_B.sum())], order_B[int(weak_B.sum()) :])
    sides = [
        draw(
            side,
            seed=seed,
            epoch=epoch,
            indices=indices[chosen],
            view=view,
            source=source[chosen] if isinstance(source, Tensor) else source,
            first=None if first is None else first[chosen],
        )
        for side, chosen in zip((recipe.weak, recipe.strong), rows, strict=True)
    ]
    return MixedParameters(weak_B, (sides[0], sides[1]), rows, torch.argsort(order_B))


def _coin(recipe: Mixed, seed: int, epoch: int, indices: Tensor, view: int) -> Tensor:
    """Bool [B]: True is weak. A shared coin does not depend on the view, so all views that share it agree."""
    coin_B = uniform(seed, "coin", epoch, indices) if recipe.shared else uniform(seed, "own coin", epoch, view, indices)
    return coin_B < recipe.probability


def draw(
    recipe: Recipe, *, seed: int, epoch: int, indices: Tensor, view: int, source: Source, first: Tensor | None = None
) -> Parameters:
    """Draw view number `view` of the samples `indices` (int64 [B]), whose images have `source` = (H, W) pixels.

    `first`: int64 [B, 4], the boxes of view 0, which `overlap` needs: without them it raises UserError.
    """
    key_B = hash64(seed, "view", epoch, view, indices)
    size_B2 = torch.as_tensor(source, device=key_B.device).expand(len(key_B), 2)
    blur, solarise = recipe.blur, recipe.solarise
    return Parameters(
        box=overlapping_box(recipe, key_B, size_B2, first) if recipe.overlap else crop_box(recipe, key_B, size_B2),
        flip=uniform(key_B, "flip") < recipe.flip,
        jitter=_jitter(recipe.jitter, key_B) if recipe.jitter else None,
        grey=uniform(key_B, "grey") < recipe.grey if recipe.grey else None,
        sigma=_sigma(blur.probability, blur.sigma, key_B) if blur else None,
        solarise=uniform(key_B, "solarise") < solarise.probability if solarise else None,
        randaugment=_randaugment(recipe.randaugment, key_B) if recipe.randaugment else None,
        erasing=_erasing(recipe.erasing, recipe.size, key_B) if recipe.erasing else None,
    )


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


def _randaugment(values: RandAugment, key_B: Tensor) -> RandAugmentDraw:
    """The operations of smallest hash, hence without replacement; each is then skipped or done at its own magnitude."""
    key_B1, place_K = key_B[:, None], torch.arange(values.count, device=key_B.device)
    code_A = torch.tensor([OPERATIONS.index(name) for name in values.operations], device=key_B.device)
    order_BA = torch.argsort(hash64(key_B1, "randaugment order", code_A), dim=1, stable=True)
    magnitude_BK = values.magnitude + values.deviation * normal(key_B1, "randaugment magnitude", place_K)
    coins_BK3 = uniform(key_B1[..., None], "randaugment", place_K[:, None], torch.arange(3, device=key_B.device))
    done_BK, back_BK, cubic_BK = (coins_BK3 < coins_BK3.new_tensor([values.probability, 0.5, 0.5])).unbind(-1)
    magnitude_BK = magnitude_BK.clamp(0.0, 10.0)
    return RandAugmentDraw(
        operation=torch.where(done_BK, code_A[order_BA[:, : values.count]], -1),
        magnitude=torch.where(back_BK, -magnitude_BK, magnitude_BK),
        cubic=cubic_BK,
    )


def _erasing(values: Erasing, size: int, key_B: Tensor) -> ErasingDraw:
    box_B4 = erased_box(values, size, key_B)
    done_B1 = uniform(key_B, "erasing")[:, None] < values.probability
    return ErasingDraw(torch.where(done_B1, box_B4, 0), hash64(key_B, "erasing noise"))
