"""How well a mask is found: J, the region, and F, its boundary, as DAVIS 2017 defines them (Perazzi et al. 2016).

J is the intersection over union of the pixels, 1 where both masks are empty. A pixel belongs to the boundary where the
mask changes to the pixel on the right, below, or both; in the last row and column only along them. A boundary pixel is
right when one of the other boundary lies within a distance of 0.008 of the image's diagonal, rounded up to whole
pixels. F is the harmonic mean of the shares of right pixels in both boundaries.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_dilation

Bools = npt.NDArray[np.bool_]

_DISTANCE = 0.008


def region(found: Bools, truth: Bools) -> float:
    """J of two masks [H, W]."""
    union = int((found | truth).sum())
    return int((found & truth).sum()) / union if union else 1.0


def contour(found: Bools, truth: Bools) -> float:
    """F of two masks [H, W]; 1 where neither has a boundary, 0 where one has none."""
    lines = boundary(found), boundary(truth)
    counts = [int(line.sum()) for line in lines]
    if not all(counts):
        return float(not any(counts))
    around = disk(math.ceil(_DISTANCE * math.hypot(*truth.shape)))
    near = [binary_dilation(line, around) for line in lines]
    precision, recall = (int((lines[one] & near[1 - one]).sum()) / counts[one] for one in (0, 1))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(mask: Bools) -> Bools:
    """The boundary pixels of a mask, [H, W]."""
    framed = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    others = framed[:-1, 1:], framed[1:, :-1], framed[1:, 1:]
    return np.asarray(np.logical_or.reduce([mask != other for other in others]))


def disk(radius: int) -> Bools:
    """The pixels within a distance of the middle one, [2 radius + 1, 2 radius + 1]."""
    away = np.arange(-radius, radius + 1) ** 2
    return np.asarray(away[:, None] + away <= radius**2)
