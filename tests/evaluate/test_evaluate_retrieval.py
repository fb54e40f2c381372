"""Retrieval at three grains, against scikit-learn's average precision, hand-made rankings and known networks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packing import pack
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from polygrain.backbones.contract import Backbone, Encoded, from_map
from polygrain.backbones.load import load_backbone
from polygrain.config.project import Project
from polygrain.config.stages import stage_of
from polygrain.data.packed import open_packed
from polygrain.evaluate.given import Encoder
from polygrain.evaluate.retrieval import evaluate, ranked
from polygrain.evaluate.two_views import pairs
from polygrain.provenance.code import code_hashes
from polygrain.provenance.errors import UserError
from polygrain.views.recipe import Recipe

RESNET = {"name": "resnet", "widths": [8, 16], "strides": [1, 2], "blocks": [1, 1], "stem_stride": 1}
SHOWN = {"size": 16, "resize": None, "batch": 32, "workers": 0, "train": None, "validation": None, "test": None}
VALUES: dict[str, Any] = {"images": 60, "scale": [0.5, 1.0], "ratio": [0.75, 4 / 3], "flip": 0.5, "seed": 0}
COARSE = {"names": ["a", "b"], "of_class": [0, 0, 1, 1, 1, 1]}


class Shades(Backbone):
    """The vector of an image is decided by its mean grey value alone: `turn` maps it to an angle."""

    width = 2

    def __init__(self, turn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.turn, self.weight = turn, nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Encoded:
        angle = self.turn(images.double().mean(dim=(1, 2, 3)))
        return from_map(torch.stack([angle.cos(), angle.sin()], dim=1)[:, :, None, None].float())


def _encoder(root: Path, network: Backbone, shades: np.ndarray, labels: np.ndarray, **manifest: Any) -> Encoder:
    """A data set of even grey images, or of noise around them."""
    count = len(labels)
    images = np.broadcast_to(shades.reshape(count, 1, -1, 1)[:, :, :1], (count, 1, 16, 16))
    splits = {"train": np.arange(30), "validation": np.arange(30, 60), "test": np.arange(60, count)}
    data = open_packed(pack(root, images, labels, splits, classes=list("abcdef"), **manifest))
    return Encoder(network.eval().requires_grad_(False), {"toy": data}, ([0.0], [1.0]), **SHOWN)


def _even(root: Path, turn: Callable[[Tensor], Tensor], **manifest: Any) -> Encoder:
    """120 images of 120 shades of grey; classes and superclasses are intervals of shades."""
    labels = np.concatenate([np.arange(60) % 6, np.repeat(np.arange(6), 10)])
    shades = np.concatenate([np.arange(60), 60 + np.arange(60) + 20 * (np.arange(60) // 10)])
    return _encoder(root, Shades(turn), shades, labels, **manifest)


def test_rankings_by_hand() -> None:
    """Ranks of the relevant entries: 1 and 3; 2; 6 (after equal cosines). What is outside the gallery is skipped."""
    cosine = np.array([[0.9, 0.8, 0.7, 0.1, 0.0, -1.0], [0.1, 0.9, 0.8, 0.7, 0.6, 0.5], [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]])
    relevant, gallery = np.zeros((3, 6), bool), np.ones((3, 6), bool)
    relevant[0, [0, 2]] = relevant[1, 3] = relevant[2, 5] = True
    gallery[1, 1] = False
    scores = ranked(cosine, relevant, gallery)
    assert scores["recall1"].tolist() == [1, 0, 0]
    assert scores["recall5"].tolist() == [1, 1, 0]
    np.testing.assert_allclose(scores["map"], [(1 + 2 / 3) / 2, 1 / 2, 1 / 6])
    assert scores["recall1"].dtype == np.int64
    assert scores["map"].dtype == np.float64


def test_average_precision_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    cosine, relevant = generator.normal(size=(20, 50)), generator.random((20, 50)) < 0.2
    relevant[:, 7] = True
    gallery = np.ones_like(relevant)
    gallery[:, 3], relevant[:, 3] = False, False
    kept = [place for place in range(50) if place != 3]
    expected = [average_precision_score(relevant[row, kept], cosine[row, kept]) for row in range(20)]
    np.testing.assert_allclose(ranked(cosine, relevant, gallery)["map"], expected, atol=1e-12)


def test_a_perfect_network_finds_everything(tmp_path: Path) -> None:
    result = evaluate(_even(tmp_path, lambda mean: mean * 3, coarse=COARSE), **VALUES)
    value = {name: number.value for name, number in result.values.items()}
    assert {value[f"toy/instance/{metric}"] for metric in ("recall1", "recall5", "map")} == {1.0}
    assert value["toy/class/recall1"] == value["toy/class/recall5"] == 1.0
    assert value["toy/class/map"] == pytest.approx(1.0)
    assert value["toy/superclass/map"] > 0.9
    assert value["toy/alignment"] == pytest.approx(0, abs=1e-6)
    assert result.examples["toy/instance"].index.tolist() == list(range(60, 120))
    assert all(result.agrees(name) for name in result.values)
    assert {result.values["toy/alignment"].measure.direction} == {"none"}


def test_a_network_that_knows_the_superclass_only(tmp_path: Path) -> None:
    """Shades below and above a bound have one vector each: classes and images within are found by their order only."""
    bound = (60 + 20 + 20 + 10) / 255  # between the second and the third class
    result = evaluate(_even(tmp_path, lambda mean: (mean > bound).double(), coarse=COARSE), **VALUES)
    value = {name: number.value for name, number in result.values.items()}
    assert value["toy/superclass/map"] == value["toy/superclass/recall1"] == 1.0
    # equal cosines in the order of the images: the first of 20 and of 40 finds itself, the first five of each recall 5
    assert value["toy/instance/recall1"] == 2 / 60
    assert value["toy/instance/recall5"] == 10 / 60
    assert value["toy/class/map"] < 0.7


def test_a_constant_network_is_chance(tmp_path: Path) -> None:
    result = evaluate(_even(tmp_path, lambda mean: mean * 0, coarse=COARSE), **VALUES)
    value = {name: number.value for name, number in result.values.items()}
    assert value["toy/instance/recall1"] == 1 / 60
    assert value["toy/instance/recall5"] == 5 / 60
    assert value["toy/instance/map"] == pytest.approx(np.mean(1 / np.arange(1, 61)))
    assert value["toy/alignment"] == 0.0


def test_permuted_labels_are_chance_and_leave_instances_alone(tmp_path: Path) -> None:
    labels = np.random.default_rng(1).permutation(np.arange(360) % 6)
    network = load_backbone(**RESNET, channels=1)
    shades = np.random.default_rng(2).integers(0, 256, 360)
    result = evaluate(_encoder(tmp_path, network, shades, labels, coarse=COARSE), **{**VALUES, "images": 300})
    assert result.values["toy/class/map"].value == pytest.approx(1 / 6, abs=0.04)
    assert result.values["toy/superclass/map"].value == pytest.approx((1 / 3) ** 2 + (2 / 3) ** 2, abs=0.05)


def test_a_class_of_one_image_is_left_out_and_one_superclass_is_no_task(tmp_path: Path) -> None:
    labels = np.concatenate([np.arange(60) % 6, [5], np.arange(59) % 2])
    encoder = _encoder(tmp_path, Shades(lambda mean: mean), np.arange(120), labels)
    result = evaluate(encoder, **VALUES)
    assert result.examples["toy/class"].index.tolist() == list(range(61, 120))
    assert len(result.examples["toy/instance"].index) == 60
    assert not [name for name in result.values if "superclass" in name]
    alone = evaluate(encoder, **{**VALUES, "images": 2})
    assert alone.note == "toy: no two of the 2 test images share a class"
    assert not [name for name in alone.values if "class" in name]


def test_views_have_their_geometry_and_do_not_depend_on_other_images(tmp_path: Path) -> None:
    network = load_backbone(**RESNET, channels=1)
    encoder = _encoder(tmp_path, network, np.arange(120), np.arange(120) % 6)
    recipe = Recipe(16, (0.5, 1.0), (0.75, 1.3), 0.5)
    whole = list(pairs(encoder, "toy", np.arange(60, 100), (recipe, recipe), 0))
    assert [len(pair.positions) for pair in whole] == [32, 8]
    assert [len(pair.encoded[1].pooled) for pair in whole] == [32, 8]
    assert [len(pair.geometry[1].box) for pair in whole] == [32, 8]
    few = next(pairs(encoder, "toy", np.arange(60, 65), (recipe, recipe), 0))
    for view in (0, 1):
        assert torch.equal(few.encoded[view].pooled, whole[0].encoded[view].pooled[:5])
        assert torch.equal(few.geometry[view].box, whole[0].geometry[view].box[:5])
    assert not torch.equal(few.geometry[0].box, few.geometry[1].box)
    other = next(pairs(encoder, "toy", np.arange(60, 65), (recipe, recipe), 1))
    assert not torch.equal(few.geometry[0].box, other.geometry[0].box)


def test_the_same_bits_twice(tmp_path: Path) -> None:
    encoder = _encoder(tmp_path, load_backbone(**RESNET, channels=1), np.arange(120), np.arange(120) % 6)
    first, again = evaluate(encoder, **VALUES), evaluate(encoder, **VALUES)
    assert first.values == again.values
    for key, rows in first.examples.items():
        for metric, score in rows.scores.items():
            np.testing.assert_array_equal(score, again.examples[key].scores[metric])


@pytest.mark.parametrize("change", [{"images": 1}, {"scale": [0.0, 1.0]}, {"ratio": [2.0, 1.0]}, {"flip": 2.0}])
def test_values_that_make_no_sense_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="retrieval: images"):
        evaluate(_even(tmp_path, lambda mean: mean), **{**VALUES, **change})


@pytest.mark.parametrize("protocol", ["retrieval", "correspondence"])
def test_its_code_holds_what_is_loaded_by_name(protocol: str) -> None:
    project = Project.here()
    stage = stage_of(project, "evaluate", f"runs/smoke/fashion-mnist/mncl/base/seed0/results/{protocol}")
    hashed = {f"polygrain.{name}" for name in ("train.images.pixels", "train.images.encoded", "views.randaugment")}
    assert hashed & code_hashes(stage.entries, project.source).keys() == {"polygrain.train.images.pixels"}
