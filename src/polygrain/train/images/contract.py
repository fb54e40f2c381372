"""What pre-training asks of a data set's images. Each format has a module beside this one."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from polygrain.views.batch import Batch
from polygrain.views.recipe import ViewRecipe


@dataclass(frozen=True)
class Request:
    """One batch to make: rows of the pre-training subset, int64 [B], the epoch, and a recipe per view."""

    rows: Tensor
    epoch: int
    recipes: tuple[ViewRecipe, ...]


class Images(Protocol):
    """The pre-training subset in one of its formats."""

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Yield the batches asked for; may take the next requests before it yields a batch."""
        ...

    def plain(self, parts: Sequence[Tensor], *, subset: bool) -> Iterator[Tensor]:
        """Yield unaugmented views, float32 [b, C, size, size], of the positions in each part."""
        ...


@dataclass(frozen=True)
class Setting:
    """What all formats need: positions int64 [N] of the subset, its labels [N], and how views are made."""

    positions: Tensor
    labels: Tensor
    seed: int
    size: int
    mean: list[float]
    std: list[float]
    device: torch.device
