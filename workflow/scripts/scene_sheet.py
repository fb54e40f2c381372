"""A contact sheet of scenes and clips, read through the same readers as every evaluation.

24 test scenes, each plain and below it with masks, boxes and keypoints (filled where shown, hollow where hidden), and
three clips, every second frame plain and with its masks.

    python workflow/scripts/scene_sheet.py data/scenes src/polygrain/data/scenes/sheet.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from polygrain.data.dense.coco import Coco, Picture
from polygrain.data.dense.davis import Davis
from polygrain.data.dense.tree import Tree
from polygrain.data.scenes.png import voc_palette

Pixels = npt.NDArray[np.uint8]

_SCALE, _ACROSS, _SCENES, _CLIPS, _EVERY = 2, 8, 24, 3, 2
_COLOURS = 128  # of the file, which keeps it small
_POINT = (0, 255, 255)


def _large(pixels: Pixels) -> Pixels:
    return np.kron(pixels, np.ones((_SCALE, _SCALE, 1), np.uint8))


def _grey(image_CHW: Pixels) -> Pixels:
    return np.repeat(image_CHW[0][:, :, None], 3, axis=2)


def _tinted(image_CHW: Pixels, numbers_HW: npt.NDArray[np.int64]) -> Pixels:
    """An image with each object in its colour of the VOC palette, half transparent."""
    grey, colours = _grey(image_CHW).astype(np.int64), voc_palette(256)[numbers_HW].astype(np.int64)
    mixed: Pixels = np.where(numbers_HW[:, :, None] > 0, (grey + colours) // 2, grey).astype(np.uint8)
    return mixed


def _scene(coco: Coco, picture: Picture) -> Pixels:
    image = coco.image(picture)
    numbers = np.zeros(image.shape[1:], np.int64)
    for place, instance in enumerate(picture.instances, start=1):
        numbers[coco.mask(picture, instance)] = place
    below = Image.fromarray(_large(_tinted(image, numbers)))
    draw = ImageDraw.Draw(below)
    for place, instance in enumerate(picture.instances, start=1):
        colour = tuple(voc_palette(256)[place].tolist())
        left, top, width, height = (round(_SCALE * value) for value in instance.box)
        draw.rectangle((left, top, left + width - 1, top + height - 1), outline=colour)
        for x, y, seen in instance.keypoints.tolist() if instance.keypoints is not None else ():
            if seen:
                corner = (_SCALE * x - 1, _SCALE * y - 1, _SCALE * x + 2, _SCALE * y + 2)
                draw.rectangle(corner, fill=_POINT if seen == 2 else None, outline=_POINT)
    return np.concatenate([_large(_grey(image)), np.asarray(below)])


def _clip(davis: Davis, place: int) -> Pixels:
    sequence = davis.sequences[place]
    frames = sequence.frames[::_EVERY][:_ACROSS]
    rows = [
        [_large(_grey(davis.image(sequence, frame))) for frame in frames],
        [_large(_tinted(davis.image(sequence, frame), davis.mask(sequence, frame))) for frame in frames],
    ]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def sheet(folder: Path) -> Image.Image:
    """The contact sheet of the scenes in a folder that `polygrain compose` wrote."""
    coco = Coco(Tree(folder / "coco.zip"), "annotations/instances_test2017.json", "test2017")
    davis = Davis(Tree(folder / "davis.zip"), "test-dev")
    cells = [_scene(coco, picture) for picture in coco.pictures[:_SCENES]]
    rows: Sequence[Pixels] = [
        np.concatenate(cells[start : start + _ACROSS], axis=1) for start in range(0, len(cells), _ACROSS)
    ]
    clips = [_clip(davis, place) for place in range(min(_CLIPS, len(davis.sequences)))]
    return Image.fromarray(np.concatenate([*rows, *clips])).quantize(_COLOURS)


def main() -> None:
    """Write the sheet."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("folder", type=Path)
    options.add_argument("target", type=Path)
    given = options.parse_args()
    sheet(given.folder).save(given.target, optimize=True)


if __name__ == "__main__":
    main()
