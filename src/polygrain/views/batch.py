"""The input of a method's step: views, their boxes, their samples. Legend: B samples, C channels, S side of a view."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from polygrain.nn.clock import Clock
from polygrain.views.apply import apply, photometric, plain_view, unit
from polygrain.views.draw import Drawn, MixedParameters, Parameters, Source, draw_view
from polygrain.views.recipe import Mixed, Recipe, ViewRecipe

__all__ = ["Batch", "DataPasses", "Geometry", "draw_views", "finish_batch", "make_batch", "plain_view"]


@dataclass(frozen=True)
class Geometry:
    """The place of a view in its source: `box` int64 [B, 4] = top, left, height, width in source px; `flip` bool [B].

    The box is cut, resized, then mirrored where `flip` is True. `source`: (H, W), or int64 [B, 2] if sizes differ.
    """

    box: Tensor
    flip: Tensor
    source: Source

    def to_source(self, points_BN2: Tensor, size: int) -> Tensor:
        """Source coordinates (row, column) of points [B, N, 2] in pixels of a view; pixel i covers [i, i + 1)."""
        row, column = points_BN2.unbind(dim=-1)
        top, left, height, width = self.box[:, :, None].unbind(dim=1)
        column = torch.where(self.flip[:, None], size - column, column)
        return torch.stack((top + row * height / size, left + column * width / size), dim=-1)


@dataclass(frozen=True)
class Batch:
    """One step's input: `views` float32 [B, C, S, S] each (sizes may differ), their `geometry`, `indices` int64 [B].

    `labels_for_monitoring` int64 [B] never enters a self-supervised loss. `weak`: per view bool [B], True where a mixed
    recipe used its weak side; None for a view of another recipe.
    """

    views: list[Tensor]
    geometry: list[Geometry]
    indices: Tensor
    labels_for_monitoring: Tensor
    weak: list[Tensor | None] = field(default_factory=list)


class DataPasses(Protocol):
    """Passes over the data that a method may ask for at the start of an epoch."""

    def plain_pass(self, split: str = "pretrain") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield unaugmented images, their indices and labels, in the stored order."""
        ...

    def augmented_pass(self, clock: Clock, views: tuple[str, ...]) -> Iterator[Batch]:
        """Yield the batches of the epoch of `clock`, in its order, with one view per named recipe."""
        ...


def make_batch(
    images_uint8: Tensor,
    labels: Tensor,
    indices: Tensor,
    recipes: Sequence[ViewRecipe],
    *,
    seed: int,
    epoch: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Batch:
    """Draw (on the CPU, so equally for all devices) and make one view per recipe of images uint8 [B, C, H, W]."""
    source = (images_uint8.shape[-2], images_uint8.shape[-1])
    drawn = draw_views(recipes, indices.cpu(), seed=seed, epoch=epoch, source=source)
    drawn = [one.to(images_uint8.device) for one in drawn]

    def make(images: Tensor, parameters: Parameters, recipe: Recipe) -> Tensor:
        return apply(images, parameters, recipe, mean, std)

    views = [_by_side(make, images_uint8, one, recipe) for one, recipe in zip(drawn, recipes, strict=True)]
    return _batch(views, drawn, source, indices, labels)


def draw_views(recipes: Sequence[ViewRecipe], indices: Tensor, *, seed: int, epoch: int, source: Source) -> list[Drawn]:
    """Draw one view per recipe of the samples `indices`, int64 [B]; a view's number is its recipe's position.

    Raises UserError when the first recipe asks for overlap with the first view.
    """
    drawn: list[Drawn] = []
    for view, recipe in enumerate(recipes):
        first = drawn[0].box if drawn else None
        drawn.append(draw_view(recipe, seed=seed, epoch=epoch, indices=indices, view=view, source=source, first=first))
    return drawn


def finish_batch(
    cuts_uint8: Sequence[Tensor],
    drawn: Sequence[Drawn],
    labels: Tensor,
    indices: Tensor,
    recipes: Sequence[ViewRecipe],
    *,
    source: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
) -> Batch:
    """Make a batch, on their device, of views already cut, resized and flipped, uint8 [B, C, size, size] each."""

    def finish(cut: Tensor, parameters: Parameters, recipe: Recipe) -> Tensor:
        return photometric(unit(cut), parameters, recipe, mean, std)

    here = [one.to(cut.device) for cut, one in zip(cuts_uint8, drawn, strict=True)]
    views = [_by_side(finish, *each) for each in zip(cuts_uint8, here, recipes, strict=True)]
    return _batch(views, here, source.to(indices.device), indices, labels)


def _by_side(
    make: Callable[[Tensor, Parameters, Recipe], Tensor], images_BCHW: Tensor, drawn: Drawn, recipe: ViewRecipe
) -> Tensor:
    """Views float32 [B, C, S, S] by `make`; of a mixed recipe, each side makes its own images only."""
    if isinstance(drawn, Parameters):
        assert isinstance(recipe, Recipe)
        return make(images_BCHW, drawn, recipe)
    assert isinstance(recipe, Mixed)
    sides = zip(drawn.rows, drawn.sides, (recipe.weak, recipe.strong), strict=True)
    return drawn.together([make(images_BCHW[rows], side, law) for rows, side, law in sides if len(rows)])


def _batch(views: list[Tensor], drawn: Sequence[Drawn], source: Source, indices: Tensor, labels: Tensor) -> Batch:
    geometry = [Geometry(one.box, one.flip, source) for one in drawn]
    weak = [one.weak if isinstance(one, MixedParameters) else None for one in drawn]
    return Batch(views, geometry, indices, labels, weak)
