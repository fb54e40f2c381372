"""Correspondence of cells: how often the nearest cell of another crop shows the same place of the image.

Of each of the first test images two overlapping crops are made, with known geometry. The centre of each cell of the
first crop's map lies at one place of the image; where the second crop shows that place too, the cell counts. Its match
is the cell of the second crop's map with the largest cosine (the first of equals). In units of cells, with the true
place of the centre and the centre of the match:

`same`: the match is the cell that holds the true place. `near`: it differs from the true place by at most one cell in
both directions. `pck`: the distance is at most `alpha` sides of the map. Scores are shares of an image's cells, numbers
are means over images. `chance` is what a match drawn evenly from all cells would give for `near`: maps of few cells
have much. A network of random convolutions is far above it, because its cells differ by their pixels: that is the
number to compare with.

Legend: B images, N cells of a map, D width.
"""

import numpy as np
import numpy.typing as npt

from polygrain.evaluate.given import Encoder
from polygrain.evaluate.result import ACCURACY, FRACTION, Examples, Measure, Number, Result
from polygrain.evaluate.sphere import Doubles, on_grid
from polygrain.evaluate.store import Integers
from polygrain.evaluate.two_views import Pair, pairs
from polygrain.provenance.errors import UserError
from polygrain.views.batch import Geometry
from polygrain.views.recipe import Overlap, Recipe

CHANCE = Measure(FRACTION, "none")


def evaluate(
    encoder: Encoder,
    *,
    images: int,
    scale: list[float],
    ratio: list[float],
    flip: float,
    overlap: float,
    alpha: float,
    seed: int,
) -> Result:
    """Match cells for every data set.

    images: of the test split, from its front. scale, ratio, flip: of the crops, as in `views.recipe.Recipe`. overlap:
    the IoU of the two crops is above it. alpha: of `pck`, in sides of the map. seed: of the crops, one for all runs.
    Raises UserError on values that make no sense and where no cell is seen by both crops.
    """
    if images < 1 or not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1] or not 0 <= flip <= 1:
        raise UserError(
            f"correspondence: images ({images}) must be positive, scale ({scale}) two ascending shares, ratio ({ratio})"
            f" two ascending positive numbers, flip ({flip}) a probability"
        )
    if not 0 <= overlap < 1 or not alpha > 0:
        raise UserError(f"correspondence: overlap ({overlap}) must be in [0, 1), alpha ({alpha}) positive")
    first = Recipe(encoder.size, (scale[0], scale[1]), (ratio[0], ratio[1]), flip)
    second = Recipe(encoder.size, first.scale, first.ratio, flip, overlap=Overlap(overlap))
    values, examples = dict[str, Number](), {}
    for name in encoder.datasets:
        positions = encoder.positions(name, "test")[:images]
        parts = [scored(pair, encoder.size, alpha) for pair in pairs(encoder, name, positions, (first, second), seed)]
        cells_N = np.concatenate([part["cells"] for part in parts])
        seen_N = cells_N > 0
        if not seen_N.any():
            raise UserError(
                f"correspondence: no cell of {name} is seen by both crops of an image; raise overlap or scale"
            )
        scores = {
            metric: np.concatenate([part[metric] for part in parts])[seen_N] / cells_N[seen_N]
            for metric in ("same", "near", "pck", "chance")
        }
        examples[name] = Examples(positions[seen_N], scores)
        values |= {
            f"{name}/{metric}": Number(float(score.mean()), CHANCE if metric == "chance" else ACCURACY)
            for metric, score in scores.items()
        }
    return Result(values, examples=examples)


def scored(pair: Pair, size: int, alpha: float) -> dict[str, Doubles]:
    """For each image [B] the number of `cells` that both crops see, and the sums over these of the four scores."""
    rows, columns = pair.encoded[0].map.shape[2:]
    place_BN2 = true_places(pair.geometry, rows, columns, size)
    centre_N2 = centres(rows, columns)
    seen_BN = ((place_BN2 >= 0) & (place_BN2 < (rows, columns))).all(axis=2)
    match_BN = nearest(*(view.tokens.cpu().numpy() for view in pair.encoded))
    away_BN2 = centre_N2[match_BN] - place_BN2
    right = {
        "cells": seen_BN,
        "same": (np.floor(centre_N2[match_BN]) == np.floor(place_BN2)).all(axis=2),
        "near": (np.abs(away_BN2) <= 1.0).all(axis=2),
        "pck": np.sqrt(np.square(away_BN2 / (rows, columns)).sum(axis=2)) <= alpha,
        "chance": (np.abs(centre_N2 - place_BN2[:, :, None]) <= 1.0).all(axis=3).mean(axis=2),
    }
    return {name: (flags_BN * seen_BN).sum(axis=1).astype(np.float64) for name, flags_BN in right.items()}


def centres(rows: int, columns: int) -> Doubles:
    """Centres (row, column) of the cells of a map, row by row, in cells, float64 [N, 2]."""
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    return grid.reshape(-1, 2).astype(np.float64) + 0.5


def true_places(geometry: tuple[Geometry, Geometry], rows: int, columns: int, size: int) -> Doubles:
    """Where the centres of the first view's cells lie in the second view's map, in cells, float64 [B, N, 2].

    Outside 0..rows and 0..columns the second view does not show the place.
    """
    cells = np.array([rows, columns])
    box_B4, other_B4 = (one.box.cpu().numpy().astype(np.float64)[:, None] for one in geometry)
    flip_B1, other_flip_B1 = (one.flip.cpu().numpy()[:, None] for one in geometry)
    share_BN2 = np.broadcast_to(centres(rows, columns) / cells, (len(box_B4), rows * columns, 2))
    source_BN2 = box_B4[..., :2] + _mirrored(share_BN2, flip_B1) * box_B4[..., 2:]
    there_BN2 = (source_BN2 - other_B4[..., :2]) / other_B4[..., 2:]
    return np.asarray(_mirrored(there_BN2, other_flip_B1) * cells)


def _mirrored(share_BN2: Doubles, flip_B1: npt.NDArray[np.bool_]) -> Doubles:
    """Places in shares of a view's sides, with the column counted from the other side where `flip` is True."""
    column_BN = np.where(flip_B1, 1.0 - share_BN2[..., 1], share_BN2[..., 1])
    return np.stack([share_BN2[..., 0], column_BN], axis=-1)


def nearest(tokens_BND: npt.NDArray[np.float32], others_BND: npt.NDArray[np.float32]) -> Integers:
    """For each cell the cell of the other view with the largest cosine, int64 [B, N]; the first of equals."""
    pairs_of = zip(tokens_BND, others_BND, strict=True)
    return np.stack([(on_grid(one) @ on_grid(other).T).argmax(axis=1) for one, other in pairs_of]).astype(np.int64)
