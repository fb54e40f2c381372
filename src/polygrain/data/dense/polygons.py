"""Masks of polygons: the pixels whose centres lie inside, by the even-odd rule.

COCO's own library samples the outline five times finer and rounds, so its masks may differ along the border.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from polygrain.provenance.errors import UserError


def polygon_mask(polygons: Sequence[Sequence[float]], height: int, width: int, where: str) -> npt.NDArray[np.bool_]:
    """The union of polygons [x1, y1, x2, y2, ...], px from the upper left corner, as a mask [height, width].

    No polygon gives an empty mask. Raises UserError, which begins with `where`, for one of fewer than three corners.
    """
    mask = np.zeros((height, width), np.bool_)
    y, x = np.arange(height)[:, None] + 0.5, np.arange(width)[None, :] + 0.5
    for polygon in polygons:
        corners = np.asarray(polygon, dtype=np.float64)
        if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2:
            raise UserError(f"{where}: a polygon needs the x and y of at least three corners; correct it")
        corners = corners.reshape(-1, 2)
        inside = np.zeros_like(mask)
        for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            if y1 != y2:
                crossing = x1 + (y - y1) * (x2 - x1) / (y2 - y1)
                inside ^= ((y1 <= y) != (y2 <= y)) & (x < crossing)
        mask |= inside
    return mask
