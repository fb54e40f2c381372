"""Scenes: objects and distractors drawn one over another on a texture, with exact masks, boxes, parts and keypoints.

A scene is a pure function of (seed, split, number of the scene). Things are drawn in order, later ones over earlier
ones. Each is put at the first of some drawn places where it leaves enough of every earlier object visible, and stands
far enough inside; where none does, at the one that leaves most.

Legend: S side of a scene, H, W of a cut-out, K keypoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from polygrain.data.scenes.cutouts import Cutout, dimmed, keypoint_pixels, mirrored, part_labels, resized, sides
from polygrain.data.scenes.draws import Draws, below, draws, shuffled
from polygrain.data.scenes.sources import Source, Sources, distractor
from polygrain.data.scenes.textures import texture
from polygrain.nn.random import Counter

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]

PLACES = 12  # places that are drawn for a thing
_VISIBLE, _INSIDE = 350, 650  # thousandths of a thing's pixels
_MARGIN = 6  # px between the border and the centre of a thing
_LIGHT = (176, 256)  # 256ths of its own grey that an object has in a scene
_SHIFTS = 32  # px by which the canvas of a texture is larger than a scene
ABOUT = ("objects", "distractors", "texture", "shift y", "shift x", "border")
_OF_THING = ("category", "source", "extent", "mirror", "light", "figure", "period", "low", "spread", "direction")
OUTSIDE, HIDDEN, SHOWN = 0, 1, 2  # COCO's visibility of a keypoint; 0 also where the object has no pixel there


@dataclass(frozen=True)
class Setting:
    """The values of a scenes YAML that decide how a scene looks; see `polygrain.config.scenes`."""

    seed: int
    side: int
    objects: tuple[int, int]
    distractors: tuple[int, int]
    extent: tuple[int, int]
    parts: int
    textures: dict[str, int]


@dataclass(frozen=True)
class Thing:
    """What is drawn: a cut-out in its final size, and what it is."""

    cutout: Cutout
    category: int = 0
    """Number of its category; 0 for a distractor."""
    source: Source | None = None
    mirror: bool = False


@dataclass(frozen=True)
class Placed:
    """A thing with the row and column of its upper left pixel, which may lie outside of the scene."""

    thing: Thing
    top: int
    left: int


@dataclass(frozen=True)
class Painted:
    """Pixels, and whose they are."""

    image: Bytes
    """Uint8 [S, S]."""
    owner: Bytes
    """Uint8 [S, S]: 1 + the place in the drawing order of the thing that is seen; 0 for the background."""
    parts: Bytes
    """Uint8 [S, S]: part of the object that is seen, from 1; 0 for background and distractors."""


@dataclass(frozen=True)
class Scene:
    """A scene and what decided it."""

    number: int
    painted: Painted
    things: Sequence[Placed]
    texture: int


@dataclass(frozen=True)
class Annotated:
    """An object of which at least one pixel is seen."""

    number: int
    """Its number in `Painted.owner`."""
    placed: Placed
    shown: npt.NDArray[np.bool_]
    """The pixels that are seen, [S, S]."""
    box: tuple[int, int, int, int]
    """Column and row of the upper left pixel, width and height of the tight box around what is seen."""
    keypoints: Integers
    """Column, row and visibility, int64 [K, 3]; zeros where the visibility is 0."""

    @property
    def source(self) -> Source:
        """Where it comes from."""
        assert self.placed.thing.source is not None
        return self.placed.thing.source

    @property
    def whole(self) -> int:
        """Its pixels, were nothing before it and no border."""
        return int(self.placed.thing.cutout.shape.sum())


def scene(setting: Setting, sources: Sources, canvases: Sequence[Bytes], split: str, number: int) -> Scene:
    """Scene `number` of a split. canvases: the split's textures, see `textures_of`."""
    key = (setting.seed, "scene", split, number)
    (drawn,) = draws(1, ABOUT, *key)
    objects, distractors = (
        drawn.between(*setting.objects, "objects"),
        drawn.between(*setting.distractors, "distractors"),
    )
    things = drawn_things(setting, sources, split, objects, distractors, *key)
    chosen, ground = background(canvases, setting.side, drawn)
    placed = _arranged(setting.side, things, *key)
    return Scene(number, paint(ground, placed, setting.parts), placed, chosen)


def textures_of(setting: Setting, split: str) -> list[Bytes]:
    """The textures of a split, each larger than a scene."""
    side = setting.side + _SHIFTS
    return [texture(side, setting.seed, "texture", split, number) for number in range(setting.textures[split])]


def background(canvases: Sequence[Bytes], side: int, drawn: Draws) -> tuple[int, Bytes]:
    """Number of a drawn texture, and the drawn part of it, uint8 [S, S]."""
    chosen = drawn.below(len(canvases), "texture")
    top, left = (drawn.below(_SHIFTS + 1, f"shift {axis}") for axis in "yx")
    return chosen, canvases[chosen][top : top + side, left : left + side]


def drawn_things(
    setting: Setting, sources: Sources, split: str, objects: int, distractors: int, *key: Counter
) -> list[Thing]:
    """Objects of any category and distractors, in a drawn order."""
    drawn = draws(objects + distractors, _OF_THING, *key, "thing")
    things = [_object(setting, sources, split, each) for each in drawn[:objects]]
    things += [_distractor(setting, each) for each in drawn[objects:]]
    return [things[place] for place in shuffled(len(things), *key, "order")]


def _object(setting: Setting, sources: Sources, split: str, drawn: Draws) -> Thing:
    category = 1 + drawn.below(len(sources.categories), "category")
    source = sources.draw(split, category, drawn)
    whole = sources.cutout(source)
    cutout = resized(whole, *sides(whole.shape.shape, drawn.between(*setting.extent, "extent")))
    cutout = dimmed(cutout, drawn.between(*_LIGHT, "light"))
    mirror = drawn.below(2, "mirror") == 1
    return Thing(mirrored(cutout) if mirror else cutout, category, source, mirror)


def _distractor(setting: Setting, drawn: Draws) -> Thing:
    """Of half to three quarters of the size of objects."""
    least, most = setting.extent
    return Thing(distractor(drawn.between(least // 2, most * 3 // 4, "extent"), drawn))


def _arranged(side: int, things: Sequence[Thing], *key: Counter) -> list[Placed]:
    """Give each thing its place; see the head of this module."""
    slots = torch.arange(len(things))[:, None, None]
    free = side - 2 * _MARGIN
    centres = below(free, *key, "place", slots, torch.arange(PLACES)[:, None], torch.arange(2)) + _MARGIN
    owner, placed = np.zeros((side, side), np.int64), list[Placed]()
    for thing, places in zip(things, centres.tolist(), strict=True):
        height, width = thing.cutout.shape.shape
        best, most = None, -1
        for row, column in places:
            candidate = Placed(thing, row - height // 2, column - width // 2)
            score = _room(owner, placed, candidate)
            if score > most:
                best, most = candidate, score
            if score >= 1000:
                break
        assert best is not None
        placed.append(best)
        _put(owner, best, len(placed))
    return placed


def _room(owner: Integers, placed: Sequence[Placed], candidate: Placed) -> int:
    """How well a place suits, thousandths of what is asked, at most 1000.

    It is the least share of what an object must show over all objects, the candidate's share inside the scene among
    them. Distractors may be hidden.
    """
    here, there = windows(len(owner), candidate)
    inside = candidate.thing.cutout.shape[there]
    worst = int(inside.sum()) * 1000 * 1000 // (_INSIDE * int(candidate.thing.cutout.shape.sum()))
    before = np.bincount(owner.ravel(), minlength=len(placed) + 1)
    lost = np.bincount(owner[here][inside], minlength=len(placed) + 1)
    for number, other in enumerate(placed, start=1):
        if other.thing.category:
            whole = int(other.thing.cutout.shape.sum())
            worst = min(worst, int(before[number] - lost[number]) * 1000 * 1000 // (_VISIBLE * whole))
    return min(worst, 1000)


def windows(side: int, placed: Placed) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of the scene that a thing's frame covers, and the part of the frame that lies in the scene."""
    here, there = [], []
    for first, length in zip((placed.top, placed.left), placed.thing.cutout.shape.shape, strict=True):
        start, stop = min(max(first, 0), side), max(min(first + length, side), 0)
        here.append(slice(start, max(start, stop)))
        there.append(slice(start - first, max(start, stop) - first))
    return (here[0], here[1]), (there[0], there[1])


def _put(owner: Integers, placed: Placed, number: int) -> None:
    here, there = windows(len(owner), placed)
    owner[here][placed.thing.cutout.shape[there]] = number


def paint(ground: Bytes, placed: Sequence[Placed], parts: int) -> Painted:
    """Draw things over a background, in their order."""
    image, owner, part = ground.copy(), np.zeros_like(ground), np.zeros_like(ground)
    for number, each in enumerate(placed, start=1):
        thing = each.thing
        here, there = windows(len(ground), each)
        seen = thing.cutout.shape[there]
        labels = part_labels(thing.cutout.shape, parts, thing.mirror)[there] if thing.category else seen * 0
        image[here][seen], owner[here][seen], part[here][seen] = thing.cutout.grey[there][seen], number, labels[seen]
    return Painted(image, owner, part)


def keypoints(owner: Bytes, placed: Placed, number: int, cells_K2: Integers) -> Integers:
    """Column, row and visibility of an object's keypoints, int64 [K, 3]; zeros for one with visibility 0."""
    shape = placed.thing.cutout.shape
    found = []
    for row, column in keypoint_pixels(cells_K2, shape, placed.thing.mirror).tolist():
        y, x = placed.top + row, placed.left + column
        if not (shape[row, column] and 0 <= y < len(owner) and 0 <= x < len(owner)):
            found.append((0, 0, OUTSIDE))
        else:
            found.append((x, y, SHOWN if owner[y, x] == number else HIDDEN))
    return np.array(found, dtype=np.int64)


def annotated(painted: Painted, placed: Sequence[Placed], cells: Sequence[Integers]) -> list[Annotated]:
    """The objects that are seen, in their drawing order. cells: of each category, see `Sources.keypoints`."""
    found = []
    for number, each in enumerate(placed, start=1):
        shown = painted.owner == number
        if each.thing.category and shown.any():
            rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
            top, left, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]), int(columns[-1])
            box = (left, top, right - left + 1, bottom - top + 1)
            points = keypoints(painted.owner, each, number, cells[each.thing.category - 1])
            found.append(Annotated(number, each, shown, box, points))
    return found


def relabelled(painted: Painted, objects: Sequence[Annotated], labels: Sequence[int]) -> Bytes:
    """A mask, uint8 [S, S], with the label of each object where it is seen and 0 elsewhere."""
    table = np.zeros(256, np.uint8)
    table[[each.number for each in objects]] = labels
    return table[painted.owner]
