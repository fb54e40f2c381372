"""Semantic segmentation of scenes without training: the nearest train cells vote for the classes of a cell.

The bank holds cells of train scenes, drawn once, each with the number of pixels of every class that it covers. A cell's
k most similar cells of the bank, by cosine, vote with weight exp(cos / temperature) times these numbers. The votes of a
class are divided by the square root of its share of the bank's pixels: three of four pixels are background, which would
win nearly everywhere. The shares of the votes are upsampled bilinearly to the pixels, and the class with the largest
share is the answer. k is selected by the mean IoU on validation; test is used once.

Features are whitened before, over the cells of the bank (`whitening`).

Similarities are exact (`polygrain.nn.neighbours`). Votes are whole multiples of 2^-32 of the nearest one's, so their
sums are exact too. Ties have one outcome: equal similarities go in the order of the bank, equal shares to the earlier
class, of which the background is the first, equal validation scores to the smaller k.

Legend: Q cells of a split, N cells of the bank, D width, K neighbours, C classes, 0 the background; B images, h, w the
map, S side of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from polygrain.evaluate.result import Result
from polygrain.evaluate.scenes.given import SceneEncoder
from polygrain.evaluate.scenes.iou import (
    Floats,
    Integers,
    Maps,
    cell_rows,
    confusion,
    maps_of,
    mean_iou,
    pixel_counts,
    segmented,
)
from polygrain.evaluate.whitening import Whitening
from polygrain.nn.neighbours import topk_cosine
from polygrain.nn.random import permutation
from polygrain.provenance.errors import UserError

_NAME = "scene-neighbours"
_NEAREST_VOTE = 2.0**32
_MOST = 2**20  # neighbours times pixels of a cell: sums of votes stay below 2^53
_JUDGED = 100  # images that are judged at once


@dataclass(frozen=True)
class Bank:
    """Cells of train scenes, and how they vote."""

    features: Tensor
    """Float64 [N, D], whitened."""
    counts: Floats
    """Pixels of each class that a cell covers, [N, C]."""
    whiten: Whitening
    """What was done to the features."""
    temperature: float
    byte_budget: int
    """Of one block of similarities."""


def evaluate(
    encoder: SceneEncoder,
    *,
    train: int,
    validation: int,
    cells: int,
    k: list[int],
    temperature: float,
    shrinkage: float,
    seed: int,
    byte_budget: int,
) -> Result:
    """Segment the test scenes.

    train, validation: scenes from the front of these splits, at most. cells: of the train scenes, in the bank, at most.
    k: to select from. temperature: of the votes. shrinkage: see `Whitening`. seed: of the draw of cells, one for all
    runs. byte_budget: of one block of similarities; it does not change the result. Raises UserError for values out of
    range, images that the map does not divide, and a split without images.
    """
    if min(train, validation, cells, byte_budget, *k) < 1 or not k or not temperature > 0 or not shrinkage > 0:
        raise UserError(
            f"{_NAME}: train ({train}), validation ({validation}), cells ({cells}), k ({k}), temperature"
            f" ({temperature}), shrinkage ({shrinkage}) and byte_budget ({byte_budget}) must be positive, k not empty"
        )
    scenes, choices = encoder.scenes, sorted(set(k))
    classes = 1 + len(scenes.classes)
    given = maps_of(_NAME, encoder, "train", scenes.pictures("train", train))
    drawn_N = permutation(len(cell_rows(given.maps)), seed, _NAME)[:cells].sort().values
    bank = bank_of(given, drawn_N, classes, shrinkage, temperature, byte_budget)
    most = min(len(drawn_N), int(_MOST / bank.counts[0].sum()))
    if choices[-1] > most:
        raise UserError(f"{_NAME}: k = {choices[-1]} exceeds {most}, which this bank of {len(drawn_N)} cells allows")
    held = maps_of(_NAME, encoder, "validation", scenes.pictures("validation", validation))
    scores = [mean_iou(confusion(found, held.truth, classes)) for found in predicted(held, bank, choices)]
    best = max(range(len(choices)), key=lambda place: (scores[place], -place))
    shown = scenes.pictures("test")
    tested = maps_of(_NAME, encoder, "test", shown)
    (found_BSS,) = predicted(tested, bank, [choices[best]])
    chosen = {"k": choices[best], "validation_miou": scores[best], "cells": len(drawn_N)}
    return segmented(scenes.name, scenes.classes, found_BSS, tested.truth, shown, chosen)


def bank_of(given: Maps, drawn_N: Tensor, classes: int, shrinkage: float, temperature: float, byte_budget: int) -> Bank:
    """The bank of the cells `drawn_N`, counted over all images of `given`, image by image, row by row."""
    rows_ND, counts_NC = cell_rows(given.maps)[drawn_N], pixel_counts(given.truth, given.maps.shape[-1], classes)
    whiten = Whitening(rows_ND.double().numpy(), shrinkage)
    return Bank(
        torch.from_numpy(whiten(rows_ND.numpy())),
        counts_NC[drawn_N.numpy()].astype(np.float64),
        whiten,
        temperature,
        byte_budget,
    )


def predicted(given: Maps, bank: Bank, choices: Sequence[int]) -> Integers:
    """The class at each pixel for ascending numbers of neighbours `choices`, int64 [len(choices), B, S, S]."""
    side, found = given.truth.shape[1], []
    for maps_BDhw in torch.split(given.maps, _JUDGED):
        shares_BChw = (
            torch.from_numpy(shares_QC.reshape(len(maps_BDhw), *maps_BDhw.shape[2:], -1)).permute(0, 3, 1, 2)
            for shares_QC in votes(torch.from_numpy(bank.whiten(cell_rows(maps_BDhw).numpy())), bank, choices)
        )
        found.append(
            [
                interpolate(one.contiguous(), size=(side, side), mode="bilinear", align_corners=False).numpy().argmax(1)
                for one in shares_BChw
            ]
        )
    return np.concatenate(found, axis=1)


def votes(rows_QD: Tensor, bank: Bank, choices: Sequence[int]) -> list[Floats]:
    """The share of each class among the balanced votes of the nearest cells, float64 [Q, C], for each of `choices`."""
    cosines_QK, places_QK = topk_cosine(rows_QD, bank.features, choices[-1], byte_budget=bank.byte_budget)
    relative_QK = (cosines_QK - cosines_QK[:, :1]).numpy() / bank.temperature  # so exp cannot overflow
    weights_QK, counts_QKC = np.rint(np.exp(relative_QK) * _NEAREST_VOTE), bank.counts[places_QK.numpy()]
    pixels_C = np.maximum(bank.counts.sum(axis=0), 1.0)  # a class without a pixel gets no vote
    found = []
    for k in choices:
        votes_QC = np.einsum("qk,qkc->qc", weights_QK[:, :k], counts_QKC[:, :k]) / np.sqrt(pixels_C)
        found.append(votes_QC / votes_QC.sum(axis=1, keepdims=True))
    return found
