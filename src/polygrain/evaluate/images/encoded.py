"""The evaluation view of encoded images."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from polygrain.data.encoded import EncodedData
from polygrain.train.cut import Cut, CutJob
from polygrain.train.loader import Loader


def images_of(
    data: EncodedData, parts: Sequence[np.ndarray], size: int, resize: int | None, workers: int
) -> Iterator[Tensor]:
    """Yield the views at each part's positions, uint8 [B, 3, size, size]; `workers` processes decode ahead of time."""
    jobs = (CutJob(part, (Cut(size, resize=resize),)) for part in parts)
    for (views,) in Loader(data, workers, max(map(len, parts), default=1)).stream(jobs):
        yield views
