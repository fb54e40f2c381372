"""What a method receives at each step: views, where they were cut, and which samples they show.

Legend: B samples, C channels, S side of a view.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from polygrain.nn.clock import Clock
from polygrain.views.apply import apply, plain_view
from polygrain.views.draw import draw
from polygrain.views.recipe import Recipe

__all__ = ["Batch", "DataPasses", "Geometry", "make_batch", "plain_view"]


@dataclass(frozen=True)
class Geometry:
    """Where a view lies in its source: `box` int64 [B, 4] = top, left, height, width in source pixels; `flip` bool [B].

    The box is cut and resized to the view first, then mirrored left to right where `flip` is set. `source` = (H, W).
    """

    box: Tensor
    flip: Tensor
    source: tuple[int, int]

    def to_source(self, points_BN2: Tensor, size: int) -> Tensor:
        """Source coordinates (row, column) of points [B, N, 2] given in pixels of a view of side `size`.

        Both are continuous, with pixel i covering [i, i + 1), so a pixel's centre is at i + 0.5.
        """
        row, column = points_BN2.unbind(dim=-1)
        top, left, height, width = self.box[:, :, None].unbind(dim=1)
        column = torch.where(self.flip[:, None], size - column, column)
        return torch.stack((top + row * height / size, left + column * width / size), dim=-1)


@dataclass(frozen=True)
class Batch:
    """One step's input: `views` float32 [B, C, S, S] each (sizes may differ), their `geometry`, `indices` int64 [B].

    `labels_for_monitoring` int64 [B] never enters a self-supervised loss; a monitor may say with it how pure a
    grouping is.
    """

    views: list[Tensor]
    geometry: list[Geometry]
    indices: Tensor
    labels_for_monitoring: Tensor


class DataPasses(Protocol):
    """What a method may ask of the data at the start of an epoch."""

    def plain_pass(self, split: str = "pretrain") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield unaugmented images, their indices and labels, in the stored order."""
        ...

    def augmented_pass(self, clock: Clock, views: tuple[str, ...]) -> Iterator[Batch]:
        """Yield the batches of the epoch of `clock`, in its order, with one view per recipe named."""
        ...


def make_batch(
    images_uint8: Tensor,
    labels: Tensor,
    indices: Tensor,
    recipes: Sequence[Recipe],
    *,
    seed: int,
    epoch: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Batch:
    """Draw and make one view per recipe of the images uint8 [B, C, H, W]; a view's number is its recipe's position.

    Draws are made on the CPU, so that every device gets the same ones.
    """
    source = (images_uint8.shape[-2], images_uint8.shape[-1])
    keys = indices.cpu()
    views, geometry = [], []
    for view, recipe in enumerate(recipes):
        drawn = draw(recipe, seed=seed, epoch=epoch, indices=keys, view=view, source=source).to(images_uint8.device)
        views.append(apply(images_uint8, drawn, recipe, mean, std))
        geometry.append(Geometry(drawn.box, drawn.flip, source))
    return Batch(views, geometry, indices, labels)
