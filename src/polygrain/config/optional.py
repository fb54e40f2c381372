"""Which of the modules that are loaded by name a configuration uses.

The configuration names the format of the images. Whether RandAugment changes a run's views follows from the recipes
that its method uses. Their names are string literals in the method's module: a recipe counts as used if such a string,
or a value of the method's configuration, is its name. So a recipe that the method could use but does not counts too. A
recipe whose name the method builds from parts is not found; then the job fails, because it loads code that is not in
its code hashes.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from polygrain.config.project import SOURCE
from polygrain.provenance.code import syntax_tree

UNTOUCHED, RANDAUGMENT = "polygrain.views.untouched", "polygrain.views.randaugment"


def training_images(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules for the images and views of a pretrain configuration, beside the training loop."""
    recipes = config["augmentation"]
    asked = set(_asked(recipes, config["method"]))
    changed = any((recipes[name].get("randaugment") or {}).get("probability") for name in asked)
    return (f"polygrain.train.images.{config['format']}", UNTOUCHED, *((RANDAUGMENT,) if changed else ()))


def shown_images(formats: Iterable[str]) -> tuple[str, ...]:
    """The modules that show images of these formats to an encoder."""
    return tuple(f"polygrain.evaluate.images.{name}" for name in sorted(set(formats)))


def augmented_images(formats: Iterable[str]) -> tuple[str, ...]:
    """The modules that show crops of images of these formats, for protocols that train on such."""
    return (*(f"polygrain.train.images.{name}" for name in sorted(set(formats))), UNTOUCHED)


def _asked(recipes: Mapping[str, Mapping[str, Any]], method: Mapping[str, Any]) -> Iterator[str]:
    """Names of the recipes that a method may ask for, and of those that they are mixed of."""
    given = {value for value in method["values"].values() if isinstance(value, str)}
    texts = re.compile(_texts(method["name"].replace("-", "_")))
    for name, recipe in recipes.items():
        if name in given or texts.fullmatch(name):
            mixed = recipe.get("mixed")
            yield from (mixed["weak"], mixed["strong"]) if mixed else (name,)


@cache
def _texts(method: str) -> str:
    """A pattern for the texts in a method's module, with anything for what an f-string fills in behind its first word.

    An f-string that begins with what is filled in names nothing, or `f"{grain}_{monitor}"` would name every recipe.
    """
    found = set()
    for node in ast.walk(
        syntax_tree(SOURCE.joinpath("polygrain", "methods", f"{method}.py").read_text(encoding="utf-8"))
    ):
        if isinstance(node, ast.JoinedStr):
            parts = [re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".*" for part in node.values]
            if parts[:1] != [".*"]:
                found.add("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(re.escape(node.value))
    return "|".join(sorted(found))
