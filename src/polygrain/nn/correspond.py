"""Which cells of two crops of one image show the same place, computed from the crops' boxes (MGC section 5).

A crop has C x C equal cells. In units of 1/C pixel all cell borders are whole numbers, so shared areas are exact, equal
areas are exactly equal, and every device makes the same choice. No gradient.
Legend: B images, C cells along a side, N = C C cells of a view, P = N N pairs of cells, K pairs kept.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

Rounding = Literal["exact", "float32"]


class Stride(NamedTuple):
    """A stride: the coefficient times the IoU of the crops, rounded down and clipped to [least, most]."""

    coefficient: int
    least: int
    most: int


class Pairs(NamedTuple):
    """K pairs per image: cells of view 1 and of view 2, row-major int64 [B, K], and their weights, float64 [B, K].

    Cells are those of the view as the network gets it, after the flip. A slot without a pair has cells and weight 0.
    """

    cell_1: Tensor
    cell_2: Tensor
    weight: Tensor


@torch.no_grad()
def correspond(
    boxes: tuple[Tensor, Tensor],
    flips: tuple[Tensor, Tensor],
    cells: int,
    pairs: int,
    *,
    row_stride: Stride,
    column_stride: Stride,
    rounding: Rounding,
    lottery_BP: Tensor | None = None,
) -> Pairs:
    """Find the `pairs` pairs of cells with the largest weight w = shared area / (area of one + area of the other).

    boxes, flips: of views 1 and 2, int64 [B, 4] = top, left, height, width in source pixels, and bool [B].
    cells: C. row_stride, column_stride: only every s-th row (column) of view 1 is used, from the first one that
    overlaps view 2 on. rounding: see `stride`. lottery_BP: int64 [B, P], 0 .. 2^31 - 1; if given, the overlapping pairs
    with the largest of these. Ties go to the smaller pair (row, column of view 1, then of view 2, before the flip).
    """
    size_B2, other_size_B2 = (box_B4[:, 2:] for box_B4 in boxes)
    steps_B2 = torch.stack([stride(boxes, rule, rounding) for rule in (row_stride, column_stride)], dim=1)
    rows_BCC, columns_BCC = (
        _visited(_axis_overlap(boxes[0][:, axis::2], boxes[1][:, axis::2], cells), steps_B2[:, axis]) for axis in (0, 1)
    )
    area_BP = (rows_BCC[:, :, None, :, None] * columns_BCC[:, None, :, None, :]).flatten(1)
    score_BP = area_BP if lottery_BP is None else (lottery_BP + 1) * (area_BP > 0)
    pair_BK = _largest(score_BP, min(pairs, cells**4))
    area_BK = area_BP.gather(1, pair_BK)
    weight_BK = area_BK.double() / (size_B2.prod(dim=1) + other_size_B2.prod(dim=1))[:, None]
    cell_1_BK = _mirrored(pair_BK // cells**2, flips[0], cells) * (area_BK > 0)
    cell_2_BK = _mirrored(pair_BK % cells**2, flips[1], cells) * (area_BK > 0)
    missing = pairs - pair_BK.shape[1]
    return Pairs(*(pad(kept_BK, (0, missing)) for kept_BK in (cell_1_BK, cell_2_BK, weight_BK)))


def stride(boxes: tuple[Tensor, Tensor], rule: Stride, rounding: Rounding) -> Tensor:
    """The stride of each image's rows or columns, int64 [B]; rounding `exact` is in whole numbers.

    `float32` is the released expression, which may give one less than a whole product (IoU 440/880 times 12 gives 5).
    """
    (start_B2, size_B2), (other_B2, other_size_B2) = ((box_B4[:, :2], box_B4[:, 2:]) for box_B4 in boxes)
    end_B2 = torch.minimum(start_B2 + size_B2, other_B2 + other_size_B2)
    shared_B = (end_B2 - torch.maximum(start_B2, other_B2)).clamp(min=0).prod(dim=1)
    union_B = size_B2.prod(dim=1) + other_size_B2.prod(dim=1) - shared_B
    if rounding == "exact":
        product_B = rule.coefficient * shared_B // union_B
    else:
        product_B = (rule.coefficient * (shared_B.float() * union_B.float().reciprocal())).long()
    return product_B.clamp(rule.least, rule.most)


@torch.no_grad()
def repeats(found: Pairs) -> Tensor:
    """Which kept pairs have a cell of view 1 that an earlier pair of the image has too, bool [B, K]."""
    kept_BK = found.weight > 0
    same_BKK = (found.cell_1[:, :, None] == found.cell_1[:, None, :]) & kept_BK[:, None, :]
    return same_BKK.tril(diagonal=-1).any(dim=2) & kept_BK


def _axis_overlap(span_B2: Tensor, other_B2: Tensor, cells: int) -> Tensor:
    """Length shared by cell i of one span (start, length in pixels) and cell s of the other, [B, C, C] in 1/C pixel."""
    count_C = torch.arange(cells + 1, device=span_B2.device)
    edge_BC, other_edge_BC = (cells * span[:, :1] + count_C * span[:, 1:] for span in (span_B2, other_B2))
    end_BCC = torch.minimum(edge_BC[:, 1:, None], other_edge_BC[:, None, 1:])
    return (end_BCC - torch.maximum(edge_BC[:, :-1, None], other_edge_BC[:, None, :-1])).clamp(min=0)


def _visited(overlap_BCC: Tensor, stride_B: Tensor) -> Tensor:
    """The overlaps, with zeros for cells of view 1 that the stride leaves out."""
    meets_BC = (overlap_BCC > 0).any(dim=2)
    place_C = torch.arange(meets_BC.shape[1], device=meets_BC.device)
    first_B = meets_BC.to(torch.uint8).argmax(dim=1)  # the first of equals, on any device
    on_stride_BC = (place_C - first_B[:, None]) % stride_B[:, None] == 0
    return overlap_BCC * on_stride_BC[:, :, None]


def _largest(score_BP: Tensor, k: int) -> Tensor:
    """Positions of the k largest whole numbers, largest first; of equal ones the smaller position first."""
    places = score_BP.shape[1]
    place_P = torch.arange(places, device=score_BP.device)
    top_BK = (score_BP * places + (places - 1 - place_P)).topk(k, dim=1).values
    return places - 1 - top_BK % places


def _mirrored(cell_BK: Tensor, flip_B: Tensor, cells: int) -> Tensor:
    column_BK = cell_BK % cells
    return cell_BK - column_BK + torch.where(flip_B[:, None], cells - 1 - column_BK, column_BK)
