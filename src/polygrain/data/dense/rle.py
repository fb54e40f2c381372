"""Run lengths of masks as COCO has them: down the columns, the first run is of zeros; plain or as text.

In the text each number, from the fourth on its difference to the one two before, is cut into groups of five bits,
lowest first; a group is a character from `0` on, with 32 added where another group follows; the sign is in bit 4 of the
last one.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from polygrain.provenance.errors import UserError

Mask = npt.NDArray[np.bool_]


def encode(mask_HW: Mask) -> list[int]:
    """Run lengths of a mask [H, W]."""
    flat = mask_HW.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    bounds = np.concatenate([[0], changes, [len(flat)]])
    runs: list[int] = np.diff(bounds).tolist()
    return [0, *runs] if len(flat) and flat[0] else runs


def decode(counts: Sequence[int] | str, height: int, width: int, where: str) -> Mask:
    """The mask [height, width] of run lengths or their text.

    Raises UserError, which begins with `where`, when they are those of another number of pixels.
    """
    runs = from_text(counts, where) if isinstance(counts, str) else list(counts)
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise UserError(f"{where}: run lengths of {sum(runs)} pixels for a mask of {height} x {width}; correct them")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order="F")


def to_text(counts: Sequence[int]) -> str:
    """Run lengths as COCO's text."""
    text = []
    for place, count in enumerate(counts):
        rest = count - counts[place - 2] if place > 2 else count
        while True:
            group, rest = rest & 31, rest >> 5
            done = rest == (-1 if group & 16 else 0)
            text.append(chr(48 + group + (0 if done else 32)))
            if done:
                break
    return "".join(text)


def from_text(text: str, where: str) -> list[int]:
    """Run lengths of COCO's text. Raises UserError, which begins with `where`, for a text that none has written."""
    counts, value, shift = list[int](), 0, 0
    for letter in text:
        group = ord(letter) - 48
        if not 0 <= group < 64:
            raise UserError(f"{where}: '{letter}' is no character of COCO's run lengths; correct it")
        value |= (group & 31) << shift
        shift += 5
        if group < 32:
            if group & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise UserError(f"{where}: COCO's run lengths end within a number; correct them")
    return counts
