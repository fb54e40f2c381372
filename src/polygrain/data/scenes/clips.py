"""Short clips: the things of a scene on straight paths; some cross each other, the first object leaves.

Positions are whole pixels of paths in rational numbers. In the first frame every object is to be seen, as in
DAVIS-2017, whose evaluation starts from the masks of the first frame.

Legend: F frames, T things.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from polygrain.data.scenes.compose import (
    ABOUT,
    Bytes,
    Painted,
    Placed,
    Setting,
    background,
    drawn_things,
    paint,
)
from polygrain.data.scenes.draws import Draws, below, draws
from polygrain.data.scenes.sources import Sources

Integers = npt.NDArray[np.int64]

_OBJECTS = (2, 4)
_TRIES = 24  # starts that are drawn for all things together
_SEEN = 350  # thousandths of an object that the first frame should show


@dataclass(frozen=True)
class Clip:
    """A clip; its things keep their places in the drawing order, which are their tracks."""

    number: int
    frames: Sequence[Painted]
    things: Sequence[Sequence[Placed]]
    """For each frame, every thing."""
    texture: int


def clip(setting: Setting, sources: Sources, canvases: Sequence[Bytes], split: str, number: int, frames: int) -> Clip:
    """Clip `number` of a split with that many frames, at least 1."""
    key = (setting.seed, "clip", split, number)
    (drawn,) = draws(1, ABOUT, *key)
    objects, distractors = drawn.between(*_OBJECTS, "objects"), drawn.below(2, "distractors")
    things = drawn_things(setting, sources, split, objects, distractors, *key)
    chosen, ground = background(canvases, setting.side, drawn)
    margin = setting.side // 6
    tries, slots = torch.arange(_TRIES)[:, None, None], torch.arange(len(things))[:, None]
    starts = below(setting.side - 2 * margin, *key, "start", tries, slots, torch.arange(2)) + margin
    start, best, most = starts[0], list[Placed](), -1
    for start_T2 in starts:
        first = [Placed(thing, *_corner(thing.cutout.shape, at)) for thing, at in zip(things, start_T2, strict=True)]
        shown = _least_shown(ground, first, setting.parts)
        if shown > most:
            best, most, start = first, shown, start_T2
        if shown >= _SEEN:
            break
    ends = _ends(setting.side, start, [each.thing.category > 0 for each in best], drawn)
    paths = _paths(start, ends, frames)
    placed = [
        [Placed(thing, *_corner(thing.cutout.shape, at)) for thing, at in zip(things, centre_T2, strict=True)]
        for centre_T2 in paths
    ]
    return Clip(number, [paint(ground, each, setting.parts) for each in placed], placed, chosen)


def _corner(shape: npt.NDArray[np.bool_], centre_2: Integers) -> tuple[int, int]:
    height, width = shape.shape
    return int(centre_2[0]) - height // 2, int(centre_2[1]) - width // 2


def _least_shown(ground: Bytes, placed: Sequence[Placed], parts: int) -> int:
    """The smallest visible share of an object, thousandths."""
    counts = np.bincount(paint(ground, placed, parts).owner.ravel(), minlength=len(placed) + 1)
    return min(
        1000 * int(counts[number]) // int(each.thing.cutout.shape.sum())
        for number, each in enumerate(placed, start=1)
        if each.thing.category
    )


def _ends(side: int, start_T2: Integers, is_object: Sequence[bool], drawn: Draws) -> Integers:
    """Where each thing is in the last frame: the first object outside, the others where the next one began."""
    ends = start_T2.copy()
    numbers = [number for number, object_ in enumerate(is_object) if object_]
    for place, number in enumerate(numbers[1:]):
        ends[number] = start_T2[numbers[1 + (place + 1) % (len(numbers) - 1)]]
    if len(numbers) == 2:  # it has nobody to change places with: it goes to where the leaving one began
        ends[numbers[1]] = start_T2[numbers[0]]
    border = drawn.below(4, "border")
    ends[numbers[0], border // 2] = (-side // 3, side + side // 3)[border % 2]
    return ends


def _paths(start_T2: Integers, end_T2: Integers, frames: int) -> list[Integers]:
    """Centres in each frame, int64 [T, 2], rounded to whole pixels."""
    last = max(frames - 1, 1)
    return [(2 * (start_T2 * (last - frame) + end_T2 * frame) + last) // (2 * last) for frame in range(frames)]
