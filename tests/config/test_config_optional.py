"""The import closure of a stage holds what it runs: one format of images, RandAugment only where it is asked for."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from polygrain.config import optional
from polygrain.config.inputs import code_of, environment_of
from polygrain.config.optional import RANDAUGMENT, shown_images, training_images
from polygrain.config.project import Project
from polygrain.config.stages import stage_of

PROJECT = Project(Path(__file__).resolve().parents[2])
ENCODED = {
    "data.encoded",
    "train.cut",
    "train.images.encoded",
    "train.loader",
    "evaluate.images.encoded",
    "data.shards",
}


def code(verb: str, dataset: str, method: str) -> set[str]:
    stage = stage_of(PROJECT, verb, f"runs/cpu/{dataset}/{method}/base/seed0")
    return {name.removeprefix("polygrain.") for name in code_of(PROJECT, stage)}


@pytest.mark.parametrize("verb", ["pretrain", "features"])
def test_a_stage_on_pixels_depends_on_nothing_that_is_for_encoded_images(verb: str) -> None:
    assert not code(verb, "fashion-mnist", "simclr") & ENCODED
    assert {"data.encoded", "train.loader"} <= code(verb, "imagenette", "simclr")
    stages = [stage_of(PROJECT, verb, f"runs/cpu/{name}/simclr/base/seed0") for name in ("fashion-mnist", "imagenette")]
    assert ["pillow" in environment_of(PROJECT, stage)["packages"] for stage in stages] == [False, True]


def test_only_mugs_asks_for_randaugment() -> None:
    for method in ("mgc", "mncl", "mugs", "pca", "random", "simclr", "smog", "supervised", "wcl"):
        assert ("views.randaugment" in code("pretrain", "fashion-mnist", method)) == (method == "mugs"), method
    assert "views.randaugment" not in code("features", "fashion-mnist", "mugs")


RECIPES: dict[str, Any] = {
    "plain": {"size": 8},
    "off": {"size": 8, "randaugment": {"probability": 0}},
    "strong": {"size": 8, "randaugment": {"probability": 0.5}},
    "either": {"mixed": {"weak": "plain", "strong": "strong"}},
    "neither": {"mixed": {"weak": "plain", "strong": "off"}},
}


@pytest.mark.parametrize(
    ("text", "values", "asked"),
    [
        ('"plain"', {}, False),
        ('"strong"', {}, True),
        ('"either"', {}, True),
        ('"neither", "off"', {}, False),
        ('"strongest", "very strong"', {}, False),
        ('f"st{kind}"', {}, True),
        ('f"pl{kind}"', {}, False),
        ('f"{grain}_{kind}", f"{kind}"', {}, False),
        ('"plain"', {"view": "strong"}, True),
    ],
)
def test_recipes_are_found_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, values: dict[str, str], asked: bool
) -> None:
    method = tmp_path / "polygrain/methods/own_one.py"
    method.parent.mkdir(parents=True)
    method.write_text(f'"""Not strong."""\nVIEWS = [{text}]\n')
    monkeypatch.setattr(optional, "SOURCE", tmp_path)
    optional._texts.cache_clear()
    config = {"augmentation": RECIPES, "format": "pixels", "method": {"name": "own-one", "values": values}}
    found = training_images(copy.deepcopy(config))
    optional._texts.cache_clear()
    assert found[0] == "polygrain.train.images.pixels"
    assert (RANDAUGMENT in found) is asked


def test_each_format_of_the_data_sets_is_shown_by_its_module() -> None:
    formats = {yaml.safe_load(path.read_text())["format"] for path in PROJECT.params.glob("dataset/*.yaml")}
    assert shown_images(["pixels", "encoded", "pixels"]) == tuple(
        f"polygrain.evaluate.images.{name}" for name in sorted(formats)
    )
