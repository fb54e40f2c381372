"""Monitors: scalar tensors without gradient, of rows scaled to unit length. Legend: B images, D width."""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from polygrain.nn.distributed import gather_rows


@torch.no_grad()
def alignment(z_1_BD: Tensor, z_2_BD: Tensor) -> Tensor:
    """Measure the mean squared distance between an image's two views, 0 to 4 (Wang and Isola 2020)."""
    return (normalize(z_1_BD, dim=1) - normalize(z_2_BD, dim=1)).square().sum(dim=1).mean()


@torch.no_grad()
def uniformity(z_BD: Tensor) -> Tensor:
    """Measure log mean exp(-2 squared distance) over pairs of rows (Wang and Isola 2020, t = 2): 0 when collapsed."""
    z_BD = normalize(z_BD, dim=1)
    potential_BB = 4.0 * (z_BD @ z_BD.T) - 4.0
    rows = len(z_BD)
    others = ~torch.eye(rows, dtype=torch.bool, device=z_BD.device)
    return potential_BB.masked_fill(~others, -math.inf).flatten().logsumexp(0) - math.log(rows * (rows - 1))


@torch.no_grad()
def spread(z_BD: Tensor) -> Tensor:
    """Measure the mean deviation per dimension times sqrt(D): 0 when collapsed, about 1 if uniform on the sphere."""
    z_BD = normalize(z_BD, dim=1)
    return z_BD.std(dim=0, correction=0).mean() * math.sqrt(z_BD.shape[1])


@torch.no_grad()
def effective_rank(z_BD: Tensor) -> Tensor:
    """Measure the participation ratio (tr C)^2 / tr(C^2) of the rows' covariance C: 1 .. D, 0 for equal rows."""
    z_BD = normalize(z_BD, dim=1)
    centred_BD = z_BD - z_BD.mean(dim=0)
    total = centred_BD.square().sum()
    gram = centred_BD.T @ centred_BD
    return torch.where(total > 0, total.square() / gram.square().sum().clamp(min=1e-30), 0.0)


def feature_monitors(rows_BD: Tensor) -> dict[str, Tensor]:
    """`spread` and `rank` of the rows of all processes."""
    rows_BD = gather_rows(rows_BD.detach())
    return {"spread": spread(rows_BD), "rank": effective_rank(rows_BD)}
