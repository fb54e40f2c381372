"""Exact nearest neighbours by cosine, in row blocks of bounded memory.

Rows are scaled to unit length in float64 and rounded to whole multiples of 2^-26. Products are then whole multiples of
2^-52, and partial sums below 2 fit the 53 bits of a float64: the matrix product is exact. So a similarity is the same
for any block size, order of summation, instruction set and device, and equal rows are exactly equal. The error against
the unrounded cosine is below 2^-26 sqrt(width), about that of a float32 product.
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

    Rows may have any length; no gradient flows. byte_budget: of one block of similarities [R, Q]; it does not change
    the result. Returns similarities float64 [M, k] and bank indices int64 [M, k]. Raises ValueError for k outside 1..Q.
    """
    if not 1 <= k <= len(bank_QD):
        raise ValueError(f"k = {k} neighbours asked of a bank of {len(bank_QD)} rows")
    rows_MD, bank_DQ = _on_grid(queries_MD), _on_grid(bank_QD).T.contiguous()
    block = max(1, byte_budget // (8 * len(bank_QD)))
    parts = [_stable_topk(rows_RD @ bank_DQ, k) for rows_RD in torch.split(rows_MD, block)]
    values_MK = torch.cat([values for values, _ in parts])
    return values_MK / _GRID**2, torch.cat([indices for _, indices in parts])


def _stable_topk(values_RQ: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`topk` whose ties go to the smaller index, both in the order and at the last place."""
    more = min(k + 1, values_RQ.shape[1])
    values_RK, indices_RK = values_RQ.topk(more, dim=1)
    cut_R = values_RK[:, k - 1] == values_RK[:, more - 1] if more > k else values_RQ.new_zeros(len(values_RQ)).bool()
    indices_RK = indices_RK[:, :k].sort(dim=1).values
    order_RK = values_RQ.gather(1, indices_RK).argsort(dim=1, descending=True, stable=True)
    indices_RK = indices_RK.gather(1, order_RK)
    if cut_R.any():  # equal values at the border: only a full sort tells which come first
        indices_RK[cut_R] = values_RQ[cut_R].argsort(dim=1, descending=True, stable=True)[:, :k]
    return values_RQ.gather(1, indices_RK), indices_RK
