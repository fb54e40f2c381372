"""Rows of all processes as one batch, with gradient. Without a process group everything here is the identity."""

from typing import Any

import torch
import torch.distributed
from torch import Tensor


def world() -> tuple[int, int]:
    """(rank, processes) of this process; (0, 1) when no process group exists."""
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


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate [b, ...] of every process to [processes * b, ...] in rank order; b must be equal everywhere.

    The backward pass sums the gradients that all processes send to a row. So when parameter gradients are then
    averaged over processes they equal the gradient of the mean of the processes' losses, in which every row counts
    both where it lives and where it was sent: if each process computes the loss of the global batch, that is
    the gradient of one process that holds the whole batch.
    """
    if world()[1] == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered
