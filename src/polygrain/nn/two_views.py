"""Parts that methods share which compare two views of an image. Legend: B images (b of this process), D width."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from polygrain.nn.distributed import gather_rows
from polygrain.nn.monitors import alignment, effective_rank, spread
from polygrain.nn.optim import split_by_decay
from polygrain.provenance.errors import UserError


def mean_cosine(p_BD: Tensor, z_BD: Tensor) -> Tensor:
    """Mean cosine of rows of equal index, a scalar in [-1, 1]; gradient reaches both sides."""
    return (normalize(p_BD, dim=1) * normalize(z_BD, dim=1)).sum(dim=1).mean()


def recipes(asymmetric: bool) -> tuple[str, str]:
    """Names of the recipes of the two full-size views: `global_a` and `global_b`, or twice `global`."""
    return ("global_a", "global_b") if asymmetric else ("global", "global")


def trained_groups(module: nn.Module, *, decay_all: bool) -> list[dict[str, Any]]:
    """Trainable parameters in groups as `split_by_decay` makes them; with `decay_all` in one group, all decayed."""
    if not decay_all:
        return split_by_decay(module)
    return [{"params": [p for p in module.parameters() if p.requires_grad], "name": "decayed", "decay": True}]


def queue_rows(queue: float, *, images: int, batch: int) -> int:
    """Rows of a queue: `queue` is their number or, below 1, a share of the images, which makes at least one batch.

    Raises UserError for fewer rows than a batch or more than the images.
    """
    rows = max(round(queue * images), batch) if queue < 1 else int(queue)
    if not batch <= rows <= images:
        raise UserError(f"method.values.queue: {rows} rows, must be from {batch} (batch) to {images} (images)")
    return rows


@torch.no_grad()
def pair_monitors(z_1_bD: Tensor, z_2_bD: Tensor) -> dict[str, Tensor]:
    """`alignment` of two views' embeddings, `spread` and `rank` of the first's, over all processes."""
    z_1_BD, z_2_BD = gather_rows(z_1_bD.detach()), gather_rows(z_2_bD.detach())
    return {"alignment": alignment(z_1_BD, z_2_BD), "spread": spread(z_1_BD), "rank": effective_rank(z_1_BD)}
