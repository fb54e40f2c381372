"""Views of encoded images: pure functions of the image and of what was drawn for it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from polygrain.data.encoded import CHANNELS, EncodedData
from polygrain.views.crop import central_view, cut
from polygrain.views.draw import RandAugmentDraw
from polygrain.views.load import load_randaugment


@dataclass(frozen=True)
class Cut:
    """One view of each image of a job: `box` int64 [B, 4] and `flip` bool [B]; without boxes the evaluation view.

    `randaugment`: the arrays [B, K] of a RandAugmentDraw, done before; `fill`: per channel, for outside pixels.
    """

    size: int
    box: np.ndarray | None = None
    flip: np.ndarray | None = None
    resize: int | None = None
    interpolation: str = "bilinear"
    randaugment: tuple[np.ndarray, ...] = ()
    fill: tuple[int, ...] = ()

    def part(self, rows: slice) -> "Cut":
        """The view of some images of the job."""
        box, flip = (None if values is None else values[rows] for values in (self.box, self.flip))
        return replace(self, box=box, flip=flip, randaugment=tuple(values[rows] for values in self.randaugment))


@dataclass(frozen=True)
class CutJob:
    """The views to cut out of the images at `positions` of the data set, int64 [B]."""

    positions: np.ndarray
    cuts: tuple[Cut, ...]

    def part(self, start: int, stop: int) -> "CutJob":
        """The images from `start` to `stop`."""
        rows = slice(start, stop)
        return CutJob(self.positions[rows], tuple(one.part(rows) for one in self.cuts))

    @property
    def image_bytes(self) -> int:
        """Bytes of all views of one image."""
        return sum(CHANNELS * one.size**2 for one in self.cuts)


def cut_job(data: EncodedData, job: CutJob, views: Sequence[Tensor]) -> None:
    """Fill `views`, uint8 [B, 3, size, size] each. Raises UserError on a damaged image."""
    for row, position in enumerate(job.positions.tolist()):
        image = data.decode(position)
        for one, view in zip(job.cuts, views, strict=True):
            if one.box is None or one.flip is None:
                view[row] = central_view(image, one.size, one.resize)
            else:
                flip = bool(one.flip[row])
                whole, box = _changed(image, one, row, flip), one.box[row].tolist()
                view[row] = cut(whole, box, flip, one.size, one.interpolation)


def _changed(image_CHW: Tensor, one: Cut, row: int, flip: bool) -> Tensor:
    """The whole image after RandAugment's operations, if there are any."""
    if not one.randaugment or (one.randaugment[0][row] < 0).all():
        return image_CHW
    drawn = RandAugmentDraw(*(torch.from_numpy(values[row : row + 1]) for values in one.randaugment))
    return load_randaugment(drawn)(image_CHW[None], drawn, torch.tensor([flip]), one.fill)[0]
