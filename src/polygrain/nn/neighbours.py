"""Exact nearest neighbours by cosine, in row blocks of bounded memory.

Rows are scaled to unit length in float64 and rounded to whole multiples of 2^-26. A product of two such
numbers is a whole multiple of 2^-52, and every partial sum of a dot product stays below 2 in absolute value,
so it fits the 53 bits of a float64: the matrix product is exact. A similarity is therefore one number,
whatever the block size, the other rows, the order of summation, the instruction set or the device; and equal
rows tie exactly. Against the unrounded cosine the error is below 2^-26 sqrt(width) (under 3e-7 for 300
columns), the size of a float32 product's own.

Legend: M queries, Q bank rows, D width, K neighbours, R rows of a block.
"""

import torch
from torch import Tensor

_GRID = 2.0**26


def _on_grid(rows: Tensor) -> Tensor:
    """Scale rows to unit length, as whole float64 numbers in units of 2^-26; rows of zeros stay zeros."""
    rows = rows.detach().to(torch.float64)
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=1e-12)
    return torch.round(rows / lengths * _GRID)


def topk_cosine(queries_MD: Tensor, bank_QD: Tensor, k: int, *, byte_budget: int) -> tuple[Tensor, Tensor]:
    """Find the k rows of the bank most similar to each query: larger cosine first, then smaller index.

    queries_MD, bank_QD: rows of any length, on one device; no gradient flows.
    byte_budget: bytes for one block of float64 similarities [R, Q]; at least one row is taken at a time. It
    changes memory and speed, never a bit of the result.

    Returns similarities float64 [M, k] and bank indices int64 [M, k]. Raises ValueError for k outside 1..Q.
    """
    if not 1 <= k <= len(bank_QD):
        raise ValueError(f"k = {k} neighbours asked of a bank of {len(bank_QD)} rows")
    rows_MD, bank_DQ = _on_grid(queries_MD), _on_grid(bank_QD).T.contiguous()
    block = max(1, byte_budget // (8 * len(bank_QD)))
    parts = [_stable_topk(rows_RD @ bank_DQ, k) for rows_RD in torch.split(rows_MD, block)]
    values_MK = torch.cat([values for values, _ in parts])
    return values_MK / _GRID**2, torch.cat([indices for _, indices in parts])


def _stable_topk(values_RQ: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Take `topk` with one outcome for ties: the smaller index, in the order and at the border."""
    more = min(k + 1, values_RQ.shape[1])
    values_RK, indices_RK = values_RQ.topk(more, dim=1)
    cut_R = values_RK[:, k - 1] == values_RK[:, more - 1] if more > k else values_RQ.new_zeros(len(values_RQ)).bool()
    indices_RK = indices_RK[:, :k].sort(dim=1).values
    order_RK = values_RQ.gather(1, indices_RK).argsort(dim=1, descending=True, stable=True)
    indices_RK = indices_RK.gather(1, order_RK)
    if cut_R.any():  # more equals than places: only a full sort knows which of them come first
        indices_RK[cut_R] = values_RQ[cut_R].argsort(dim=1, descending=True, stable=True)[:, :k]
    return values_RQ.gather(1, indices_RK), indices_RK
