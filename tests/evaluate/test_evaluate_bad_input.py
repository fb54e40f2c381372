"""Data that no protocol was made for: each gives a result that can be saved, or one clear line.

Every protocol of params/evaluate takes part that judges features or images, with its published values but for what must
fit the small data.
"""

import warnings
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from packing import pack
from test_evaluate_features import RESNET, VIT, config, prefixed, write_checkpoint, write_packed

from polygrain.backbones.load import load_backbone
from polygrain.data.packed import open_packed
from polygrain.evaluate.given import Encoder, encoder_of
from polygrain.evaluate.result import Result
from polygrain.evaluate.store import Features, FeatureSet, Split
from polygrain.provenance.errors import UserError

CLASSES = 4
SHOWN = {"size": 16, "resize": None, "batch": 16, "workers": 0, "train": None, "validation": None, "test": None}
SMALL: dict[str, Any] = {
    "k": [1, 3], "shots": [1], "draws": 2, "labels": ["all"], "iterations": 20, "over": 2, "restarts": 2,
    "images": 12, "epochs": 1, "clusters": 4, "batch": 16, "decays": [0.1, 0.001], "c": [0.1, 1.0],
    "groups": {"toy": {"one": [0, 1], "other": [2, 3]}},
}  # fmt: skip
FINE_TUNING: dict[str, Any] = {"epochs": [1], "head_factors": [1.0], "rates": [0.01]}


def published(needs: tuple[str, ...]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> module and values of the protocols that need these, scenes left out."""
    found = {}
    for path in sorted(Path("params/evaluate").glob("*.yaml")):
        declared = yaml.safe_load(path.read_text(encoding="utf-8"))
        if declared.get("needs") in needs and "scenes" not in declared:
            module = (declared.get("module") or path.stem).replace("-", "_")
            own = SMALL | FINE_TUNING if module == "fine_tuning" else SMALL
            values = declared["values"]
            found[path.stem] = (module, {key: own.get(key, value) for key, value in values.items()})
    return found


FEATURES, IMAGES = published(("features",)), published(("tokens", "backbone"))
LABELS = {
    "one class": lambda rows, part: np.zeros(rows, np.int64),
    "no image of a class in train": lambda rows, part: np.arange(rows) % (CLASSES - (part == "train")),
    "no image of a class in validation": lambda rows, part: np.arange(rows) % (CLASSES - (part == "validation")),
    "no image of a class in test": lambda rows, part: np.arange(rows) % (CLASSES - (part == "test")),
    "balanced": lambda rows, part: np.arange(rows) % CLASSES,
}
CASES = {
    # case: (labels, rows of train, validation and test, constant features)
    "one class": ("one class", (40, 16, 16), False),
    "constant features": ("balanced", (40, 16, 16), True),
    "no image of a class in train": ("no image of a class in train", (40, 16, 16), False),
    "no image of a class in validation": ("no image of a class in validation", (40, 16, 16), False),
    "no image of a class in test": ("no image of a class in test", (40, 16, 16), False),
    "one image per class": ("balanced", (CLASSES, CLASSES, CLASSES), False),
    "one image": ("balanced", (1, 1, 1), False),
}


def made_features(case: str) -> Features:
    labels, rows, constant = CASES[case]
    generator, splits, first = np.random.default_rng(0), [], 0
    for part, count in zip(("train", "validation", "test"), rows, strict=True):
        features = np.full((count, 6), 0.1) if constant else generator.normal(size=(count, 6))
        splits.append(Split(features.astype(np.float32), LABELS[labels](count, part), np.arange(first, first + count)))
        first += count
    return Features({"toy": FeatureSet("toy", CLASSES, *splits)})


def made_encoder(case: str, root: Path) -> Encoder:
    labels, rows, constant = CASES[case]
    parts = dict(zip(("train", "validation", "test"), rows, strict=True))
    images = np.random.default_rng(0).integers(0, 256, (sum(rows), 1, 16, 16))
    starts = np.cumsum([0, *rows])
    splits = {part: np.arange(start, start + rows) for start, (part, rows) in zip(starts, parts.items(), strict=False)}
    all_labels = np.concatenate([LABELS[labels](count, part) for part, count in parts.items()])
    coarse = {"names": ["a", "b"], "of_class": [0, 0, 1, 1]}
    data = open_packed(pack(root, images, all_labels, splits, classes=list("abcd"), coarse=coarse))
    torch.manual_seed(0)
    network = load_backbone(**RESNET, channels=1).eval().requires_grad_(False)
    if constant:
        for weight in network.parameters():
            weight.zero_()
    return Encoder(network, {"toy": data}, (data.mean, data.std), "cpu", lambda prefix: network, **SHOWN)


def judged(protocol: str, module: str, given: Any, values: dict[str, Any], folder: Path) -> Result | str:
    """The result, saved and read again, or the line; a warning of numpy is an error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result: Result = import_module(f"polygrain.evaluate.{module}").evaluate(given, **values)
        result.save(folder, protocol)
    except UserError as error:
        return str(error)
    return Result.load(folder, protocol)


def check(found: Result | str) -> None:
    if isinstance(found, str):
        assert "\n" not in found
        assert "toy" in found
        assert "correct the protocol" not in found
        return
    assert found.values
    assert all(found.agrees(name) for name in found.values)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("protocol", FEATURES)
def test_features(protocol: str, case: str, tmp_path: Path) -> None:
    module, values = FEATURES[protocol]
    found = judged(protocol, module, made_features(case), values, tmp_path)
    check(found)
    if case == "constant features":
        assert isinstance(found, Result)
        assert "collapsed" in found.note


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("protocol", IMAGES)
def test_images(protocol: str, case: str, tmp_path: Path) -> None:
    module, values = IMAGES[protocol]
    check(judged(protocol, module, made_encoder(case, tmp_path / "data"), values, tmp_path))


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("protocol", IMAGES)
def test_a_split_without_images(protocol: str, part: str, tmp_path: Path) -> None:
    """Of features, `FeatureSet` refuses it (test_evaluate_store.py)."""
    encoder = made_encoder("constant features", tmp_path / "data")
    data = encoder.datasets["toy"]
    emptied = {
        name: data.split(name) if name != part else np.zeros(0, np.int64) for name in SHOWN if name in data.splits
    }
    encoder.datasets = {"toy": replace(data, splits=emptied)}
    module, values = IMAGES[protocol]
    found = judged(protocol, module, encoder, values, tmp_path)
    check(found)


@pytest.mark.parametrize("needs", ["features", "tokens"])
def test_a_checkpoint_of_another_backbone(needs: str, tmp_path: Path) -> None:
    """Both ways begin with `encoder_of`."""
    data = {"grey": write_packed(tmp_path / "grey", channels=1, size=16, seed=1)}
    checkpoint = write_checkpoint(tmp_path / "c.safetensors", prefixed(load_backbone(**VIT, channels=1)))
    chosen = {**config(), "datasets": ["grey"]}
    if needs == "features":
        extract = import_module("polygrain.evaluate.features").extract
        load = partial(extract, chosen, checkpoint, data, tmp_path / "f.safetensors")
    else:
        load = partial(encoder_of, chosen, checkpoint, data)
    with pytest.raises(UserError, match=r"c\.safetensors: does not fit backbone resnet \(missing: .*again") as e:
        load()
    assert "\n" not in str(e.value)
    assert not (tmp_path / "f.safetensors").exists()
