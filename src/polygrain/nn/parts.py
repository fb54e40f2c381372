"""Views cut into parts, means of sets of parts (Fast-MoCo; MNCL section 4), token means over windows.

Legend: B or b images, C channels, S side, P parts, J sets of r, E or D width; L side of a token map, N cells of it.
"""

from itertools import combinations

import torch
from torch import Tensor

from polygrain.provenance.errors import UserError


def tiles(view_bCSS: Tensor, splits: int) -> Tensor:
    """Cut views into splits^2 tiles, column by column, then by image. Raises UserError if the side does not fit."""
    images, channels, side = view_bCSS.shape[:3]
    if side % splits:
        raise UserError(f"method.values.splits {splits} does not divide a view's side of {side} px; take one that does")
    inner = side // splits
    cut = view_bCSS.reshape(images, channels, splits, inner, splits, inner)
    return cut.permute(4, 2, 0, 1, 3, 5).reshape(-1, channels, inner, inner)


def set_means(part_PbE: Tensor, size: int) -> Tensor:
    """Average every set of `size` parts, [J, b, E], sets in lexicographic order."""
    places_Jr = torch.tensor(list(combinations(range(len(part_PbE)), size)), device=part_PbE.device)
    return part_PbE[places_Jr].mean(dim=1)


def cell_means(tokens_BLD: Tensor, side: int, window: int) -> Tensor:
    """Average row-major tokens [B, L L, D] over windows of `window` x `window`: cells [B, N, D], row-major."""
    cells = side // window
    return tokens_BLD.reshape(len(tokens_BLD), cells, window, cells, window, -1).mean(dim=(2, 4)).flatten(1, 2)
