"""Correspondence of cells: geometry by hand and by drawn points, and networks whose matches are known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packing import pack
from torch import Tensor, nn

from polygrain.backbones.contract import Backbone, Encoded, from_map
from polygrain.backbones.load import load_backbone
from polygrain.data.packed import open_packed
from polygrain.evaluate.correspondence import centres, evaluate, nearest, scored, true_places
from polygrain.evaluate.given import Encoder
from polygrain.evaluate.two_views import Pair
from polygrain.provenance.errors import UserError
from polygrain.views.batch import Geometry

SIDE = 32
SHOWN = {"size": SIDE, "resize": None, "batch": 32, "workers": 0, "train": None, "validation": None, "test": None}
VALUES: dict[str, Any] = {
    "images": 40, "scale": [0.4, 1.0], "ratio": [0.75, 4 / 3], "flip": 0.5, "overlap": 0.3, "alpha": 0.1, "seed": 0,
}  # fmt: skip


class Cells(Backbone):
    """The map of 8 x 8 cells is the mean of the pixels of each, or a constant."""

    width = 4

    def __init__(self, *, constant: bool = False) -> None:
        super().__init__()
        self.constant, self.weight = constant, nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Encoded:
        cells = nn.functional.avg_pool2d(images, SIDE // 8) * 2 - 1
        return from_map(torch.ones_like(cells) if self.constant else cells)


def _encoder(root: Path, network: Backbone, *, noise: bool = False) -> Encoder:
    """Four channels, cosine and sine of the row and of the column: the place is to be read from every pixel."""
    angle = np.linspace(0, np.pi, SIDE)
    waves = [np.cos(angle), np.sin(angle)]
    image = np.stack([*(np.tile(wave[:, None], SIDE) for wave in waves), *(np.tile(wave, (SIDE, 1)) for wave in waves)])
    images = np.tile((127.5 + 127 * image).round(), (60, 1, 1, 1))
    if noise:
        images = np.random.default_rng(0).integers(0, 256, (60, 4, SIDE, SIDE))
    splits = {"train": np.arange(10), "validation": np.arange(10, 20), "test": np.arange(20, 60)}
    data = open_packed(pack(root, images, np.arange(60) % 2, splits, classes=list("ab")))
    return Encoder(network.eval().requires_grad_(False), {"toy": data}, ([0.0] * 4, [1.0] * 4), **SHOWN)


def _geometry(boxes: list[list[int]], flips: list[bool]) -> Geometry:
    return Geometry(torch.tensor(boxes), torch.tensor(flips), (SIDE, SIDE))


def test_places_by_hand() -> None:
    """Maps of 2 x 2 cells. The first view shows rows and columns 0..8 of the image, the second 4..12."""
    first, second = (
        _geometry([[0, 0, 8, 8]] * 3, [False, False, True]),
        _geometry([[4, 4, 8, 8]] * 3, [False, True, False]),
    )
    found = true_places((first, second), 2, 2, 16)
    # centres at 2 and 6 of the image are at -0.5 and 0.5 cells of the second view
    plain = [[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]]
    np.testing.assert_allclose(found[0], plain)
    np.testing.assert_allclose(found[1], [[row, 2 - column] for row, column in plain])
    np.testing.assert_allclose(found[2], [plain[place] for place in (1, 0, 3, 2)])
    assert centres(1, 2).tolist() == [[0.5, 0.5], [0.5, 1.5]]


def test_places_are_those_of_the_geometry_of_views() -> None:
    """A point of the first view and its place in the second are one point of the image."""
    generator = np.random.default_rng(0)
    boxes = [
        np.concatenate([generator.integers(0, 9, (6, 2)), generator.integers(5, 20, (6, 2))], axis=1) for _ in "ab"
    ]
    flips = [generator.random(6) < 0.5 for _ in "ab"]
    first, second = (_geometry(box.tolist(), flip.tolist()) for box, flip in zip(boxes, flips, strict=True))
    found = true_places((first, second), 3, 5, 60)
    pixel = np.broadcast_to(centres(3, 5) * (20, 12), (6, 15, 2))
    there = second.to_source(torch.from_numpy(found * (20, 12)), 60)
    np.testing.assert_allclose(there.numpy(), first.to_source(torch.tensor(pixel), 60).numpy(), atol=1e-9)


def test_the_nearest_cell_by_cosine_and_the_first_of_equals() -> None:
    tokens = np.array([[[1.0, 0.0], [0.0, 2.0]]], np.float32)
    others = np.array([[[0.0, 0.1], [9.0, 9.0], [0.0, 5.0], [3.0, 0.1]]], np.float32)
    assert nearest(tokens, others).tolist() == [[3, 0]]


def test_only_cells_that_both_views_see_count() -> None:
    """The last of four cells alone lies in the second view, at its first cell, which is every match."""
    first, second = _geometry([[0, 0, 8, 8]], [False]), _geometry([[4, 4, 8, 8]], [False])
    even = from_map(torch.ones(1, 3, 2, 2))
    found = scored(Pair(np.array([7]), (even, even), (first, second)), 16, 0.1)
    assert {name: sums.tolist() for name, sums in found.items()} == {
        "cells": [1.0], "same": [1.0], "near": [1.0], "pck": [1.0], "chance": [1.0],
    }  # fmt: skip
    # a match two cells away in a map of 4 x 4 is neither near nor within a tenth of the side
    cells = torch.eye(16).reshape(1, 4, 4, 16).permute(0, 3, 1, 2)
    away = from_map(cells.roll(2, dims=3))
    whole = _geometry([[0, 0, 8, 8]], [False])
    found = scored(Pair(np.array([7]), (from_map(cells), away), (whole, whole)), 16, 0.1)
    assert [found[name].tolist() for name in ("cells", "same", "near", "pck")] == [[16.0], [0.0], [0.0], [0.0]]
    near = scored(Pair(np.array([7]), (from_map(cells), away), (whole, whole)), 16, 0.5)
    assert near["pck"].tolist() == [16.0]


def test_a_network_that_knows_the_place_matches_it(tmp_path: Path) -> None:
    result = evaluate(_encoder(tmp_path, Cells()), **VALUES)
    value = {name.removeprefix("toy/"): number.value for name, number in result.values.items()}
    assert value["near"] > 0.99
    assert value["same"] > 0.85  # some places lie on the border of two cells
    assert value["pck"] > 0.9
    assert 0.05 < value["chance"] < 0.15  # 9 of 64 cells, less at the border
    assert all(result.agrees(name) for name in result.values)
    assert result.values["toy/chance"].measure.direction == "none"


def test_without_the_flips_in_the_geometry_it_would_not_match(tmp_path: Path) -> None:
    """The test above could fail: a map mirrored where the view is mirrored no longer knows the place."""

    class Mirrored(Cells):
        def forward(self, images: Tensor) -> Encoded:
            return from_map(super().forward(images).map.flip(-1))

    assert evaluate(_encoder(tmp_path, Mirrored()), **VALUES).values["toy/near"].value < 0.6


def test_a_network_of_constants_is_chance(tmp_path: Path) -> None:
    """Every match is the first cell: the share of places within one cell of the corner's centre."""
    result = evaluate(_encoder(tmp_path, Cells(constant=True)), **VALUES)
    assert result.values["toy/near"].value < 0.1
    assert result.values["toy/same"].value < 0.05


def test_random_convolutions_match_above_chance(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = load_backbone(name="resnet", widths=[8, 16], strides=[1, 2], blocks=[1, 1], stem_stride=2, channels=4)
    result = evaluate(_encoder(tmp_path, network), **VALUES)
    assert result.values["toy/near"].value > 2 * result.values["toy/chance"].value


def test_same_place_same_crop_of_noise_is_certain(tmp_path: Path) -> None:
    """Without crop and flip the cells of noise find themselves: all numbers but chance are 1."""
    still = {**VALUES, "scale": [1.0, 1.0], "ratio": [1.0, 1.0], "flip": 0.0}
    value = {
        name: number.value for name, number in evaluate(_encoder(tmp_path, Cells(), noise=True), **still).values.items()
    }
    assert value["toy/same"] == value["toy/near"] == value["toy/pck"] == 1.0
    # by hand: an inner cell has 9 of 64 cells within reach, one at the border 6, one in a corner 4
    assert value["toy/chance"] == pytest.approx((36 * 9 + 24 * 6 + 4 * 4) / 64**2)


def test_the_same_bits_twice(tmp_path: Path) -> None:
    encoder = _encoder(tmp_path, Cells(), noise=True)
    first, again = evaluate(encoder, **VALUES), evaluate(encoder, **VALUES)
    assert first.values == again.values
    np.testing.assert_array_equal(first.examples["toy"].scores["near"], again.examples["toy"].scores["near"])
    assert evaluate(encoder, **{**VALUES, "seed": 1}).values != first.values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 0}, "correspondence: images"),
        ({"overlap": 1.0}, "correspondence: overlap"),
        ({"alpha": 0.0}, "alpha"),
    ],
)
def test_values_that_make_no_sense_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(_encoder(tmp_path, Cells()), **{**VALUES, **change})
