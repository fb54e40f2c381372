"""Recipes are closed: what a person mistypes is named, with the nearest known word."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from polygrain.provenance.errors import UserError
from polygrain.views.recipe import Recipe

CROP: dict[str, Any] = {"size": 32, "scale": [0.2, 1.0], "ratio": [0.75, 1.25], "flip": 0.5}
JITTER = {"probability": 0.8, "brightness": 0.4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sise": 3}, "unknown key 'sise'; did you mean 'size'"),
        ({"jitter": {**JITTER, "contarst": 0.1}}, "jitter: unknown key 'contarst'; did you mean 'contrast'"),
        ({"jitter": {"brightness": 0.1}}, "jitter: key 'probability' is missing"),
        ({"jitter": {**JITTER, "hue": 0.6}}, "'jitter.hue' must be a number between 0 and 0.5"),
        ({"jitter": {**JITTER, "brightness": -0.1}}, "'jitter.brightness' must be a number at least 0"),
        ({"blur": {"probability": 0.5}}, "blur: key 'sigma' is missing"),
        ({"blur": {"probability": 0.5, "sigma": [0.0, 1.0]}}, "'blur.sigma' must be a pair 0 < low <= high"),
        ({"solarise": {"probability": 0.5, "threshold": 128}}, "'solarise.threshold' must be a number between 0 and 1"),
        ({"flip": 1.5}, "'flip' must be a number between 0 and 1, not 1.5"),
        ({"flip": float("nan")}, "'flip' must be a number"),
        ({"grey": True}, "'grey' must be a number"),
        ({"size": 32.0}, "'size' must be a whole number"),
        ({"size": 0}, "'size' must be a whole number"),
        ({"scale": [0.2, 1.2]}, "'scale' must be a number between 0 and 1"),
        ({"scale": [0.9, 0.2]}, "'scale' must be a pair 0 < low <= high"),
        ({"scale": 0.2}, "'scale' must be a pair"),
        ({"ratio": [0.75]}, "'ratio' must be a pair"),
    ],
)
def test_faults_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Recipe.from_mapping({**CROP, **change})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", list(CROP))
def test_missing_key_is_named(key: str) -> None:
    with pytest.raises(UserError, match=f"key '{key}' is missing"):
        Recipe.from_mapping({name: value for name, value in CROP.items() if name != key})


def test_parts_that_never_happen_are_left_out() -> None:
    off = {"blur": {"probability": 0, "sigma": [0.1, 2.0]}, "solarise": {"probability": 0.0}}
    assert Recipe.from_mapping(CROP | off | {"jitter": {"probability": 0.8}}) == Recipe.from_mapping(CROP)


def test_grey_yaml_holds_the_named_recipes_without_colour() -> None:
    path = Path(__file__).parents[2] / "params/augmentation/grey.yaml"
    sides = {"input_size": 32, "dataset": {"local_side": 16}}
    config = OmegaConf.create(sides | {"augmentation": OmegaConf.load(path)})
    mapping: Any = OmegaConf.to_container(config, resolve=True)
    recipes = {name: Recipe.from_mapping(value) for name, value in mapping["augmentation"].items()}
    assert {name: recipe.size for name, recipe in recipes.items()} == {
        "global": 32,
        "weak": 32,
        "local": 16,
        "plain": 32,
        "global_a": 32,
        "global_b": 32,
        "local_a": 16,
        "local_b": 16,
    }
    for recipe in recipes.values():
        assert recipe.grey == 0.0
        assert recipe.jitter is None or recipe.jitter.saturation == recipe.jitter.hue == 0.0
    assert recipes["global"].jitter is not None
    assert recipes["weak"].jitter is None
    assert recipes["plain"].flip == 0.0
    assert {name for name, recipe in recipes.items() if recipe.solarise} == {"global_b", "local_b"}
