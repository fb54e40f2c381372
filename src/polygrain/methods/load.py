"""Loads a method by its name, so that no other module names one."""

import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn


def load_method(name: str, backbone: nn.Module, values: Mapping[str, Any]) -> nn.Module:
    """Build method `name` on `backbone`; the configuration has been checked against its constructor."""
    module = importlib.import_module(f"polygrain.methods.{name.replace('-', '_')}")
    method: nn.Module = module.METHOD(backbone, **values)
    return method
