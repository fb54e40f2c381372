"""Retrieval at three grains: the same image under another view, the same class, the same superclass.

Of each of the first test images two views are made by random crops and flips. The first view of an image is a query;
the gallery holds the second views of all images, ranked by cosine. For `instance` one entry is relevant, the other view
of the query's image. For `class` and `superclass` the query's own image is left out of the gallery, and relevant are
the images of the same class or superclass, as the data set's manifest groups them.

`recall1`, `recall5`: share of queries with a relevant entry among the first 1 or 5. `map`: the mean over queries of the
average precision, which is the mean, over the relevant entries, of the share of relevant ones down to its rank; for
`instance` it is the mean of 1 / rank. `alignment`: the mean squared distance of the two views' features of unit length
(Wang and Isola 2020), from 0; it describes a run and says nothing of merit.

Cosines lie on the exact grid of `sphere`; equal ones are ranked in the order of the images. Queries that have nothing
relevant in the gallery are left out.

Legend: Q queries, N gallery entries, D width.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from polygrain.evaluate.given import Encoder
from polygrain.evaluate.result import ACCURACY, Examples, Measure, Number, Result, Scores
from polygrain.evaluate.sphere import Doubles, cosines, on_grid
from polygrain.evaluate.store import Integers
from polygrain.evaluate.two_views import pairs
from polygrain.provenance.errors import UserError
from polygrain.views.recipe import Recipe

Flags = npt.NDArray[np.bool_]

ALIGNMENT = Measure("1", "none", decimals=3)


def evaluate(
    encoder: Encoder, *, images: int, scale: list[float], ratio: list[float], flip: float, seed: int
) -> Result:
    """Rank for every data set.

    images: of the test split, from its front, which are queries and gallery. scale, ratio, flip: of the views, as in
    `views.recipe.Recipe`. seed: of the views, one for all runs. Raises UserError on values that make no sense.
    """
    if images < 2 or not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1] or not 0 <= flip <= 1:
        raise UserError(
            f"retrieval: images ({images}) must be at least 2, scale ({scale}) two ascending shares, ratio ({ratio})"
            f" two ascending positive numbers, flip ({flip}) a probability"
        )
    recipe = Recipe(encoder.size, (scale[0], scale[1]), (ratio[0], ratio[1]), flip)
    values, examples, notes = dict[str, Number](), dict[str, Examples](), list[str]()
    for name in encoder.datasets:
        positions = encoder.positions(name, "test")[:images]
        found = list(pairs(encoder, name, positions, (recipe, recipe), seed))
        query_QD, gallery_ND = (
            on_grid(np.concatenate([pair.encoded[view].pooled.cpu().numpy() for pair in found])) for view in (0, 1)
        )
        cosine_QN = cosines(query_QD, gallery_ND)
        apart_N = 2.0 - 2.0 * cosine_QN.diagonal()
        values[f"{name}/alignment"] = Number(float(apart_N.mean()), ALIGNMENT)
        examples[name] = Examples(positions, {"alignment": apart_N})
        for grain, relevant_QN, others_QN in _grains(encoder, name, positions):
            asked_Q = relevant_QN.any(axis=1)
            if not asked_Q.any():
                notes.append(f"{name}: no two of the {len(positions)} test images share a {grain}")
                continue
            scores = ranked(cosine_QN[asked_Q], relevant_QN[asked_Q], others_QN[asked_Q])
            examples[f"{name}/{grain}"] = Examples(positions[asked_Q], scores)
            values |= {
                f"{name}/{grain}/{metric}": Number(float(score.mean()), ACCURACY) for metric, score in scores.items()
            }
    return Result(values, examples=examples, note="; ".join(notes))


def _grains(encoder: Encoder, name: str, positions: Integers) -> Iterator[tuple[str, Flags, Flags]]:
    """Each grain with what is relevant to a query and what is in its gallery, bool [Q, N]."""
    same_QN = np.eye(len(positions), dtype=np.bool_)
    yield "instance", same_QN, np.ones_like(same_QN)
    labels_N = encoder.labels(name, positions)
    yield "class", (labels_N[:, None] == labels_N) & ~same_QN, ~same_QN
    coarse = encoder.datasets[name].manifest.get("coarse", {"of_class": [0]})  # shards of encoded images have none
    of_class = np.asarray(coarse["of_class"])
    if of_class.max() > 0:  # else the data set has one superclass, to which every image is relevant
        coarse_N = of_class[labels_N]
        yield "superclass", (coarse_N[:, None] == coarse_N) & ~same_QN, ~same_QN


def ranked(cosine_QN: Doubles, relevant_QN: Flags, gallery_QN: Flags) -> dict[str, Scores]:
    """Scores [Q] of each query: `recall1`, `recall5` (0 or 1) and `map`, its average precision.

    relevant_QN: at least one in a row. gallery_QN: the entries that a query may find; no other one is relevant.
    """
    # what is not in the gallery comes last, where it changes nothing
    order_QN = np.argsort(-np.where(gallery_QN, cosine_QN, -np.inf), axis=1, kind="stable")
    hit_QN = np.take_along_axis(relevant_QN, order_QN, axis=1)
    precision_QN = hit_QN.cumsum(axis=1) / np.arange(1, hit_QN.shape[1] + 1)
    average_Q = (precision_QN * hit_QN).sum(axis=1) / hit_QN.sum(axis=1)
    return {
        "recall1": hit_QN[:, :1].any(axis=1).astype(np.int64),
        "recall5": hit_QN[:, :5].any(axis=1).astype(np.int64),
        "map": average_Q,
    }
