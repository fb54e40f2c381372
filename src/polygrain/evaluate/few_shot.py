"""Few-shot classification: closed-form ridge regression on one-hot labels of 1, 5 or 10 images per class.

Features are standardised over all extracted train rows, whose labels play no part. For each draw, n train images of
every class are taken: those of smallest hash, so the images of a smaller n are among those of a larger one. With these
rows centred, the weights minimise

    |X W - Y|^2 + strength * m * |W|^2,      m = the mean of the diagonal of X X^T,

which has the closed form W = X^T (X X^T + strength m I)^-1 Y; the bias makes the mean row predict the mean label. The
strength is one for all draws of an n: of the highest validation accuracy over all of them, the larger of equals. The
test split is used once. A test image's score is the share of draws that classify it right.

Legend: N rows, D width, C classes, S rows of a draw, M images per class, R strengths.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from polygrain.evaluate.result import ACCURACY, Examples, Number, Result
from polygrain.evaluate.scaling import Doubles, Scaling
from polygrain.evaluate.store import SPLITS, Features, FeatureSet, Integers
from polygrain.nn.random_numpy import hash64
from polygrain.provenance.errors import UserError

_KEY = "few-shot"


def evaluate(features: Features, *, shots: list[int], draws: int, strengths: list[float], seed: int) -> Result:
    """Classify every data set's test split from few labels.

    shots: images per class. draws: sets of images per number of shots. strengths: to select from, relative to the mean
    squared length of a centred row. seed: of the draws, one for all runs. Raises UserError for values out of range and
    a class with too few extracted train images.
    """
    if not shots or min(shots) < 1 or draws < 1:
        raise UserError(f"few-shot: shots ({shots}) must hold numbers of at least 1, and draws ({draws}) be positive")
    if not strengths or not min(strengths) > 0:
        raise UserError(f"few-shot: strengths must hold positive numbers, not {strengths}")
    ordered = sorted(set(strengths), reverse=True)
    values, selected, examples = dict[str, Number](), {}, {}
    for name, dataset in features.datasets.items():
        scaling = Scaling(dataset.train.features)
        x_ND = {part: scaling(getattr(dataset, part).features) for part in SPLITS}
        for shot in sorted(set(shots)):
            chosen = [draw_rows(dataset, shot, seed, draw) for draw in range(draws)]
            fitted = [fit(x_ND["train"][rows], dataset.train.labels[rows], ordered, dataset.classes) for rows in chosen]
            right = np.zeros(len(ordered), dtype=np.int64)
            for weights_RDC in fitted:
                right += _hits(x_ND["validation"], dataset.validation.labels, weights_RDC).sum(axis=1)
            best = int(right.argmax())  # the first of equals
            hits_N = np.zeros(len(dataset.test), dtype=np.int64)
            for weights_RDC in fitted:
                hits_N += _hits(x_ND["test"], dataset.test.labels, weights_RDC[best : best + 1])[0]
            key, score_N = f"{name}/{shot}-shot", hits_N / draws
            values[f"{key}/top1"] = Number(float(score_N.mean()), ACCURACY)
            examples[key] = Examples(dataset.test.indices, {"top1": score_N})
            accuracy = int(right[best]) / (draws * len(dataset.validation))
            selected[key] = {"strength": ordered[best], "validation_top1": accuracy}
    return Result(values, selected, examples, features.note())


def draw_rows(dataset: FeatureSet, shot: int, seed: int, draw: int) -> Integers:
    """Train rows int64 [C M], class after class; an image's place in the draw does not depend on the other images.

    Raises UserError for a class with fewer than `shot` images.
    """
    order_N = np.argsort(hash64(seed, _KEY, draw, dataset.train.indices), kind="stable")
    labels_N = dataset.train.labels[order_N]
    taken = []
    for label in range(dataset.classes):
        rows = order_N[labels_N == label][:shot]
        if len(rows) < shot:
            raise UserError(
                f"few-shot: class {label} of {dataset.name} has {len(rows)} extracted train images, {shot} are asked"
                " for; extract more, or lower shots"
            )
        taken.append(rows)
    return np.concatenate(taken)


def fit(x_SD: Doubles, labels_S: Integers, strengths: Sequence[float], classes: int) -> Doubles:
    """Weights [R, D + 1, C] for each strength; the last row is the bias."""
    targets_SC = np.eye(classes)[labels_S]
    mean_D, share_C = x_SD.mean(axis=0), targets_SC.mean(axis=0)
    centred_SD, aims_SC = x_SD - mean_D, targets_SC - share_C
    gram_SS = centred_SD @ centred_SD.T
    # rows that are all equal have no direction to learn: every weight is 0 for any positive diagonal
    unit = float(gram_SS.trace()) / len(gram_SS) or 1.0
    found = []
    for strength in strengths:
        weights_DC = centred_SD.T @ np.linalg.solve(gram_SS + strength * unit * np.eye(len(gram_SS)), aims_SC)
        found.append(np.concatenate([weights_DC, (share_C - mean_D @ weights_DC)[None]]))
    return np.stack(found)


def _hits(x_ND: Doubles, labels_N: Integers, weights_RDC: Doubles) -> npt.NDArray[np.bool_]:
    """Whether each row is classified right, bool [R, N]; equal votes go to the smaller class."""
    return np.stack([(x_ND @ weights[:-1] + weights[-1]).argmax(axis=1) == labels_N for weights in weights_RDC])
