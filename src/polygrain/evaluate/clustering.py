"""Spherical k-means of frozen features without labels; how well clusters and classes agree on the test images.

The clusters are found on the train rows: of several starts by k-means++ the one of the largest mean cosine between rows
and their centres (the first of equals). A test image belongs to the centre of largest cosine. With as many clusters as
classes, the names of the clusters are a one-to-one matching on the train rows (Hungarian method); with more, each
cluster has the name of its most frequent train class. So no test label decides a number. Deviation: many reports match
on the test images themselves, which gives slightly higher accuracies.

Rows and centres lie on the exact grid of `sphere`, sums of whole numbers are exact: assignments have the same bits for
any order of summation. Ties: an equal cosine goes to the smaller cluster, an equally frequent class to the smaller one,
equal matchings by hash. A cluster without rows keeps its centre.

Legend: N rows, D width, K clusters, C classes.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from polygrain.evaluate.result import ACCURACY, FRACTION, Examples, Measure, Number, Result
from polygrain.evaluate.sphere import GRID, Doubles, on_grid
from polygrain.evaluate.store import Features, Integers
from polygrain.nn.random_numpy import hash64, uniform
from polygrain.provenance.errors import UserError

_KEY = "clustering"
_UNITS = 2.0**32  # of a sum of cosines: whole numbers add up to the same in any order
_TIES = 2.0**32  # rows outweigh every tie-breaking word together

INFORMATION = Measure(FRACTION, "higher")
RAND = Measure("1", "higher", decimals=3)  # may be negative, so it is no fraction


@dataclass(frozen=True)
class Clusters:
    """Centres on the grid [K, D], and the sum of the rows' cosines with their centres, in whole units of 2^-32."""

    centres: Doubles
    objective: int


def evaluate(features: Features, *, over: int, restarts: int, iterations: int, seed: int) -> Result:
    """Cluster every data set, with as many clusters as classes, and with `over` times as many (keys end with `/over`).

    restarts: starts by k-means++. iterations: at most so many for a start. seed: of the starts, one for all runs.
    Raises UserError for values out of range and for more clusters than extracted train rows.
    """
    if over < 2 or restarts < 1 or iterations < 1:
        raise UserError(
            f"clustering: over ({over}) must be at least 2, restarts ({restarts}), iterations ({iterations}) at least 1"
        )
    values, selected, examples = dict[str, Number](), {}, {}
    for name, dataset in features.datasets.items():
        train_ND, test_ND = on_grid(dataset.train.features), on_grid(dataset.test.features)
        for key, clusters in ((name, dataset.classes), (f"{name}/over", over * dataset.classes)):
            if clusters > len(train_ND):
                raise UserError(
                    f"clustering: {clusters} clusters are asked of the {len(train_ND)} extracted train rows of {name};"
                    " extract more, or lower over"
                )
            found = [k_means(train_ND, clusters, iterations, (seed, start)) for start in range(restarts)]
            best = max(range(restarts), key=lambda start: (found[start].objective, -start))
            centres_KD = found[best].centres
            counts_KC = contingency(assign(train_ND, centres_KD), dataset.train.labels, clusters, dataset.classes)
            names_K = matching(counts_KC) if clusters == dataset.classes else counts_KC.argmax(axis=1)
            cluster_N = assign(test_ND, centres_KD)
            test_KC = contingency(cluster_N, dataset.test.labels, clusters, dataset.classes)
            right_N = (names_K[cluster_N] == dataset.test.labels).astype(np.int64)
            values[f"{key}/accuracy"] = Number(float(right_N.mean()), ACCURACY)
            values[f"{key}/nmi"] = Number(normalised_information(test_KC), INFORMATION)
            values[f"{key}/ari"] = Number(adjusted_rand(test_KC), RAND)
            examples[key] = Examples(dataset.test.indices, {"accuracy": right_N})
            cosine = found[best].objective / _UNITS / len(train_ND)
            selected[key] = {"start": best, "clusters": clusters, "train_cosine": cosine}
    return Result(values, selected, examples, features.note())


def k_means(rows_ND: Doubles, clusters: int, iterations: int, draw: tuple[int, int]) -> Clusters:
    """Lloyd's iterations on the sphere, until no row changes its cluster; `draw`: seed and number of the start."""
    centres_KD, before_N = start(rows_ND, clusters, draw), None
    for _ in range(iterations):
        cluster_N = assign(rows_ND, centres_KD)
        if before_N is not None and np.array_equal(cluster_N, before_N):
            break
        member_KN = (cluster_N == np.arange(clusters)[:, None]).astype(np.float64)
        sums_KD = member_KN @ rows_ND  # whole numbers below 2^53 for fewer than 2^27 rows: exact
        # members that cancel each other have no mean direction either
        alive_K1 = np.abs(sums_KD).max(axis=1, keepdims=True) > 0
        centres_KD = np.where(alive_K1, on_grid(sums_KD), centres_KD)
        before_N = cluster_N
    products_N = (rows_ND * centres_KD[assign(rows_ND, centres_KD)]).sum(axis=1)
    return Clusters(centres_KD, int(np.rint(products_N / GRID**2 * _UNITS).astype(np.int64).sum()))


def start(rows_ND: Doubles, clusters: int, draw: tuple[int, int]) -> Doubles:
    """Centres [K, D] by k-means++ (Arthur and Vassilvitskii 2007): rows drawn by their squared distance to the nearest.

    On the sphere it is 2 - 2 cos. Where all rows lie on a centre, any row is drawn.
    """
    places: list[int] = []
    away_N = np.ones(len(rows_ND))
    for place in range(clusters):
        weights_N = away_N if away_N.max() > 0 else np.ones(len(rows_ND))
        ends_N = weights_N.cumsum()
        point = float(uniform(*draw, _KEY, clusters, place)) * ends_N[-1]
        # the first row whose interval ends behind the point; it never has weight 0
        places.append(min(int(np.searchsorted(ends_N, point, side="right")), int(np.flatnonzero(weights_N)[-1])))
        nearest_N = np.maximum(2.0 - 2.0 * (rows_ND @ rows_ND[places[-1]]) / GRID**2, 0.0)
        nearest_N[places[-1]] = 0.0  # rounding of its length leaves a rest
        away_N = nearest_N if place == 0 else np.minimum(away_N, nearest_N)
    return rows_ND[places]


def assign(rows_ND: Doubles, centres_KD: Doubles) -> Integers:
    """The cluster of each row, int64 [N]; the smaller of equals."""
    return np.asarray((rows_ND @ centres_KD.T).argmax(axis=1), dtype=np.int64)


def contingency(cluster_N: Integers, labels_N: Integers, clusters: int, classes: int) -> Integers:
    """How many rows lie in each cluster and class, int64 [K, C]."""
    counts = np.bincount(cluster_N * classes + labels_N, minlength=clusters * classes)
    return counts.reshape(clusters, classes).astype(np.int64)


def matching(counts_KC: Integers) -> Integers:
    """The class of each cluster, one to one, int64 [K], with the most rows right; among equal ones decided by hash."""
    size = len(counts_KC)
    words_KC = hash64(_KEY, "ties", np.arange(size)[:, None], np.arange(size)) % np.uint64(_TIES / size)
    _, class_K = linear_sum_assignment(counts_KC * _TIES + words_KC, maximize=True)
    return np.asarray(class_K, dtype=np.int64)


def normalised_information(counts_KC: Integers) -> float:
    """Mutual information over the mean of both entropies, 0..1 (1 where both partitions have one part)."""
    share_KC = counts_KC / counts_KC.sum()
    over_K, over_C = _entropy(share_KC.sum(axis=1)), _entropy(share_KC.sum(axis=0))
    if over_K + over_C == 0:
        return 1.0
    shared = over_K + over_C - _entropy(share_KC.ravel())
    return min(1.0, max(0.0, 2.0 * shared / (over_K + over_C)))


def _entropy(share: Doubles) -> float:
    present = share[share > 0]
    return float(-(present * np.log(present)).sum())


def adjusted_rand(counts_KC: Integers) -> float:
    """The Rand index, corrected for chance (Hubert and Arabie 1985): 0 expected of independent parts, 1 for equal."""
    pairs, total = (int((count * (count - 1) // 2).sum()) for count in (counts_KC, counts_KC.sum(keepdims=True)))
    of_K, of_C = (int((count * (count - 1) // 2).sum()) for count in (counts_KC.sum(axis=1), counts_KC.sum(axis=0)))
    # in whole numbers up to the division: (pairs - expected) / (mean - expected), times twice the total
    above, most = 2 * (pairs * total - of_K * of_C), (of_K + of_C) * total - 2 * of_K * of_C
    return above / most if most else 1.0
