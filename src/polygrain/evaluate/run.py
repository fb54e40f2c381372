"""One protocol on one checkpoint: load what it needs, evaluate, save."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from polygrain.evaluate.result import Result
from polygrain.evaluate.store import Features

if TYPE_CHECKING:  # types and what a stage says of itself decide no output: they stay out of the code hash
    from polygrain.config.typed import Protocol, Shown
    from polygrain.provenance.stage import Stage


def run(stage: "Stage") -> None:
    """Write `{protocol}.json` and `{protocol}.npz`. Raises UserError on bad features, checkpoints and data."""
    config = cast("Protocol", stage.config)
    name = config["protocol"]
    module = f"polygrain.evaluate.{config.get('module', name).replace('-', '_')}"
    result: Result = import_module(module).evaluate(_given(stage, config), **config["values"])
    result.save(stage.outputs[0].parent, name)


def _given(stage: "Stage", config: "Protocol") -> Any:
    """Frozen features, or the encoder with its data sets, loaded by name: features alone need no torch."""
    if config["needs"] == "features":
        return Features.load(stage.inputs[0], config["datasets"])
    data = {path.parent.name: path.parent for path in stage.manifests}
    encoder_of = import_module("polygrain.evaluate.given").encoder_of
    return encoder_of(cast("Shown", stage.config), stage.inputs[0], data, stage.device)
