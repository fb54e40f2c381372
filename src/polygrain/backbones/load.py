"""Loads a backbone by its name. Seed torch's generator before: weights are drawn from it."""

import importlib
import inspect
from pathlib import Path
from typing import Any

from polygrain.backbones.contract import Backbone
from polygrain.provenance.errors import UserError, nearest

_PARTS = ("__init__", "contract", "droppath", "grains", "load", "relation", "transformer")


def load_backbone(name: str, *, channels: int, **values: Any) -> Backbone:
    """Build backbone `name`; `values` are keywords of its module's `build`. Raises UserError on an unknown one."""
    known = [path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in _PARTS]
    if name not in known:
        raise UserError(f"backbone: no backbone '{name}'{nearest(name, known)}")
    build = importlib.import_module(f"polygrain.backbones.{name}").build
    expected = dict(inspect.signature(build).parameters)
    del expected["channels"]
    for key in values:
        if key not in expected:
            raise UserError(f"backbone {name}: unknown key '{key}'{nearest(key, expected)}")
    for key, parameter in expected.items():
        if key not in values and parameter.default is parameter.empty:
            raise UserError(f"backbone {name}: key '{key}' is missing")
    backbone: Backbone = build(channels=channels, **values)
    return backbone
