"""Classes and superclasses side by side: the protocol knn on both, and the groups of the data sets' readers."""

import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from polygrain.evaluate import knn, superclasses
from polygrain.evaluate.store import SPLITS, Features
from polygrain.evaluate.superclasses import evaluate
from polygrain.provenance.errors import UserError

NEIGHBOURS: dict[str, Any] = {
    "spaces": ["raw", "whitened"], "k": [20, 5], "temperature": 0.07, "shrinkage": 0.001, "byte_budget": 1 << 26,
}  # fmt: skip
GROUPS = {"toy": {"even": [4, 0, 2], "odd": [1, 3]}}
VALUES = {"groups": GROUPS, **NEIGHBOURS}


def test_both_are_the_protocol_knn(features) -> None:
    made = features(separation=0.4)
    data = made.datasets["toy"]
    coarse = replace(
        data,
        classes=2,
        **{name: replace(getattr(data, name), labels=np.array(getattr(data, name).labels) % 2) for name in SPLITS},
    )
    result = evaluate(made, **VALUES)
    for grain, given in (("class", data), ("superclass", coarse)):
        alone = knn.evaluate(Features({"toy": given}), **NEIGHBOURS)
        for ending in ("", "/whitened"):
            for metric in ("top1", "macro"):
                number = alone.values[f"toy{ending}/{metric}"]
                assert result.values[f"toy/{grain}{ending}/{metric}"] == number
            assert result.selected[f"toy/{grain}{ending}"] == alone.selected[f"toy{ending}"]
            np.testing.assert_array_equal(
                result.examples[f"toy/{grain}{ending}"].scores["top1"], alone.examples[f"toy{ending}"].scores["top1"]
            )
    assert len(result.values) == 8


def test_a_superclass_is_found_where_its_classes_are_mixed_up(features) -> None:
    """Classes 0, 2, 4 have one centre and 1, 3 another: their superclass is certain, the class a guess."""
    data = features(separation=20.0).datasets["toy"]
    splits = {}
    for name in SPLITS:
        part, centres = getattr(data, name), np.eye(24, dtype=np.float32)[:2] * 50
        noise = np.random.default_rng(len(part)).normal(size=(len(part), 24)).astype(np.float32)
        splits[name] = replace(part, features=centres[part.labels % 2] + noise)
    result = evaluate(Features({"toy": replace(data, **splits)}), **VALUES)
    assert result.values["toy/superclass/top1"].value == 1.0
    assert 0.25 < result.values["toy/class/top1"].value < 0.6


@pytest.mark.parametrize("name", ["fashion-mnist", "animal-mnist", "cifar-10", "stl-10", "imagenette"])
def test_the_groups_are_those_of_the_reader(name: str) -> None:
    given = yaml.safe_load(Path("params/evaluate/superclasses.yaml").read_text(encoding="utf-8"))["values"]["groups"]
    reader = import_module(f"polygrain.data.readers.{name.replace('-', '_')}")
    assert tuple(given[name]) == reader.COARSE
    of_class = superclasses.superclass_of_class(name, given[name], len(reader.COARSE_OF_CLASS))
    assert of_class.tolist() == list(reader.COARSE_OF_CLASS)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"other": {}}, "superclasses: groups holds no superclasses for toy; add them"),
        ({"toy": {"a": [0, 1, 2], "b": [3]}}, "the groups of toy must hold each of the labels 0..4 once"),
        ({"toy": {"a": [0, 1, 2], "b": [3, 4, 4]}}, "the groups of toy must hold each of the labels 0..4 once"),
        ({"toy": {"a": [0, 1, 2, 3, 4], "b": []}}, "once and none be empty"),
    ],
)
def test_groups_that_do_not_fit_are_refused(features, groups, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(features(), **{**VALUES, "groups": groups})


def test_it_starts_without_torch() -> None:
    code = f"import sys, polygrain.evaluate.run, {superclasses.__name__}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
