"""One protocol on scenes, on one checkpoint: load what it needs, evaluate, save."""

from importlib import import_module
from typing import TYPE_CHECKING, cast

from polygrain.evaluate.result import Result
from polygrain.evaluate.scenes.given import scene_encoder_of

if TYPE_CHECKING:  # types and what a stage says of itself decide no output: they stay out of the code hash
    from polygrain.config.typed import Protocol, Shown
    from polygrain.provenance.stage import Stage


def run(stage: "Stage") -> None:
    """Write `{protocol}.json` and `{protocol}.npz`. Raises UserError on a bad checkpoint and bad scenes."""
    config = cast("Protocol", stage.config)
    own, scenes = (path.parent for path in stage.manifests)
    encoder = scene_encoder_of(cast("Shown", stage.config), stage.inputs[0], own, scenes, stage.device)
    name = config["protocol"]
    module = f"polygrain.evaluate.{config.get('module', name).replace('-', '_')}"
    result: Result = import_module(module).evaluate(encoder, **config["values"])
    result.save(stage.outputs[0].parent, name)
