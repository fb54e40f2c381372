"""Rows of all processes as one batch, with gradient. Without a process group all this is the identity."""

from typing import Any

import torch
import torch.distributed
from torch import Tensor


def world() -> tuple[int, int]:
    """Return (rank, processes) of this process; (0, 1) when no process group exists."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rank, processes = world()
        ctx.slice = slice(rank * len(rows), (rank + 1) * len(rows))
        parts = [torch.empty_like(rows) for _ in range(processes)]
        torch.distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total[ctx.slice]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum a tensor of one shape over all processes; the backward pass sums the gradients, as in `gather_rows`."""
    if world()[1] == 1:
        return values
    total: Tensor = _Sum.apply(values)
    return total


def mean_over_processes(values: Tensor) -> Tensor:
    """Average a tensor of one shape over all processes."""
    return sum_over_processes(values) / world()[1]


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate rows [b, ...] of all processes in rank order; b must be equal everywhere.

    Backward sums the gradients of all processes. So if each computes the loss of the global batch, their average
    parameter gradient is that of one process with the whole batch.
    """
    if world()[1] == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered
