"""Gradient clipping in place: a gradient is multiplied by min(1, maximum / (norm + 1e-6))."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_FLOOR = 1e-6


def clip_global(parameters: Iterable[nn.Parameter], maximum: float) -> Tensor:
    """Scale all gradients by one factor so that their joint 2-norm is at most `maximum` (inf: as they are) (MNCL).

    Returns the norm before clipping, a scalar (0 when no parameter has a gradient).
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm: Tensor = torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(gradients))))
    torch._foreach_mul_(gradients, (maximum / (norm + _FLOOR)).clamp(max=1.0))
    return norm


def clip_each(parameters: Iterable[nn.Parameter], maximum: float) -> Tensor:
    """Scale each tensor's gradient so that its own 2-norm is at most `maximum` (MGC, Mugs); return as `clip_global`."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norms = torch.stack(list(torch._foreach_norm(gradients)))
    factors = (maximum / (norms + _FLOOR)).clamp(max=1.0)
    torch._foreach_mul_(gradients, list(factors.unbind()))
    norm: Tensor = torch.linalg.vector_norm(norms)
    return norm
