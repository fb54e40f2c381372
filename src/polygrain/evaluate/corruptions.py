"""Common corruptions of images, 15 kinds in 5 severities (Hendrycks and Dietterich 2019), and three shifts of place.

The severities are those that the authors' release gives for images of 32 px (CIFAR-10-C), in pixels; they are used for
28 to 64 px as they are. The draws are ours. Adapted, because the release uses other programs or data for it:

- motion blur and the streaks of snow: whole-pixel taps along the direction, not ImageMagick's code
- zoom blur and snow: the zoom is about the exact centre, the release cuts whole pixels
- elastic: the border is mirrored at the pixels for both parts of the map
- frost: the release adds photographs of frost, which we do not ship; ours is a drawn texture of bright ridges
- glass blur: a pixel takes the value of a neighbour, as in the release, whose line that would swap the two works on
  views of one array, so that the second value overwrites the first and is not moved
- grey images: the value of HSV and the luminance are the grey value itself
- rounding to 8 bits instead of cutting off

Shifts are not of the release: `position` moves by a share of the side in a drawn direction, `size` shrinks or enlarges
by a factor, `rotation` turns by degrees to a drawn side; the outermost pixels are repeated.

Legend: B images, C channels, S side.
"""

import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from polygrain.evaluate.pixels import (
    Doubles,
    Draws,
    correlate,
    disk,
    gaussian_blur,
    motion_blur,
    moved,
    plasma,
    sampled,
    zoomed,
)
from polygrain.evaluate.store import Integers

Bytes = npt.NDArray[np.uint8]
Corruption = Callable[[Doubles, int, Draws], Doubles]
"""Images float64 [B, C, S, S] in 0..1, severity 0..4, draws -> images, which may leave 0..1."""

SEVERITIES = 5
_POISSON_TAIL = 12.0  # deviations above the mean up to which counts are tabulated
_LUMINANCE = np.array([0.299, 0.587, 0.114])


def corrupt(images_BCSS: Bytes, kind: str, severity: int, seed: int, positions: Integers) -> Bytes:
    """Corrupt images uint8 [B, C, S, S] at `positions` of the data set. severity: 1..5.

    An image's result depends only on itself, its position and the seed. Different severities share their draws.
    """
    draws = Draws(seed, f"corruption {kind}", positions)
    changed = (CORRUPTIONS | SHIFTS)[kind](images_BCSS / 255.0, severity - 1, draws)
    return np.rint(changed.clip(0.0, 1.0) * 255.0).astype(np.uint8)


def _gaussian_noise(x: Doubles, severity: int, draws: Draws) -> Doubles:
    return x + (0.04, 0.06, 0.08, 0.09, 0.10)[severity] * draws.normal("noise", *x.shape[1:])


def _shot_noise(x: Doubles, severity: int, draws: Draws) -> Doubles:
    """Counts of a Poisson distribution whose mean is the pixel times c, by inverting its distribution function."""
    c = (500, 250, 100, 75, 50)[severity]
    level, drawn = np.rint(x * 255).astype(np.int64), draws.uniform("count", *x.shape[1:])
    counts = np.zeros_like(x)
    for value in np.unique(level):
        mean, here = value / 255 * c, level == value
        most = int(mean + _POISSON_TAIL * np.sqrt(mean) + _POISSON_TAIL)
        logs = np.arange(1, most + 1)
        share = np.exp(np.concatenate([[0.0], (np.log(max(mean, 1e-300)) - np.log(logs)).cumsum()]) - mean)
        counts[here] = np.searchsorted(share.cumsum(), drawn[here], side="right").clip(0, most)
    return counts / c


def _impulse_noise(x: Doubles, severity: int, draws: Draws) -> Doubles:
    drawn = draws.uniform("hit", *x.shape[1:]) / (0.01, 0.02, 0.03, 0.05, 0.07)[severity]
    return np.where(drawn < 0.5, 0.0, np.where(drawn < 1.0, 1.0, x))


def _defocus_blur(x: Doubles, severity: int, draws: Draws) -> Doubles:
    radius, softness = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))[severity]
    return correlate(x, disk(radius, softness), "reflect")


def _glass_blur(x: Doubles, severity: int, draws: Draws) -> Doubles:
    """Between two blurs each pixel shows itself or one of its three neighbours above and to the left."""
    sigma, rounds = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))[severity]
    x_BSSC, side = np.moveaxis(gaussian_blur(x, sigma), 1, -1), x.shape[-1]
    image_B11, pixel_S = np.arange(len(x))[:, None, None], np.arange(side)
    inner_SS = (pixel_S[:, None] > 1) & (pixel_S > 1)  # the release leaves the first two rows and columns
    for number in range(rounds):
        back = (draws.uniform(f"neighbour {number}", side, side, 2) < 0.5) & inner_SS[..., None]
        x_BSSC = x_BSSC[image_B11, pixel_S[:, None] - back[..., 0], pixel_S - back[..., 1]]
    return gaussian_blur(np.moveaxis(x_BSSC, -1, 1), sigma)


def _motion_blur(x: Doubles, severity: int, draws: Draws) -> Doubles:
    radius, sigma = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))[severity]
    return motion_blur(x, radius, sigma, draws.uniform("direction", low=-45.0, high=45.0))


def _zoom_blur(x: Doubles, severity: int, draws: Draws) -> Doubles:
    factors = 1.0 + 0.01 * np.arange((7, 12, 16, 21, 26)[severity])
    return (x + sum(zoomed(x, float(factor)) for factor in factors)) / (len(factors) + 1)


def _snow(x: Doubles, severity: int, draws: Draws) -> Doubles:
    mean, deviation, zoom, least, radius, sigma, kept = (
        (0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.95),
        (0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4.0, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.8),
    )[severity]
    flakes = zoomed(mean + deviation * draws.normal("flakes", 1, *x.shape[2:]), zoom)
    flakes = np.where(flakes < least, 0.0, flakes.clip(0.0, 1.0))
    flakes = motion_blur(flakes, int(radius), sigma, draws.uniform("direction", low=-135.0, high=-45.0))
    grey = x if x.shape[1] == 1 else np.tensordot(x, _LUMINANCE, axes=(1, 0))[:, None]
    return kept * x + (1 - kept) * np.maximum(x, 1.5 * grey + 0.5) + flakes + flakes[..., ::-1, ::-1]


def _frost(x: Doubles, severity: int, draws: Draws) -> Doubles:
    kept, added = ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[severity]
    ridges = 1.0 - np.abs(2.0 * plasma(x.shape[-1], 1.5, draws) - 1.0)  # bright where the heights are medium
    return kept * x + added * ridges[:, None]


def _fog(x: Doubles, severity: int, draws: Draws) -> Doubles:
    added, decay = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))[severity]
    most: Doubles = x.max(axis=(1, 2, 3), keepdims=True)
    return (x + added * plasma(x.shape[-1], decay, draws)[:, None]) * most / (most + added)


def _brightness(x: Doubles, severity: int, draws: Draws) -> Doubles:
    """The value of HSV grows, hue and saturation stay: all channels are scaled alike."""
    value: Doubles = x.max(axis=1, keepdims=True)
    more = np.minimum(value + (0.05, 0.1, 0.15, 0.2, 0.3)[severity], 1.0)
    return np.where(value > 0, x * more / np.where(value > 0, value, 1.0), more)


def _contrast(x: Doubles, severity: int, draws: Draws) -> Doubles:
    mean: Doubles = x.mean(axis=(2, 3), keepdims=True)
    return (x - mean) * (0.75, 0.5, 0.4, 0.3, 0.15)[severity] + mean


def _elastic(x: Doubles, severity: int, draws: Draws) -> Doubles:
    """A random affine map of three points, then a smooth random displacement of every pixel."""
    side, count = x.shape[-1], len(x)
    strength, sigma, jitter = (
        side * np.array([(0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)])
    )[severity]
    reach = side // 3
    corners = np.array([(reach, reach), (reach, -reach), (-reach, -reach)], dtype=np.float64)
    goals_B32 = corners + draws.uniform("corners", 3, 2, low=-jitter, high=jitter)
    # the map from where a point goes back to where it came from
    ones_B31 = np.ones((count, 3, 1))
    back_B32 = np.linalg.solve(np.concatenate([goals_B32, ones_B31], axis=2), np.broadcast_to(corners, (count, 3, 2)))
    x = moved(x, np.swapaxes(back_B32[:, :2], 1, 2), back_B32[:, 2], "reflect")
    if strength == 0:
        return x
    field_B2SS = draws.uniform("field", 2, side, side, low=-1.0, high=1.0)
    field_B2SS = strength * gaussian_blur(field_B2SS, sigma, truncate=3.0, border="symmetric")
    row_SS, column_SS = np.indices((side, side))
    return sampled(x, row_SS + field_B2SS[:, 0], column_SS + field_B2SS[:, 1], "reflect")


def _pixelate(x: Doubles, severity: int, draws: Draws) -> Doubles:
    side = x.shape[-1]
    small = int(side * (0.95, 0.9, 0.85, 0.75, 0.65)[severity])

    def change(image: Image.Image) -> Image.Image:
        return image.resize((small, small), Image.Resampling.BOX).resize((side, side), Image.Resampling.BOX)

    return _by_pillow(x, change)


def _jpeg(x: Doubles, severity: int, draws: Draws) -> Doubles:
    def change(image: Image.Image) -> Image.Image:
        stored = io.BytesIO()
        image.save(stored, "JPEG", quality=(80, 65, 58, 50, 40)[severity])
        return Image.open(stored)

    return _by_pillow(x, change)


def _by_pillow(x: Doubles, change: Callable[[Image.Image], Image.Image]) -> Doubles:
    """Change images one by one, as 8-bit grey or colour."""
    changed = np.empty_like(x)
    for place, image_CSS in enumerate(np.rint(x * 255).astype(np.uint8)):
        grey = len(image_CSS) == 1
        image = Image.fromarray(image_CSS[0] if grey else np.ascontiguousarray(np.moveaxis(image_CSS, 0, -1)))
        found = np.asarray(change(image), dtype=np.float64) / 255.0
        changed[place] = found[None] if grey else np.moveaxis(found, -1, 0)
    return changed


def _position(x: Doubles, severity: int, draws: Draws) -> Doubles:
    turn_B = draws.uniform("direction", high=2.0 * np.pi)
    length = (0.05, 0.1, 0.15, 0.2, 0.25)[severity] * x.shape[-1]
    return moved(x, np.tile(np.eye(2), (len(x), 1, 1)), length * np.stack([np.sin(turn_B), np.cos(turn_B)], 1), "edge")


def _size(x: Doubles, severity: int, draws: Draws) -> Doubles:
    factor = (1.1, 1.2, 1.35, 1.5, 1.75)[severity]
    factor_B = np.where(draws.uniform("side") < 0.5, factor, 1.0 / factor)
    return moved(x, factor_B[:, None, None] * np.eye(2), np.zeros((len(x), 2)), "edge")


def _rotation(x: Doubles, severity: int, draws: Draws) -> Doubles:
    turn_B = np.deg2rad((10, 20, 30, 45, 60)[severity]) * np.where(draws.uniform("side") < 0.5, 1.0, -1.0)
    cosine, sine = np.cos(turn_B), np.sin(turn_B)
    matrix_B22 = np.stack([np.stack([cosine, -sine], 1), np.stack([sine, cosine], 1)], 1)
    return moved(x, matrix_B22, np.zeros((len(x), 2)), "edge")


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian-noise": _gaussian_noise, "shot-noise": _shot_noise, "impulse-noise": _impulse_noise,
    "defocus-blur": _defocus_blur, "glass-blur": _glass_blur, "motion-blur": _motion_blur, "zoom-blur": _zoom_blur,
    "snow": _snow, "frost": _frost, "fog": _fog, "brightness": _brightness, "contrast": _contrast,
    "elastic": _elastic, "pixelate": _pixelate, "jpeg": _jpeg,
}  # fmt: skip
SHIFTS: dict[str, Corruption] = {"position": _position, "size": _size, "rotation": _rotation}
