"""A method's configuration straight from the files in params/, laid over each other without Hydra."""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

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
        merged = {**merged, **layer, "values": _laid_over(merged["values"], layer.get("values", {}))}
    for key, value in {"images": 12000, "batch": 128}.items():
        if key in merged["values"]:
            assert merged["values"][key] == f"${{pretrain.{key}}}"
            merged["values"][key] = value
    whole = OmegaConf.create({"method": merged})
    for key, value in merged["values"].items():
        if isinstance(value, dict):
            node = OmegaConf.select(whole, f"method.values.{key}")
            merged["values"][key] = OmegaConf.to_container(node, resolve=True)
    return merged


def _laid_over(base: dict[str, Any], layer: dict[str, Any]) -> dict[str, Any]:
    both = base.keys() & {key for key, value in layer.items() if isinstance(value, dict)}
    return {**base, **layer, **{key: {**base[key], **layer[key]} for key in both}}


def read(name: str) -> dict[str, Any]:
    content = yaml.safe_load((PARAMS / f"{name}.yaml").read_text())
    assert isinstance(content, dict)
    return content
