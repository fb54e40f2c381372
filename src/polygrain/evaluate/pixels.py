"""Blurs, moves and drawn textures of batches of images in numpy, of which corruptions are made.

Legend: B images, C channels, S side (images are square), P = S S pixels, M side of a map, a power of two, T taps.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polygrain.evaluate.store import Integers
from polygrain.nn.random_numpy import normal, uniform

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Draws:
    """Random numbers of each image of a batch: pure functions of the seed, the purpose and the image's position."""

    seed: int
    purpose: str
    positions: Integers
    """Int64 [B], in the packed data set."""

    def uniform(self, what: str, *shape: int, low: float = 0.0, high: float = 1.0) -> Doubles:
        """Float64 [B, *shape], uniform on [low, high)."""
        rows = self.positions.reshape(-1, *(1 for _ in shape))
        return low + (high - low) * uniform(self.seed, self.purpose, what, rows, _places(shape))

    def normal(self, what: str, *shape: int) -> Doubles:
        """Float64 [B, *shape], from the standard normal distribution."""
        rows = self.positions.reshape(-1, *(1 for _ in shape))
        return normal(self.seed, self.purpose, what, rows, _places(shape))


def _places(shape: tuple[int, ...]) -> Integers:
    return np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)


def gaussian_blur(x_BCSS: Doubles, sigma: float, *, truncate: float = 4.0, border: str = "edge") -> Doubles:
    """Blur the last two axes; the kernel ends at `truncate` sigma, rounded. border: a padding mode of numpy."""
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return x_BCSS
    taps_T = np.exp(-0.5 * np.square(np.arange(-radius, radius + 1) / sigma))
    return correlate(correlate(x_BCSS, (taps_T / taps_T.sum())[:, None], border), (taps_T / taps_T.sum())[None], border)


def correlate(x_BCSS: Doubles, kernel: Doubles, border: str) -> Doubles:
    """The sum of shifted images, each times its entry of a kernel with odd sides."""
    up, left = kernel.shape[0] // 2, kernel.shape[1] // 2
    pads = [(0, 0)] * (x_BCSS.ndim - 2) + [(up, up), (left, left)]
    wide = np.pad(x_BCSS, pads, mode=border)  # type: ignore[call-overload]  # the mode is one of several literals
    rows, columns = x_BCSS.shape[-2:]
    total = np.zeros_like(x_BCSS)
    for row, column in zip(*np.nonzero(kernel), strict=True):
        total += kernel[row, column] * wide[..., row : row + rows, column : column + columns]
    return total


def disk(radius: float, softness: float) -> Doubles:
    """A disk of sum 1 on whole pixels, whose edge is softened by a Gaussian of 3 x 3 taps with sigma `softness`."""
    reach = int(np.ceil(radius)) + 1
    axis = np.arange(-reach, reach + 1)
    hard = (np.square(axis[:, None]) + np.square(axis) <= radius**2).astype(np.float64)
    taps = np.exp(-0.5 * np.square(np.arange(-1, 2) / softness))
    return correlate(hard / hard.sum(), np.outer(taps, taps) / taps.sum() ** 2, "constant")


def motion_blur(x_BCSS: Doubles, radius: int, sigma: float, degrees_B: Doubles) -> Doubles:
    """Smear each image in its direction: half a Gaussian of 2 radius + 1 taps at whole pixels, the border repeated."""
    count, channels, side = x_BCSS.shape[:3]
    taps_T = np.exp(-0.5 * np.square(np.arange(2 * radius + 1) / sigma))
    turn_B = np.deg2rad(degrees_B)
    image_B11, pixel_S = np.arange(count)[:, None, None], np.arange(side)
    total_BSSC = np.zeros((count, side, side, channels))
    x_BSSC = np.moveaxis(x_BCSS, 1, -1)
    for place, tap in enumerate(taps_T / taps_T.sum()):
        down_B, right_B = (np.rint(place * part).astype(np.int64) for part in (np.sin(turn_B), np.cos(turn_B)))
        row_BS1 = (pixel_S + down_B[:, None]).clip(0, side - 1)[:, :, None]
        column_B1S = (pixel_S + right_B[:, None]).clip(0, side - 1)[:, None, :]
        total_BSSC += tap * x_BSSC[image_B11, row_BS1, column_B1S]
    return np.moveaxis(total_BSSC, -1, 1)


def zoomed(x_BCSS: Doubles, factor: float) -> Doubles:
    """Enlarge images about their centre, cut to their size."""
    side = x_BCSS.shape[-1]
    centre = (side - 1) / 2
    place_S = (np.arange(side) - centre) / factor + centre
    low_S = np.floor(place_S).astype(np.int64).clip(0, side - 2)
    matrix_SS = np.zeros((side, side))
    matrix_SS[np.arange(side), low_S] = 1 - (place_S - low_S)
    matrix_SS[np.arange(side), low_S + 1] += place_S - low_S
    return matrix_SS @ x_BCSS @ matrix_SS.T


def sampled(x_BCSS: Doubles, row_BSS: Doubles, column_BSS: Doubles, border: str) -> Doubles:
    """Values between pixels, bilinear: pixel (i, j) shows the image's place (row, column)[i, j].

    border: `edge` repeats the outermost pixels, `reflect` mirrors the image at them.
    """
    side = x_BCSS.shape[-1]
    image_B11, x_BSSC = np.arange(len(x_BCSS))[:, None, None], np.moveaxis(x_BCSS, 1, -1)

    def inside(place: Integers) -> Integers:
        if border == "edge":
            return place.clip(0, side - 1)
        folded = np.abs(place) % (2 * side - 2)
        return np.asarray(np.minimum(folded, 2 * side - 2 - folded))

    low_row, low_column = (np.floor(place).astype(np.int64) for place in (row_BSS, column_BSS))
    total_BSSC = np.zeros_like(x_BSSC)
    for down in (0, 1):
        for right in (0, 1):
            weight = (1 - np.abs(row_BSS - low_row - down)) * (1 - np.abs(column_BSS - low_column - right))
            total_BSSC += weight[..., None] * x_BSSC[image_B11, inside(low_row + down), inside(low_column + right)]
    return np.moveaxis(total_BSSC, -1, 1)


def moved(x_BCSS: Doubles, matrix_B22: Doubles, offset_B2: Doubles, border: str) -> Doubles:
    """Affine map about the centre: pixel p (row, column) shows the place `matrix (p - centre) + centre + offset`."""
    side = x_BCSS.shape[-1]
    centre = (side - 1) / 2
    axis = np.arange(side) - centre
    row_SS, column_SS = np.meshgrid(axis, axis, indexing="ij")
    along_B2SS = matrix_B22[:, :, 0, None, None] * row_SS + matrix_B22[:, :, 1, None, None] * column_SS
    place_B2SS = along_B2SS + centre + offset_B2[:, :, None, None]
    return sampled(x_BCSS, place_B2SS[:, 0], place_B2SS[:, 1], border)


def plasma(side: int, decay: float, draws: Draws) -> Doubles:
    """Cloud-like textures, float64 [B, S, S] in 0..1, by the diamond-square method on a torus.

    Each round halves the step and fills the middle of squares, then of their edges, with the mean of four neighbours
    and a draw, whose range is divided by `decay` squared from round to round.
    """
    size = 1 << (side - 1).bit_length()
    heights_BMM = np.zeros((len(draws.positions), size, size))
    step, reach = size, 1.0
    while step >= 2:
        half = step // 2
        corner = heights_BMM[:, ::step, ::step]
        near = corner + np.roll(corner, -1, axis=1)
        shape = near.shape[1:]
        middle = (near + np.roll(near, -1, axis=2)) / 4
        middle += reach * draws.uniform(f"middle {step}", *shape, low=-1.0)
        heights_BMM[:, half::step, half::step] = middle
        above, beside = middle + np.roll(middle, 1, axis=1), middle + np.roll(middle, 1, axis=2)
        for name, total, row, column in (
            ("top", above + corner + np.roll(corner, -1, axis=2), 0, half),
            ("side", beside + corner + np.roll(corner, -1, axis=1), half, 0),
        ):
            drawn = reach * draws.uniform(f"{name} {step}", *shape, low=-1.0)
            heights_BMM[:, row::step, column::step] = total / 4 + drawn
        step, reach = half, reach / decay**2
    heights_BMM -= heights_BMM.min(axis=(1, 2), keepdims=True)
    heights_BMM /= heights_BMM.max(axis=(1, 2), keepdims=True)
    return heights_BMM[:, :side, :side]
