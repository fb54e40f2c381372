"""Robustness: the probe is that of `linear`, and numbers are means over the severities of every kind."""

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
from polygrain.evaluate import linear
from polygrain.evaluate.corruptions import CORRUPTIONS, SHIFTS, corrupt
from polygrain.evaluate.given import Encoder
from polygrain.evaluate.robustness import evaluate
from polygrain.evaluate.store import SPLITS, Features, FeatureSet, Split
from polygrain.provenance.errors import UserError

RESNET = {"name": "resnet", "widths": [8, 16], "strides": [1, 2], "blocks": [1, 1], "stem_stride": 2}
SHOWN = {"size": 16, "resize": None, "batch": 32, "workers": 0, "train": None, "validation": None, "test": None}
VALUES: dict[str, Any] = {"images": 40, "decays": [0.01, 0.1], "iterations": 100, "tolerance": 1e-5, "seed": 0}


class Grey(Backbone):
    """The vector of an image is its mean pixel; corruptions that keep the mean do not change it."""

    width = 1

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Encoded:
        return from_map(images.mean(dim=(1, 2, 3))[:, None, None, None])


def _encoder(root: Path, network: Backbone, *, permuted: bool = False) -> Encoder:
    """Dark and bright images of little noise."""
    generator = np.random.default_rng(0)
    labels = np.arange(240) % 2
    images = (60 + 120 * labels)[:, None, None, None] + generator.integers(-20, 20, (240, 1, 16, 16))
    splits = {"train": np.arange(120), "validation": np.arange(120, 180), "test": np.arange(180, 240)}
    given = generator.permutation(labels) if permuted else labels
    data = open_packed(pack(root, images, given, splits, classes=["dark", "bright"]))
    return Encoder(network.eval().requires_grad_(False), {"toy": data}, (data.mean, data.std), **SHOWN)


def test_a_probe_of_brightness_survives_what_keeps_the_mean(tmp_path: Path) -> None:
    result = evaluate(_encoder(tmp_path, Grey()), **VALUES)
    value = {name.removeprefix("toy/"): number.value for name, number in result.values.items()}
    for kind in ("clean", "contrast", "motion-blur", "jpeg", "pixelate", "rotation", "shifted"):
        assert value[f"{kind}/top1"] == 1.0, kind
    assert value["corrupted/top1"] == pytest.approx(np.mean([value[f"{kind}/top1"] for kind in CORRUPTIONS]))
    assert value["shifted/top1"] == pytest.approx(np.mean([value[f"{kind}/top1"] for kind in SHIFTS]))
    assert value["relative"] == pytest.approx(value["corrupted/top1"])
    # dark images in fog have the brightness of bright ones
    assert value["fog/top1"] < 1.0
    assert all(result.agrees(name) for name in result.values)
    assert result.examples["toy/fog"].index.tolist() == list(range(180, 220))
    assert set(np.unique(result.examples["toy/fog"].scores["top1"] * 5)) <= set(range(6))


def test_clean_accuracy_and_decay_are_those_of_linear_and_fog_is_counted_by_hand(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = _encoder(tmp_path, load_backbone(**RESNET, channels=1))
    parts = {}
    for name in SPLITS:
        rows = encoder.positions("toy", name)
        vectors = torch.cat([views.pooled for _, views in encoder.encoded("toy", rows)]).numpy()
        parts[name] = Split(vectors, encoder.labels("toy", rows), rows)
    probe = {"labels": ["all"], "decays": [0.01, 0.1], "folds": 2, "iterations": 100, "tolerance": 1e-5}
    expected = linear.evaluate(Features({"toy": FeatureSet("toy", 2, **parts)}), **probe)
    result = evaluate(encoder, **{**VALUES, "images": 60})
    assert result.values["toy/clean/top1"].value == expected.values["toy/top1"].value
    assert {key: result.selected["toy"][key] for key in ("decay", "validation_top1")} == {
        key: expected.selected["toy"][key] for key in ("decay", "validation_top1")
    }
    # the same data set with its test images in fog, five times: the mean of what `linear` then says
    scores, rows = [], encoder.positions("toy", "test")
    images = np.array(encoder.datasets["toy"].images)
    for severity in range(1, 6):
        changed = images.copy()
        changed[rows] = corrupt(images[rows], "fog", severity, 0, rows)
        foggy = _changed(encoder, tmp_path / f"fog-{severity}", changed)
        shown = torch.cat([views.pooled for _, views in foggy.encoded("toy", rows)]).numpy()
        test = Split(shown, parts["test"].labels, rows)
        found = linear.evaluate(Features({"toy": FeatureSet("toy", 2, **{**parts, "test": test})}), **probe)
        scores.append(found.examples["toy"].scores["top1"])
    np.testing.assert_allclose(result.examples["toy/fog"].scores["top1"], np.mean(scores, axis=0))


def _changed(encoder: Encoder, root: Path, images: np.ndarray) -> Encoder:
    data = encoder.datasets["toy"]
    other = open_packed(pack(root, images, np.array(data.labels), dict(data.splits), classes=["dark", "bright"]))
    return Encoder(encoder.network, {"toy": other}, (encoder.mean, encoder.std), **SHOWN)


def test_permuted_labels_are_chance_and_the_bits_are_the_same_twice(tmp_path: Path) -> None:
    encoder = _encoder(tmp_path, Grey(), permuted=True)
    first, again = (evaluate(encoder, **{**VALUES, "images": 60}) for _ in range(2))
    assert first.values == again.values
    assert first.values["toy/corrupted/top1"].value == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("change", [{"images": 0}, {"iterations": 0}, {"tolerance": 0.0}, {"decays": []}])
def test_values_that_make_no_sense_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="robustness: images"):
        evaluate(_encoder(tmp_path, Grey()), **{**VALUES, **change})
