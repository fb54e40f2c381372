"""Images of equal size, as stored."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from polygrain.data.packed import Packed


def images_of(
    data: Packed, parts: Sequence[np.ndarray], size: int, resize: int | None, workers: int
) -> Iterator[Tensor]:
    """Yield the images at each part's positions, uint8 [B, C, H, W]; the other values are for encoded images."""
    for part in parts:
        yield torch.from_numpy(np.array(data.images[part]))
