"""Weighted k-nearest-neighbour classification of frozen features, raw or whitened.

The k most similar train images of each image, by cosine, vote for their classes with weight exp(cos / temperature) (Wu
et al. 2018). k is selected on the validation split and reported once on test.

Raw cosines measure how unequal the variances of a network's features are as much as what they tell apart; so they are
also whitened (`whitening.py`).

Ties have one outcome: equal similarities go in train order, equal votes to the smaller class, equal validation
accuracies to the smaller k. Similarities are exact, as in `polygrain.nn.neighbours`, but computed by numpy, because
importing torch takes longer than the whole protocol on small data.
Legend: Q queries, N train rows, D width, K neighbours, C classes, R rows of a block.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from polygrain.evaluate.result import Number, Result, classified
from polygrain.evaluate.store import Features, FeatureSet, Floats, Integers, Split
from polygrain.evaluate.whitening import Whitening
from polygrain.provenance.errors import UserError

_GRID = 2.0**26
# Votes are whole multiples of 2^-40 of the nearest neighbour's. Sums of fewer than 2^13 are exact in float64.
_NEAREST_VOTE = 2.0**40
_MOST_NEIGHBOURS = 2**13 - 1

Doubles = npt.NDArray[np.float64]


def evaluate(
    features: Features,
    *,
    spaces: list[Literal["raw", "whitened"]],
    k: list[int],
    temperature: float,
    shrinkage: float,
    byte_budget: int,
) -> Result:
    """Classify every data set's test split. Raises UserError for values out of range or k above the train rows.

    spaces: in which neighbours are searched; the keys of whitened ones end with `/whitened`. k: to select from.
    temperature: of the votes. byte_budget: largest temporary array; it does not change the result.
    """
    if not spaces or not shrinkage > 0:
        raise UserError(f"knn: spaces needs at least one entry, and shrinkage ({shrinkage}) must be positive")
    if not k or min(k) < 1 or max(k) > _MOST_NEIGHBOURS:
        raise UserError(f"knn: k must hold numbers from 1 to {_MOST_NEIGHBOURS}, not {k}")
    if not temperature > 0 or byte_budget < 1:
        raise UserError(f"knn: temperature ({temperature}) and byte_budget ({byte_budget}) must be positive")
    values, selected, examples = dict[str, Number](), {}, {}
    for name, dataset in features.datasets.items():
        if max(k) > len(dataset.train):
            raise UserError(
                f"knn: k = {max(k)} exceeds the {len(dataset.train)} extracted train rows of {name}; lower it"
            )
        for space in spaces:
            key, shown = (name, dataset) if space == "raw" else (f"{name}/{space}", whitened(dataset, shrinkage))
            best, accuracy = _select(shown, sorted(set(k)), temperature, byte_budget)
            predicted_Q = _classify(shown, shown.test, [best], temperature, byte_budget)[:, 0]
            numbers, examples[key] = classified(key, predicted_Q, shown.test.labels, shown.test.indices)
            values |= numbers
            selected[key] = {"k": best, "validation_top1": accuracy}
    return Result(values, selected, examples, features.note())


def whitened(dataset: FeatureSet, shrinkage: float) -> FeatureSet:
    """The data set with whitened features, float32. Where all train rows are equal, it is only centred."""
    whiten = Whitening(dataset.train.features.astype(np.float64), shrinkage)

    def apply(split: Split) -> Split:
        return replace(split, features=whiten(split.features).astype(np.float32))

    return replace(dataset, train=apply(dataset.train), validation=apply(dataset.validation), test=apply(dataset.test))


def _select(dataset: FeatureSet, choices: list[int], temperature: float, byte_budget: int) -> tuple[int, float]:
    """The k of highest validation accuracy (the smaller of equals), and that accuracy."""
    predicted_QK = _classify(dataset, dataset.validation, choices, temperature, byte_budget)
    right = (predicted_QK == dataset.validation.labels[:, None]).sum(axis=0).tolist()
    return choices[right.index(max(right))], max(right) / len(predicted_QK)


def _classify(dataset: FeatureSet, split: Split, choices: list[int], temperature: float, byte_budget: int) -> Integers:
    return predict(
        split.features,
        dataset.train.features,
        dataset.train.labels,
        choices,
        classes=dataset.classes,
        temperature=temperature,
        byte_budget=byte_budget,
    )


def predict(
    queries_QD: Floats,
    bank_ND: Floats,
    labels_N: Integers,
    choices: Sequence[int],
    *,
    classes: int,
    temperature: float,
    byte_budget: int,
) -> Integers:
    """Predict classes, int64 [Q, len(choices)], for ascending numbers of neighbours `choices`."""
    rows_QD, bank_DN = _on_grid(queries_QD), np.ascontiguousarray(_on_grid(bank_ND).T)
    block = max(1, byte_budget // (8 * len(bank_ND)))
    winners = []
    for start in range(0, len(rows_QD), block):
        similarities_RK, neighbours_RK = _nearest(rows_QD[start : start + block] @ bank_DN, choices[-1])
        winners.append(_vote(similarities_RK, labels_N[neighbours_RK], choices, classes, temperature))
    return np.concatenate(winners)


def _on_grid(rows: Floats) -> Doubles:
    """Scale rows to unit length, as whole numbers in units of 2^-26; rows of zeros stay zeros."""
    wide = rows.astype(np.float64)
    lengths = np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
    return np.asarray(np.rint(wide / np.maximum(lengths, 1e-12) * _GRID))


def _nearest(products_RN: Doubles, k: int) -> tuple[Doubles, Integers]:
    """The k largest cosines of each row and their positions: larger first, then the smaller position."""
    more = min(k + 1, products_RN.shape[1])
    places_RK = np.sort(np.argpartition(products_RN, -more, axis=1)[:, -more:], axis=1)
    order_RK = np.argsort(-np.take_along_axis(products_RN, places_RK, axis=1), axis=1, kind="stable")
    places_RK = np.take_along_axis(places_RK, order_RK, axis=1)
    if more > k:  # equal values at the border: only a full sort tells which come first
        last_R2 = np.take_along_axis(products_RN, places_RK[:, k - 1 :], axis=1)
        cut_R = last_R2[:, 0] == last_R2[:, 1]
        places_RK = places_RK[:, :k]
        places_RK[cut_R] = np.argsort(-products_RN[cut_R], axis=1, kind="stable")[:, :k]
    return np.take_along_axis(products_RN, places_RK, axis=1) / _GRID**2, places_RK


def _vote(
    similarities_RK: Doubles, labels_RK: Integers, choices: Sequence[int], classes: int, temperature: float
) -> Integers:
    """Winning classes [R, len(choices)]. Votes are relative to the nearest one's, so they cannot overflow."""
    votes_RK = np.rint(np.exp((similarities_RK - similarities_RK[:, :1]) / temperature) * _NEAREST_VOTE)
    cells_RK = labels_RK + classes * np.arange(len(labels_RK))[:, None]
    totals, winners, start = np.zeros(len(labels_RK) * classes), [], 0
    for k in choices:
        cells, votes = cells_RK[:, start:k].ravel(), votes_RK[:, start:k].ravel()
        totals += np.bincount(cells, weights=votes, minlength=len(totals))
        winners.append(totals.reshape(-1, classes).argmax(axis=1))  # the first of equals
        start = k
    return np.stack(winners, axis=1)
