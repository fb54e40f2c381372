"""What must hold between several values of a run: presets, rows that are held, resets that happen."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from polygrain.config.budget import steps
from polygrain.config.yamlfile import read_mapping
from polygrain.provenance.errors import UserError

if TYPE_CHECKING:
    from polygrain.config.models import MethodChoice, RunModel


def check_mode(where: str, method: "MethodChoice", params: Path) -> None:
    """Refuse to call a run released whose switches are not those of the release."""
    if method.mode != "released":
        return
    path = params / "mode" / method.name / "released.yaml"
    for key, value in read_mapping(path)["method"]["values"].items():
        if method.values[key] != value:
            raise UserError(
                f"{where}: method.mode is released, but the release has {key}: {value}, not {method.values[key]};"
                " take that value, or mode described"
            )


def check_resets(where: str, values: dict[str, Any], config: dict[str, Any]) -> None:
    """Refuse resets that no step would reach: the run would be that of `reset: none`, and an ablation of them void."""
    if values.get("reset", "none") == "none":
        return
    pretrain = config["pretrain"]
    interval = max(1, round(values["reset_epochs"] * (pretrain["images"] // pretrain["batch"])))
    if interval >= (taken := steps(config)):
        raise UserError(
            f"{where}: method.values.reset_epochs {values['reset_epochs']} is every {interval} steps, and the run has"
            f" {taken}: nothing is reset; lower it, or set method.values.reset: none"
        )


def check_rows(where: str, run: "RunModel") -> None:
    """Refuse what holds a row for each of more images than there are, before a job is started for it."""
    for key in ("queue", "memory", "groups"):
        value = run.method.values.get(key)
        for part, size in value.items() if isinstance(value, dict) else (("", value),):
            if isinstance(size, int) and size > run.pretrain.images:
                raise UserError(
                    f"{where}: method.values.{key}{part and '.'}{part} {size} is more than pretrain.images"
                    f" {run.pretrain.images}; lower it, or raise the subset"
                )
