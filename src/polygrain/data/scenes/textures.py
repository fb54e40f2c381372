"""Background textures: grey patterns made of integers, each a pure function of (seed, split, number).

A texture is value noise on two lattices, or a wave bent by that noise. Every split has textures of its own: the split
is part of the key, so none of them occurs in two splits.

Legend: S side of the canvas.
"""

import numpy as np
import numpy.typing as npt
import torch

from polygrain.data.scenes.draws import Draws, below, draws
from polygrain.nn.random import Counter

Integers = npt.NDArray[np.int64]

_PITCHES = (4, 5, 7, 9, 12, 16)  # px between points of a lattice
_LOW, _SPREAD = (0, 39), (12, 59)  # darkest grey level, and how far above it the brightest is
_AXES = ("slope y", "slope x", "coarse y", "coarse x", "fine y", "fine x")
PURPOSES = ("kind", "period", "bend", "low", "spread", *_AXES)


def texture(side: int, *key: Counter) -> npt.NDArray[np.uint8]:
    """A texture, uint8 [S, S]. key: seed, split and number."""
    (drawn,) = draws(1, PURPOSES, *key)
    coarse, fine = (noise(side, drawn, octave, *key) for octave in ("coarse", "fine"))
    mixed = (3 * coarse + 2 * fine) // 5
    row, column = np.indices((side, side))
    period, bend = 6 + 2 * drawn.below(9, "period"), 32 + 16 * drawn.below(6, "bend")
    slope = [drawn.below(9, f"slope {axis}") - 4 for axis in "yx"]
    phase = (slope[0] * row + slope[1] * column + mixed * period // bend) % period
    wave = np.abs(2 * phase - period) * 255 // period
    pattern = mixed if drawn.below(3, "kind") == 0 else (wave + mixed) // 2
    low, spread = drawn.between(*_LOW, "low"), drawn.between(*_SPREAD, "spread")
    return (low + pattern * spread // 255).astype(np.uint8)


def noise(side: int, drawn: Draws, octave: str, *key: Counter) -> Integers:
    """Bilinear interpolation between random levels 0..255 on a lattice with its own pitch along each axis, [S, S]."""
    pitch = [_PITCHES[drawn.below(len(_PITCHES), f"{octave} {axis}")] for axis in "yx"]
    points = [side // step + 2 for step in pitch]
    lattice = below(256, *key, octave, torch.arange(points[0])[:, None], torch.arange(points[1])[None, :])
    (top, down), (left, across) = (np.divmod(np.arange(side), step) for step in pitch)
    rows = lattice[top] * (pitch[0] - down)[:, None] + lattice[top + 1] * down[:, None]
    levels = rows[:, left] * (pitch[1] - across) + rows[:, left + 1] * across
    found: Integers = levels // (pitch[0] * pitch[1])
    return found
