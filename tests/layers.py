"""A method's configuration straight from the files in params/, laid over each other without Hydra."""

from pathlib import Path
from typing import Any

import yaml

PARAMS = Path(__file__).parents[1] / "params"


def configured(name: str, variant: str | None = None, recipe: str | None = None) -> dict[str, Any]:
    """The key `method` of a run: the preset of its mode, then the base, a scale's recipe and a variant.

    Pre-training images and batch, which the scale fills in, are those of the cpu scale.
    """
    base = read(f"method/{name}")
    overlay = read(f"variant/{name}/{variant}") if variant else {}
    scale = read(f"recipe/{name}/{recipe}") if recipe else {}
    (mode,) = (choice for entry in base.pop("defaults") for choice in entry.values())
    mode = next((entry["override /mode"] for entry in overlay.get("defaults", []) if "override /mode" in entry), mode)
    preset = read(f"mode/{mode}")["method"]
    assert not {"mode", *preset["values"]} & {*base, *base["values"]}
    merged: dict[str, Any] = {"values": {}}
    for layer in (preset, base, scale.get("method", {}), overlay.get("method", {})):
        merged = {**merged, **layer, "values": {**merged["values"], **layer.get("values", {})}}
    for key, value in {"images": 12000, "batch": 128}.items():
        if key in merged["values"]:
            assert merged["values"][key] == f"${{pretrain.{key}}}"
            merged["values"][key] = value
    return merged


def read(name: str) -> dict[str, Any]:
    content = yaml.safe_load((PARAMS / f"{name}.yaml").read_text())
    assert isinstance(content, dict)
    return content
