"""Video object segmentation without training: the masks of a clip's first frame are passed on by similar cells.

As DINO and Mugs evaluate (specification of Mugs, 8.3). Each cell of a frame has a share of every object and of the
background. The sources of a cell are the cells of the first frame and of the last `frames` frames before its own, at
most `radius` rows and columns away. The k most similar ones, by cosine, give it the mean of their shares, weighted by
exp(cos / temperature). The first frame's shares are those of the pixels that a cell covers. For judging, shares are
upsampled bilinearly to the pixels, those of each object are scaled to 0..1 over the frame, and the largest wins.
Frames are shown enlarged by a whole factor (each pixel repeated), which gives small frames a finer map.

`j`, `f`, `jf`: J, F (`scenes.regions`) and their mean, over the frames of an object, the objects of a clip, and clips.
As in DAVIS 2017 the first frame, whose masks are given, and the last do not count. `jf-objects` is the mean over all
objects of all clips, as DAVIS prints it. `still` is `jf` of the first masks that do not move: compare with it. radius
and temperature are selected by `jf` on validation; test is used once.

Similarities are exact (`sphere`). Ties have one outcome: equal similarities go in the order of the sources (the first
frame, then from old to new, row by row), equal shares to the smaller object, equal validation scores to the smaller
radius, then the smaller temperature. A clip without objects is no example.

Legend: F frames, N cells of a frame, M cells of the frames before it that count, D width, K neighbours, O objects and
the background, h, w the map, S side of a frame.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from polygrain.data.dense.davis import Davis
from polygrain.data.dense.davis import Sequence as Film
from polygrain.evaluate.result import ACCURACY, FRACTION, Examples, Measure, Number, Result
from polygrain.evaluate.scenes.given import SceneEncoder
from polygrain.evaluate.scenes.iou import Floats, Integers, shares
from polygrain.evaluate.scenes.regions import contour, region
from polygrain.evaluate.sphere import cosines, on_grid
from polygrain.provenance.errors import UserError

_NAME = "scene-propagation"
STILL = Measure(FRACTION, "none")
_NEAREST = 2.0**32  # weights are whole, so the last bit of exp, which is the machine's, decides none


@dataclass(frozen=True)
class Clip:
    """A clip with objects."""

    number: int
    """Its place in the list."""
    maps: Tensor
    """Float32 [F, D, h, w]."""
    first: Integers
    """The object at each pixel of the first frame, 0 for none, [S, S]."""
    judged: dict[int, Integers]
    """The same of the frames that are judged, by their place in the clip."""
    objects: tuple[int, ...]


class Neighbours(NamedTuple):
    """The sources of a frame's cells: cosines [N, K], minus infinity for none, and places in the shares [F * N]."""

    cosines: Floats
    places: Integers


def evaluate(
    encoder: SceneEncoder, *, enlarge: int, frames: int, radius: list[int], k: int, temperature: list[float]
) -> Result:
    """Propagate the masks of the test clips.

    enlarge: factor by which frames are shown. frames: last ones that are sources beside the first. radius: in cells, to
    select from. k: sources of a cell. temperature: to select from. Raises UserError for values out of range, frames
    that are no squares of one size or that the map does not divide, a clip without a frame between its first and its
    last that has a mask, and a split without objects.
    """
    if min(enlarge, frames, k) < 1 or not radius or min(radius) < 0 or not temperature or not min(temperature) > 0:
        raise UserError(
            f"{_NAME}: enlarge ({enlarge}), frames ({frames}) and k ({k}) must be positive, radius ({radius}) at least"
            f" one number, none negative, temperature ({temperature}) at least one, all positive"
        )
    choices = list(product(sorted(set(radius)), sorted(set(temperature))))
    held = clips_of(encoder, "validation", enlarge)
    judged = {
        (reach, warmth): np.mean([scores.mean() for scores in part])
        for reach in sorted(set(radius))
        for warmth, part in _judged(held, frames, reach, k, sorted(set(temperature))).items()
    }
    best = max(choices, key=lambda choice: (judged[choice], -choices.index(choice)))
    tested = clips_of(encoder, "test", enlarge)
    (found,) = _judged(tested, frames, best[0], k, [best[1]]).values()
    chosen = {"radius": best[0], "temperature": best[1], "validation_jf": float(judged[best]), "clips": len(held)}
    return _result(encoder.scenes.name, tested, found, chosen)


def clips_of(encoder: SceneEncoder, split: str, enlarge: int) -> list[Clip]:
    """The clips of a split that have objects, with their frozen maps. Raises UserError as `evaluate` does."""
    davis = encoder.scenes.clips(split)
    films = [(number, film) for number, film in enumerate(davis.sequences) if film.objects and davis.propagated(film)]
    if not films:
        raise UserError(f"{_NAME}: no clip of the {split} split holds an object; there is nothing to propagate")
    images = [davis.image(film, frame) for _, film in films for frame in film.frames]
    if len({image.shape for image in images}) > 1 or images[0].shape[1] != images[0].shape[2]:
        raise UserError(f"{_NAME}: the frames of the {split} split must be squares of one size")
    maps_FDhw = torch.cat(list(_encoded(encoder, images, enlarge)))
    if not bool(torch.isfinite(maps_FDhw).all()):
        raise UserError(f"{_NAME}: a map of the {split} split is not finite, the encoder has diverged")
    if images[0].shape[1] % maps_FDhw.shape[2] or maps_FDhw.shape[2] != maps_FDhw.shape[3]:
        raise UserError(
            f"{_NAME}: a map of {maps_FDhw.shape[2]} x {maps_FDhw.shape[3]} cells does not divide frames of"
            f" {images[0].shape[1]} px; change enlarge"
        )
    parts = torch.split(maps_FDhw, [len(film.frames) for _, film in films])
    return [_clip(davis, number, film, part) for (number, film), part in zip(films, parts, strict=True)]


def _clip(davis: Davis, number: int, film: Film, maps_FDhw: Tensor) -> Clip:
    inner = [(place, frame) for place, frame in enumerate(film.frames[1:-1], start=1) if frame in film.masks]
    if not inner:
        raise UserError(
            f"{_NAME}: clip {film.name} has no mask of a frame between its first and its last; leave it out"
        )
    judged = {place: davis.mask(film, frame) for place, frame in inner}
    return Clip(number, maps_FDhw, davis.mask(film, film.frames[0]), judged, film.objects)


def _encoded(encoder: SceneEncoder, images: Sequence[np.ndarray], enlarge: int) -> Iterator[Tensor]:
    """Maps of frames, batch by batch: across clips, because every forward pass has one size."""
    for start in range(0, len(images), encoder.batch):
        pixels = np.stack(images[start : start + encoder.batch])
        yield encoder.encoded_pixels(pixels.repeat(enlarge, axis=2).repeat(enlarge, axis=3)).map.float().cpu()


def _judged(
    clips: Sequence[Clip], frames: int, radius: int, k: int, temperatures: Sequence[float]
) -> dict[float, list[Floats]]:
    """For each temperature and clip J and F of its objects, float64 [objects, 2]."""
    found: dict[float, list[Floats]] = {warmth: [] for warmth in temperatures}
    for clip in clips:
        near = neighbours(clip.maps, frames, radius, k)
        for warmth in temperatures:
            found[warmth].append(measured(clip, propagated(clip, near, warmth)))
    return found


def neighbours(maps_FDhw: Tensor, frames: int, radius: int, k: int) -> list[Neighbours]:
    """The sources of the cells of each frame but the first."""
    rows, columns = maps_FDhw.shape[2:]
    cells_FND = [on_grid(one.flatten(1).T.numpy()) for one in maps_FDhw]
    row_N, column_N = (axis.ravel() for axis in np.indices((rows, columns)))
    far_NN = np.maximum(abs(row_N[:, None] - row_N), abs(column_N[:, None] - column_N)) > radius
    found = []
    for frame in range(1, len(cells_FND)):
        context = [0, *range(max(1, frame - frames), frame)]
        parts = [np.where(far_NN, -np.inf, cosines(cells_FND[frame], cells_FND[one])) for one in context]
        cosines_NK, sources_NK = largest(np.concatenate(parts, axis=1), k)
        frames_NK, cells_NK = np.divmod(sources_NK, rows * columns)
        found.append(Neighbours(cosines_NK, np.array(context)[frames_NK] * rows * columns + cells_NK))
    return found


def largest(values_NM: Floats, k: int) -> tuple[Floats, Integers]:
    """The k largest values of each row and their places, the first of equals first; overwrites `values_NM`."""
    row_N, values, places = np.arange(len(values_NM)), [], []
    for _ in range(min(k, values_NM.shape[1])):
        place_N = values_NM.argmax(axis=1)
        values.append(values_NM[row_N, place_N])
        places.append(place_N)
        values_NM[row_N, place_N] = -np.inf
    return np.stack(values, axis=1), np.stack(places, axis=1)


def propagated(clip: Clip, near: Sequence[Neighbours], temperature: float) -> dict[int, Integers]:
    """The place in (0, *objects) at each pixel of the judged frames, int64 [S, S] by frame."""
    numbers, rows = (0, *clip.objects), clip.maps.shape[2]
    first_SS = np.searchsorted(numbers, clip.first)
    shares_MO = np.zeros((len(clip.maps) * rows**2, len(numbers)))
    shares_MO[: rows**2] = shares(first_SS[None], rows, len(numbers))
    found = {}
    for frame, (cosines_NK, places_NK) in enumerate(near, start=1):
        relative_NK = (cosines_NK - cosines_NK[:, :1]) / temperature  # so exp cannot overflow
        weights_NK = np.rint(np.exp(relative_NK) * _NEAREST)
        parts = [weights_NK[:, one, None] * shares_MO[places_NK[:, one]] for one in range(places_NK.shape[1])]
        given_NO = sum(parts, start=np.zeros_like(parts[0])) / weights_NK.sum(axis=1, keepdims=True)
        shares_MO[frame * rows**2 : (frame + 1) * rows**2] = given_NO
        if frame in clip.judged:
            found[frame] = winners(given_NO, rows, len(first_SS))
    return found


def winners(shares_NO: Floats, rows: int, side: int) -> Integers:
    """The object of the largest share at each pixel, after each object's are scaled to 0..1, int64 [S, S]."""
    maps_Ohw = torch.from_numpy(np.ascontiguousarray(shares_NO.T).reshape(1, -1, rows, rows))
    fine_OSS = interpolate(maps_Ohw, size=(side, side), mode="bilinear", align_corners=False)[0].numpy()
    fine_OSS = fine_OSS - fine_OSS.min(axis=(1, 2), keepdims=True)
    most_O11 = fine_OSS.max(axis=(1, 2), keepdims=True)
    return np.asarray((fine_OSS / np.where(most_O11 > 0, most_O11, 1.0)).argmax(axis=0))


def measured(clip: Clip, found: dict[int, Integers]) -> Floats:
    """J and F of each object, mean over the judged frames, float64 [objects, 2]; `found` as of `propagated`."""
    by_frame = [
        [
            [measure(found[frame] == place, truth_SS == number) for measure in (region, contour)]
            for place, number in enumerate(clip.objects, start=1)
        ]
        for frame, truth_SS in clip.judged.items()
    ]
    return np.asarray(np.mean(by_frame, axis=0))


def _result(name: str, clips: Sequence[Clip], found: Sequence[Floats], chosen: dict[str, int | float]) -> Result:
    still = []
    for clip in clips:
        first_SS = np.searchsorted((0, *clip.objects), clip.first)
        still.append(measured(clip, dict.fromkeys(clip.judged, first_SS)).mean())
    scores = {
        "j": np.array([part[:, 0].mean() for part in found]),
        "f": np.array([part[:, 1].mean() for part in found]),
        "jf": np.array([part.mean() for part in found]),
        "still": np.array(still),
    }
    numbers = {metric: float(score.mean()) for metric, score in scores.items()}
    numbers["jf-objects"] = float(np.concatenate(list(found)).mean())
    values = {
        f"{name}/{metric}": Number(value, STILL if metric == "still" else ACCURACY) for metric, value in numbers.items()
    }
    index = np.array([clip.number for clip in clips], dtype=np.int64)
    return Result(values, {name: chosen}, {name: Examples(index, scores)})
