"""Weighted k-nearest-neighbour classification of frozen features.

Each image asks its k most similar train images, by cosine; neighbour j votes for its class with weight
exp(cos_j / temperature) (Wu et al. 2018; the protocol of Mugs, and of the small-scale rows of the other
methods). k is selected on the validation split and reported once on test.

Ties have one outcome: equal similarities are taken in train order, equal votes go to the smaller class, equal
validation accuracies to the smaller k.

Legend: Q queries, N train rows, D width, K neighbours, C classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from polygrain.evaluate.result import Number, Result, classified
from polygrain.evaluate.store import Features, FeatureSet, Split
from polygrain.nn.neighbours import topk_cosine
from polygrain.provenance.errors import UserError

# Votes are whole multiples of 2^-40 of the nearest neighbour's. Sums of fewer than 2^13 of them are exact in
# float64, hence the same in any order and on any kernel.
_NEAREST_VOTE = 2.0**40
_MOST_NEIGHBOURS = 2**13 - 1


def evaluate(features: Features, *, k: list[int], temperature: float, byte_budget: int) -> Result:
    """Classify every data set's test split.

    k: numbers of neighbours to select from. temperature: of the votes. byte_budget: largest temporary array,
    in bytes; it changes memory and speed, never a result. Raises UserError when a value makes no sense or k
    exceeds the train rows.
    """
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
        best, accuracy = _select(dataset, sorted(set(k)), temperature, byte_budget)
        predicted_Q = _classify(dataset, dataset.test, [best], temperature, byte_budget)[:, 0]
        numbers, examples[name] = classified(name, predicted_Q.numpy(), dataset.test.labels, dataset.test.indices)
        values |= numbers
        selected[name] = {"k": best, "validation_top1": accuracy}
    return Result(values, selected, examples, features.note())


def _select(dataset: FeatureSet, choices: list[int], temperature: float, byte_budget: int) -> tuple[int, float]:
    """Return the k that is right most often on validation (the smaller of equals), and how often."""
    labels_Q = torch.from_numpy(dataset.validation.labels)
    predicted_QK = _classify(dataset, dataset.validation, choices, temperature, byte_budget)
    right = [int((column_Q == labels_Q).sum()) for column_Q in predicted_QK.unbind(1)]
    return choices[right.index(max(right))], max(right) / len(labels_Q)


def _classify(dataset: FeatureSet, split: Split, choices: list[int], temperature: float, byte_budget: int) -> Tensor:
    return predict(
        torch.from_numpy(split.features),
        torch.from_numpy(dataset.train.features),
        torch.from_numpy(dataset.train.labels),
        choices,
        classes=dataset.classes,
        temperature=temperature,
        byte_budget=byte_budget,
    )


def predict(
    queries_QD: Tensor,
    bank_ND: Tensor,
    labels_N: Tensor,
    choices: Sequence[int],
    *,
    classes: int,
    temperature: float,
    byte_budget: int,
) -> Tensor:
    """Predict classes, int64 [Q, len(choices)], for ascending numbers of neighbours `choices`.

    Features of any length (the cosine scales them); labels int64 in 0..classes-1.
    """
    similarities_QK, neighbours_QK = topk_cosine(queries_QD, bank_ND, choices[-1], byte_budget=byte_budget)
    rows = max(1, byte_budget // (8 * choices[-1] * classes))
    winners = [
        _vote(similarities_QK[q : q + rows], labels_N[neighbours_QK[q : q + rows]], choices, classes, temperature)
        for q in range(0, len(queries_QD), rows)
    ]
    return torch.cat(winners)


def _vote(
    similarities_QK: Tensor, labels_QK: Tensor, choices: Sequence[int], classes: int, temperature: float
) -> Tensor:
    """Return winning classes [Q, len(choices)]. Votes relative to the nearest one's cannot overflow."""
    votes_QK = torch.exp((similarities_QK - similarities_QK[:, :1]) / temperature).mul_(_NEAREST_VOTE).round_()
    totals_QC = torch.zeros(len(votes_QK), classes, dtype=torch.float64)
    winners, start = [], 0
    for k in choices:
        ballots_QKC = one_hot(labels_QK[:, start:k], classes).to(torch.float64)
        totals_QC += torch.einsum("qk,qkc->qc", votes_QK[:, start:k], ballots_QKC)
        winners.append(totals_QC.argmax(dim=1))  # the first of equals
        start = k
    return torch.stack(winners, dim=1)
