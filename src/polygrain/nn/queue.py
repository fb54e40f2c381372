"""First-in-first-out queues of rows. Legend: Q rows of the queue, N rows of a push, D width."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

Wrap = Literal["ring", "cut", "double"]


class Queue(nn.Module):
    """Q rows of width D without gradient; `written` bool [Q] is False for rows that still hold the initial noise.

    size, width: Q and D. unit: the noise has unit length (pushed rows are stored as they are). wrap, at the end:

        ring    a push continues at the start, over the oldest rows
        cut     only the rows that fit are written, and the pointer returns to 0 (MNCL section 4)
        double  as `ring`, but the pointer moves twice as far, unless the push crosses the end (Mugs section 3.4)
    """

    rows: Tensor
    pointer: Tensor
    written: Tensor

    def __init__(self, size: int, width: int, *, wrap: Wrap, unit: bool) -> None:
        super().__init__()
        noise_QD = torch.randn(size, width)
        self.register_buffer("rows", normalize(noise_QD, dim=1) if unit else noise_QD)
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("written", torch.zeros(size, dtype=torch.bool))
        self.wrap = wrap

    @torch.no_grad()
    def push(self, rows_ND: Tensor) -> None:
        """Write rows (gathered from all processes by the caller). Raises ValueError for N > Q, unless wrap is `cut`."""
        size, count = len(self.rows), len(rows_ND)
        if count > size and self.wrap != "cut":
            raise ValueError(f"{count} rows do not fit a queue of {size}")
        start = int(self.pointer)
        if self.wrap == "cut":
            count = min(count, size - start)
        place_N = torch.arange(start, start + count, device=self.rows.device) % size
        # out of place, because a loss may still hold the rows for its backward pass
        self.rows = self.rows.index_copy(0, place_N, rows_ND[:count].to(self.rows.dtype))
        self.written = self.written.index_fill(0, place_N, True)
        doubled = self.wrap == "double" and start + count <= size
        self.pointer.fill_((start + count * (2 if doubled else 1)) % size)
