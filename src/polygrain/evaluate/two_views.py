"""Two views of each image, with their geometry, through the frozen network. Legend: B images of a batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import torch

from polygrain.backbones.contract import Encoded, split
from polygrain.data.load import format_of
from polygrain.evaluate.given import Encoder
from polygrain.evaluate.store import Integers
from polygrain.train.images.contract import Images, Request, Setting
from polygrain.views.batch import Geometry
from polygrain.views.recipe import Recipe


@dataclass(frozen=True)
class Pair:
    """Positions of images in the packed data set, int64 [B], and their two encoded views with the geometry of each."""

    positions: Integers
    encoded: tuple[Encoded, Encoded]
    geometry: tuple[Geometry, Geometry]


@torch.no_grad()
def pairs(
    encoder: Encoder, name: str, positions: Integers, recipes: tuple[Recipe, Recipe], seed: int
) -> Iterator[Pair]:
    """Yield the views of the images at `positions`, batch by batch; a view depends on seed, recipe and position only.

    Every forward pass has the same size (the last batch is filled with copies of its last image), so the features of an
    image depend only on the image and its place in `positions`, not on other images.
    """
    data, device = encoder.datasets[name], torch.device(encoder.device)
    labels_N = torch.from_numpy(encoder.labels(name, positions)).to(device)
    setting = Setting(
        torch.from_numpy(positions), labels_N, seed, encoder.size, list(encoder.mean), list(encoder.std), device
    )
    made_by = import_module(f"polygrain.train.images.{format_of(data)}")
    images: Images = made_by.images_of(data, setting, encoder.workers, encoder.batch)
    starts = range(0, len(positions), encoder.batch)
    filled = [torch.arange(first, first + encoder.batch).clamp(max=len(positions) - 1) for first in starts]
    batches = images.batches(Request(rows, 0, recipes) for rows in filled)
    for first, batch in zip(starts, batches, strict=True):
        kept = positions[first : first + encoder.batch]
        lengths = [len(kept), encoder.batch - len(kept)]
        one, other = (split(encoder.network(view), lengths)[0] for view in batch.views)
        here, there = (_front(geometry, len(kept)) for geometry in batch.geometry)
        yield Pair(np.asarray(kept), (one, other), (here, there))


def _front(geometry: Geometry, count: int) -> Geometry:
    source = geometry.source[:count] if isinstance(geometry.source, torch.Tensor) else geometry.source
    return Geometry(geometry.box[:count], geometry.flip[:count], source)
