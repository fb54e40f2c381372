"""k-NN segmentation of scenes: a plain vote in numpy, perfect and permuted cells, ties, bad values."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_scenes import CELLS, NAMES, SIDE, scene_set

from polygrain.backbones.contract import Encoded, from_map
from polygrain.data.dense.coco import Picture
from polygrain.evaluate import scene_neighbours
from polygrain.evaluate.result import Result
from polygrain.evaluate.scenes.given import SceneSet
from polygrain.evaluate.scenes.iou import Maps
from polygrain.provenance.errors import UserError

VALUES: dict[str, Any] = {
    "train": 60,
    "validation": 20,
    "cells": 300,
    "k": [1, 5],
    "temperature": 0.1,
    "shrinkage": 0.01,
    "seed": 0,
    "byte_budget": 10_000,
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SceneSet:
    """Scenes of whole cells: each is one of the classes or background."""
    generator = np.random.default_rng(0)
    counts = {"train": 60, "validation": 20, "test": 24}
    masks: dict[str, list[list[tuple[int, Any]]]] = {}
    for split, count in counts.items():
        drawn = generator.integers(0, len(NAMES) + 1, (count, CELLS, CELLS)).repeat(4, axis=1).repeat(4, axis=2)
        masks[split] = [[(one, labels == one) for one in range(1, len(NAMES) + 1)] for labels in drawn]
    return scene_set(tmp_path_factory.mktemp("scenes"), masks)


class Given:
    """The class of each cell as its feature, with noise, or permuted."""

    def __init__(self, scenes: SceneSet, noise: float = 0.05, permuted: bool = False) -> None:
        self.scenes, self.noise, self.permuted = scenes, noise, permuted

    def encoded(self, split: str, pictures: Sequence[Picture]) -> Iterator[Encoded]:
        generator = np.random.default_rng(len(split))
        truth = np.stack([self.scenes.semantic(split, picture) for picture in pictures])[:, 2::4, 2::4]
        if self.permuted:
            truth = generator.permutation(truth.ravel()).reshape(truth.shape)
        maps = np.moveaxis(np.eye(len(NAMES) + 1)[truth], 3, 1)
        yield from_map(torch.from_numpy(maps + self.noise * generator.normal(size=maps.shape)).float())


def _evaluate(given: Given, **changes: Any) -> Result:
    return scene_neighbours.evaluate(given, **{**VALUES, **changes})  # type: ignore[arg-type]


def test_perfect_cells_are_found_and_permuted_ones_are_chance(scenes: SceneSet) -> None:
    perfect, chance = (_evaluate(Given(scenes, permuted=permuted)) for permuted in (False, True))
    assert perfect.values["toy/miou"].value > 0.8, "upsampling blurs the borders of cells only"
    assert chance.values["toy/accuracy"].value == pytest.approx(1 / 4, abs=0.04)
    assert chance.values["toy/miou"].value == pytest.approx(1 / 7, abs=0.03)  # a quarter each, and independent
    maps, cells = torch.eye(4).reshape(4, 4, 1, 1), np.arange(4).reshape(4, 1, 1)
    bank = scene_neighbours.bank_of(Maps(maps, cells), torch.arange(4), 4, 0.01, 0.1, 1000)
    np.testing.assert_array_equal(scene_neighbours.predicted(Maps(maps, cells), bank, [1])[0], cells)


def test_votes_are_those_of_a_plain_second_implementation() -> None:
    generator = np.random.default_rng(1)
    maps = torch.from_numpy(generator.normal(2, 1, (6, 5, 4, 4)) * np.arange(1, 6)[:, None, None]).float()
    truth = generator.choice(3, (6, SIDE, SIDE), p=[0.7, 0.2, 0.1])
    drawn = torch.arange(0, 96, 2)
    bank = scene_neighbours.bank_of(Maps(maps, truth), drawn, 3, 0.3, 0.2, 1000)
    rows = np.array([maps[b, :, r, c].numpy() for b in range(6) for r in range(4) for c in range(4)], dtype=float)
    counts = np.array(
        [
            [(truth[b, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4] == one).sum() for one in range(3)]
            for b in range(6)
            for r in range(4)
            for c in range(4)
        ]
    )[drawn]
    used = rows[drawn]
    covariance = np.cov(used.T, bias=True)
    covariance += 0.3 * np.trace(covariance) / 5 * np.eye(5)
    white = (rows - used.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(covariance)).T
    unit = white / np.linalg.norm(white, axis=1, keepdims=True)
    for k, found in zip((2, 7), scene_neighbours.votes(torch.from_numpy(bank.whiten(rows)), bank, [2, 7]), strict=True):
        for row in range(96):
            cosine = unit[drawn] @ unit[row]
            near = np.argsort(-cosine, kind="stable")[:k]
            votes = sum(np.exp(cosine[one] / 0.2) * counts[one] for one in near) / np.sqrt(counts.sum(axis=0))
            np.testing.assert_allclose(found[row], votes / votes.sum(), atol=1e-5)


def test_equal_cells_vote_in_the_order_of_the_bank() -> None:
    maps, truth = torch.ones(2, 3, 2, 2), np.array([[[0, 1], [1, 2]], [[2, 2], [1, 1]]])
    bank = scene_neighbours.bank_of(Maps(maps, truth), torch.arange(8), 3, 0.1, 0.1, 1000)
    found = scene_neighbours.predicted(Maps(maps, truth), bank, [1])
    assert (found == 0).all(), "all cosines are equal: the first cell of the bank, which is background"


def test_bytes_are_equal_twice_and_for_any_block(scenes: SceneSet, tmp_path: Path) -> None:
    for folder, budget in (("one", 10_000), ("two", 10_000_000)):
        _evaluate(Given(scenes, noise=1.0), byte_budget=budget).save(tmp_path / folder, "scene-neighbours")
    for kind in ("json", "npz"):
        assert len({(tmp_path / f"{one}/scene-neighbours.{kind}").read_bytes() for one in ("one", "two")}) == 1
    read = Result.load(tmp_path / "one", "scene-neighbours")
    assert all(read.agrees(number) for number in read.values)
    assert read.selected["toy"]["k"] == 5, "under noise one neighbour is too few"
    assert read.selected["toy"]["cells"] == 300


def test_bad_values_are_one_line(scenes: SceneSet) -> None:
    for change in ({"train": 0}, {"k": []}, {"k": [0]}, {"temperature": 0.0}, {"shrinkage": 0.0}, {"cells": 0}):
        with pytest.raises(UserError, match=r"scene-neighbours: .* must be positive"):
            _evaluate(Given(scenes), **change)
    with pytest.raises(UserError, match="k = 301 exceeds 300, which this bank of 300 cells allows"):
        _evaluate(Given(scenes), k=[301])
    with pytest.raises(UserError, match="not finite, the encoder has diverged"):
        _evaluate(Given(scenes, noise=float("nan")))
