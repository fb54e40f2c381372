"""Clusters of cells: information against scikit-learn, and networks that know only the place or only the class."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packing import pack
from sklearn.metrics import mutual_info_score
from torch import Tensor, nn

from polygrain.backbones.contract import Backbone, Encoded, from_map
from polygrain.data.packed import open_packed
from polygrain.evaluate.clustering import contingency
from polygrain.evaluate.given import Encoder
from polygrain.evaluate.segments import evaluate, information
from polygrain.provenance.errors import UserError

SHOWN = {"size": 8, "resize": None, "batch": 16, "workers": 0, "train": None, "validation": None, "test": None}
VALUES: dict[str, Any] = {"images": 40, "clusters": 4, "restarts": 3, "iterations": 20, "seed": 0}


class Known(Backbone):
    """Maps of 2 x 2 cells, one direction for each place, for each class of images (by brightness), or one for all."""

    width = 4

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.weight = what, nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Encoded:
        directions = torch.eye(4)
        if self.what == "place":
            return from_map(directions.reshape(1, 4, 2, 2).expand(len(images), -1, -1, -1))
        level = (
            (images.mean(dim=(1, 2, 3)) * 4).long().clamp(max=3) if self.what == "class" else torch.zeros(len(images))
        )
        return from_map(directions[level.long()][:, :, None, None].expand(-1, -1, 2, 2))


def _encoder(root: Path, what: str) -> Encoder:
    labels = np.arange(60) % 4
    images = np.broadcast_to((30 + 64 * labels)[:, None, None, None], (60, 1, 8, 8))
    splits = {"train": np.arange(10), "validation": np.arange(10, 20), "test": np.arange(20, 60)}
    data = open_packed(pack(root, images, labels, splits, classes=list("abcd")))
    return Encoder(Known(what).eval().requires_grad_(False), {"toy": data}, ([0.0], [1.0]), **SHOWN)


def test_information_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 5, 200), generator.integers(0, 3, 200)
    for other in (second, first % 3):
        found = information(contingency(first, other, 5, 3))
        assert found == pytest.approx(mutual_info_score(first, other) / math.log(2), abs=1e-12)


@pytest.mark.parametrize(
    ("what", "expected"), [("place", (2.0, 2.0, 0.0)), ("class", (2.0, 0.0, 2.0)), ("nothing", (0.0, 0.0, 0.0))]
)
def test_clusters_follow_what_the_network_knows(tmp_path: Path, what: str, expected: tuple[float, ...]) -> None:
    result = evaluate(_encoder(tmp_path, what), **VALUES)
    found = [result.values[f"toy/{metric}"].value for metric in ("entropy", "position", "class")]
    assert found == pytest.approx(expected, abs=1e-9)
    assert {(number.measure.unit, number.measure.direction) for number in result.values.values()} == {("bits", "none")}


def test_values_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="segments: images"):
        evaluate(_encoder(tmp_path, "place"), **{**VALUES, "restarts": 0})
    with pytest.raises(UserError, match="segments: 161 clusters are asked of 160 cells of toy"):
        evaluate(_encoder(tmp_path / "other", "place"), **{**VALUES, "clusters": 161})
