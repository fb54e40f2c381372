"""Recipes are closed: what a person mistypes is named, with the nearest known word."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from polygrain.config.recipe_models import check_recipes
from polygrain.provenance.errors import UserError
from polygrain.views.recipe import (
    OPERATIONS,
    Blur,
    Erasing,
    Jitter,
    Mixed,
    Overlap,
    RandAugment,
    Recipe,
    Solarise,
    read_recipes,
)

CROP: dict[str, Any] = {"size": 32, "scale": [0.2, 1.0], "ratio": [0.75, 1.25], "flip": 0.5}
JITTER = {"probability": 0.8, "brightness": 0.4}
RANDAUGMENT = {"probability": 0.5, "operations": ["rotate", "invert"], "count": 2, "magnitude": 9, "deviation": 0.5}
ERASING = {"probability": 0.25, "area": [0.02, 0.33], "ratio": [0.3, 3.3]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sise": 3}, "unknown key 'augmentation.one.sise'; did you mean 'size'"),
        (
            {"jitter": {**JITTER, "contarst": 0.1}},
            "unknown key 'augmentation.one.jitter.contarst'; did you mean 'contrast'",
        ),
        ({"jitter": {"brightness": 0.1}}, "key 'augmentation.one.jitter.probability' is missing"),
        ({"jitter": {**JITTER, "hue": 0.6}}, "jitter.hue' must be at most 0.5, not 0.6"),
        ({"jitter": {**JITTER, "brightness": -0.1}}, "jitter.brightness' must be at least 0, not -0.1"),
        ({"blur": {"probability": 0.5}}, "blur.sigma' is missing"),
        ({"blur": {"probability": 0.5, "sigma": [0.0, 1.0]}}, "blur.sigma: must be a pair 0 < low <= high"),
        ({"solarise": {"probability": 0.5, "threshold": 128}}, "solarise.threshold' must be at most 1, not 128"),
        ({"flip": 1.5}, "key 'augmentation.one.flip' must be at most 1, not 1.5"),
        ({"flip": float("nan")}, "flip' must be a finite number, not nan"),
        ({"grey": True}, "grey' must be a number, not True"),
        ({"size": 32.0}, "size' must be a whole number, not 32.0"),
        ({"size": 0}, "size' must be at least 4, not 0"),
        ({"scale": [0.2, 1.2]}, "scale.1' must be at most 1, not 1.2"),
        ({"scale": [0.9, 0.2]}, "scale: must be a pair 0 < low <= high"),
        ({"scale": 0.2}, "scale' must be a list, not 0.2"),
        ({"ratio": [0.75]}, "ratio.1' is missing"),
        ({"interpolation": "nearest"}, "interpolation' must be one of 'bilinear' or 'bicubic', not 'nearest'"),
        ({"overlap": {"minimum": 1.2}}, "overlap.minimum' must be at most 1, not 1.2"),
        ({"overlap": {"maximum": 0.2}}, "unknown key 'augmentation.one.overlap.maximum'; did you mean 'minimum'"),
        ({"randaugment": {"probability": 0.5}}, "randaugment.operations' is missing"),
        (
            {"randaugment": {**RANDAUGMENT, "operations": ["invrt"]}},
            "no operation named 'invrt'; did you mean 'invert'",
        ),
        ({"randaugment": {**RANDAUGMENT, "operations": ["rotate"] * 2}}, "names an operation twice"),
        ({"randaugment": {**RANDAUGMENT, "operations": "rotate"}}, "randaugment.operations' must be a list"),
        ({"randaugment": {**RANDAUGMENT, "count": 3}}, "randaugment: count must be at most the 2 operations, not 3"),
        ({"randaugment": {**RANDAUGMENT, "count": 0}}, "randaugment.count' must be at least 1, not 0"),
        ({"randaugment": {**RANDAUGMENT, "magnitude": 11}}, "randaugment.magnitude' must be at most 10, not 11"),
        ({"randaugment": {**RANDAUGMENT, "deviation": -1}}, "randaugment.deviation' must be at least 0, not -1"),
        ({"erasing": {**ERASING, "area": [0.0, 0.3]}}, "erasing.area: must be a pair 0 < low <= high"),
        ({"erasing": {**ERASING, "ratio": [0.3]}}, "erasing.ratio.1' is missing"),
        ({"erasing": {**ERASING, "before_normalise": 1}}, "erasing.before_normalise' must be true or false, not 1"),
    ],
)
def test_faults_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_recipes("run", {"one": {**CROP, **change}})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", list(CROP))
def test_missing_key_is_named(key: str) -> None:
    with pytest.raises(UserError, match=f"key 'augmentation.one.{key}' is missing"):
        check_recipes("run", {"one": {name: value for name, value in CROP.items() if name != key}})


def test_parts_that_never_happen_are_left_out() -> None:
    off = {"blur": {"probability": 0, "sigma": [0.1, 2.0]}, "solarise": {"probability": 0.0}}
    off |= {"randaugment": {**RANDAUGMENT, "probability": 0.0}, "erasing": {**ERASING, "probability": 0.0}}
    assert Recipe.from_mapping(CROP | off | {"jitter": {"probability": 0.0, "hue": 0.1}}) == Recipe.from_mapping(CROP)


NAMES = {"global", "weak", "local", "plain", "global_a", "global_b", "local_a", "local_b"}
NAMES |= {"anchor", "overlapping", "weak_a", "weak_b", "weak_local", "strong", "strong_local"}
MIXED = {"mixed_a": ("weak_a", "strong", True), "mixed_b": ("weak_b", "strong", True)}
MIXED |= {"mixed_local": ("weak_local", "strong_local", False)}
FILES = ["grey", "colour", "imagenet"]
COLOUR_OPERATIONS = {"invert", "solarise", "solarise-add", "colour"}


def _file(name: str) -> tuple[dict[str, Recipe], dict[str, Mixed]]:
    path = Path(__file__).parents[2] / f"params/augmentation/{name}.yaml"
    size, local = (224, 96) if name == "imagenet" else (32, 16)
    sides = {"input_size": size, "dataset": {"local_side": local}}
    config = OmegaConf.create(sides | {"augmentation": OmegaConf.load(path)})
    mapping: Any = OmegaConf.to_container(config, resolve=True)
    read = read_recipes(mapping["augmentation"])
    mixed = {name: recipe for name, recipe in read.items() if isinstance(recipe, Mixed)}
    return {name: recipe for name, recipe in read.items() if isinstance(recipe, Recipe)}, mixed


@pytest.mark.parametrize("name", FILES)
def test_every_file_holds_the_named_recipes(name: str) -> None:
    recipes, mixed = _file(name)
    assert set(recipes) == NAMES
    size, local = (224, 96) if name == "imagenet" else (32, 16)
    assert {one: recipe.size for one, recipe in recipes.items()} == {
        one: local if "local" in one else size for one in NAMES
    }
    found = {one: (recipe.weak, recipe.strong, recipe.shared) for one, recipe in mixed.items()}
    assert found == {one: (recipes[weak], recipes[strong], shared) for one, (weak, strong, shared) in MIXED.items()}
    assert all(recipe.probability == 0.5 for recipe in mixed.values())


@pytest.mark.parametrize("name", FILES)
def test_recipes_of_mgc_and_mugs_hold_what_the_papers_say_and_small_images_allow(name: str) -> None:
    """mgc.md section 4; mugs.md sections 5.2 and 10.2."""
    recipes, _ = _file(name)
    small, grey = name != "imagenet", name == "grey"
    assert {one for one, recipe in recipes.items() if recipe.overlap} == {"overlapping"}
    assert recipes["overlapping"].overlap == Overlap(0.2)
    for one, blur, solarise in (
        ("anchor", 1.0, False), ("overlapping", 0.1, True), ("weak_a", 1.0, False), ("weak_b", 0.1, True),
        ("weak_local", 0.5, False),
    ):  # fmt: skip
        recipe = recipes[one]
        assert recipe.jitter == (Jitter(0.8, 0.4, 0.4) if grey else Jitter(0.8, 0.4, 0.4, 0.2, 0.1))
        assert recipe.blur == (None if grey else Blur(blur, (0.1, 0.3 if small else 2.0)))
        assert recipe.solarise == (Solarise(0.2) if solarise else None)
        assert recipe.grey == (0.0 if grey else 0.2)
        assert (recipe.randaugment, recipe.erasing, recipe.flip) == (None, None, 0.5)
    for one in ("strong", "strong_local"):
        recipe = recipes[one]
        operations = tuple(it for it in OPERATIONS if not grey or it not in COLOUR_OPERATIONS)
        assert recipe.randaugment == RandAugment(0.5, operations, 2, 6.0 if small else 9.0, 0.5)
        assert recipe.erasing == Erasing(0.25, (0.02, 0.33), (0.3, 3.3))
        assert (recipe.jitter, recipe.blur, recipe.solarise, recipe.grey, recipe.flip) == (None, None, None, 0.0, 0.5)
    large, local = ((0.3, 1.0), (0.1, 0.4)) if small else ((0.25, 1.0), (0.05, 0.25))
    for one in ("weak_a", "weak_b", "strong"):
        assert recipes[one].scale == large
        assert recipes[one].interpolation == ("bilinear" if small else "bicubic")
    for one in ("weak_local", "strong_local"):
        assert recipes[one].scale == local
        assert recipes[one].interpolation == ("bilinear" if small else "bicubic")
    for one in ("anchor", "overlapping"):
        assert recipes[one].scale == (0.2, 1.0)
        assert recipes[one].interpolation == "bilinear"
    assert len({recipe.ratio for one, recipe in recipes.items() if one != "plain"}) == 1


def test_grey_yaml_has_no_colour_and_no_blur() -> None:
    recipes, _ = _file("grey")
    for recipe in recipes.values():
        assert recipe.grey == 0.0
        assert recipe.blur is None
        assert recipe.jitter is None or recipe.jitter.saturation == recipe.jitter.hue == 0.0
    assert recipes["global"].jitter is not None
    strong, weak = recipes["global"].jitter, recipes["weak"].jitter  # WCL section 7: half of the strength
    assert weak is not None
    assert (weak.brightness, weak.contrast) == (strong.brightness / 2, strong.contrast / 2)
    assert recipes["plain"].flip == 0.0
    solarised = {name for name, recipe in recipes.items() if recipe.solarise}
    assert solarised == {"global_b", "local_b", "overlapping", "weak_b"}


def test_every_recipe_fits_the_models_and_the_models_are_closed() -> None:
    root = Path(__file__).parents[2]
    sides = {"input_size": 32, "dataset": {"local_side": 16}}
    for name in FILES:
        loaded = OmegaConf.load(root / f"params/augmentation/{name}.yaml")
        mapping: Any = OmegaConf.to_container(OmegaConf.create(sides | {"augmentation": loaded}), resolve=True)
        recipes = mapping["augmentation"]
        check_recipes("run", recipes)
        for one, recipe in recipes.items():
            for key, part in recipe.items():
                if isinstance(part, dict):
                    with pytest.raises(UserError, match=f"unknown key 'augmentation.{one}.{key}.misspelt'"):
                        check_recipes("run", {**recipes, one: {**recipe, key: {**part, "misspelt": 1}}})
            with pytest.raises(UserError, match=f"unknown key 'augmentation.{one}.misspelt'"):
                check_recipes("run", {**recipes, one: {**recipe, "misspelt": 1}})
