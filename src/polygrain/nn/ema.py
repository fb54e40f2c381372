"""Exponential moving average of a network's parameters, matched by name."""

import copy

import torch
from torch import Tensor, nn


def frozen_copy(module: nn.Module) -> nn.Module:
    """Make a deep copy, buffers included, whose parameters need no gradient."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def update(target: nn.Module, source: nn.Module, momentum: float) -> None:
    """Update every parameter of `target`, in place: target <- momentum * target + (1 - momentum) * source.

    Buffers do not change. Raises ValueError when `source` lacks a parameter of `target` or has another shape.
    """
    targets, sources = _pairs(target, source)
    torch._foreach_mul_(targets, momentum)
    torch._foreach_add_(targets, sources, alpha=1.0 - momentum)


@torch.no_grad()
def copy_parameters(target: nn.Module, source: nn.Module) -> None:
    """Copy every parameter of `target` from `source`, bit for bit; matching and errors as in `update`."""
    targets, sources = _pairs(target, source)
    torch._foreach_copy_(targets, sources)


def _pairs(target: nn.Module, source: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    offered = dict(source.named_parameters())
    targets: list[Tensor] = []
    sources: list[Tensor] = []
    for name, parameter in target.named_parameters():
        if name not in offered or offered[name].shape != parameter.shape:
            raise ValueError(f"the source has no parameter {name!r} of shape {list(parameter.shape)}")
        targets.append(parameter)
        sources.append(offered[name])
    return targets, sources
