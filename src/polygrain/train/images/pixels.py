"""Pre-training images of equal size, as pixels."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from polygrain.data.packed import Packed
from polygrain.train.images.contract import Images, Request, Setting
from polygrain.views.apply import plain_view
from polygrain.views.batch import Batch, make_batch


def images_of(data: Packed, setting: Setting, workers: int, batch_size: int) -> Images:
    """The subset of `setting`; images in memory need no workers."""
    return PixelImages(data, setting)


class PixelImages:
    """Images of equal size, the subset in memory as uint8, on the device."""

    def __init__(self, data: Packed, setting: Setting) -> None:
        self.data, self.setting = data, setting
        self.pixels = self._load(setting.positions)

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Yield the batches asked for, each made when it is needed."""
        setting = self.setting
        for request in requests:
            rows = request.rows.to(setting.device)
            yield make_batch(
                self.pixels[rows],
                setting.labels[rows],
                setting.positions[request.rows].to(setting.device),
                request.recipes,
                seed=setting.seed,
                epoch=request.epoch,
                mean=setting.mean,
                std=setting.std,
            )

    def plain(self, parts: Sequence[Tensor], *, subset: bool) -> Iterator[Tensor]:
        """Yield the whole images, resized to the square."""
        start = 0
        for part in parts:
            pixels = self.pixels[start : start + len(part)] if subset else self._load(part)
            start += len(part)
            yield plain_view(pixels, self.setting.size, self.setting.mean, self.setting.std)

    def _load(self, positions: Tensor) -> Tensor:
        return torch.from_numpy(np.array(self.data.images[positions.numpy()])).to(self.setting.device)
