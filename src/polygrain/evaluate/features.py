"""From a checkpoint to frozen features: every data set and split once through the run's encoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from polygrain.evaluate.given import Encoder, encoder_of
from polygrain.evaluate.store import SPLITS, Features, FeatureSet, Split

if TYPE_CHECKING:  # types and what a stage says of itself decide no output: they stay out of the code hash
    from polygrain.config.typed import Shown
    from polygrain.provenance.stage import Stage


def run(stage: "Stage") -> None:
    """Do the features stage. Raises UserError as `extract` does."""
    data = {path.parent.name: path.parent for path in stage.manifests}
    extract(cast("Shown", stage.config), stage.inputs[0], data, stage.outputs[0])


def extract(config: "Shown", checkpoint: Path, data: Mapping[str, Path], out: Path) -> None:
    """Write the features of every data set in `data` (name -> packed folder) to `out`; config: see `encoder_of`.

    Raises UserError as that does, on an empty split and on features not finite; `out` is then not changed.
    """
    encoder = encoder_of(config, checkpoint, data)
    Features({name: features_of(encoder, name) for name in config["datasets"]}).save(out)


def features_of(encoder: Encoder, name: str) -> FeatureSet:
    """The pooled features of one data set, float32. Raises UserError on an empty split."""
    splits = {}
    for part in SPLITS:
        positions = encoder.positions(name, part)
        rows = [batch.pooled.float().cpu().numpy() for _, batch in encoder.encoded(name, positions)]
        splits[part] = Split(np.concatenate(rows), encoder.labels(name, positions), positions)
    return FeatureSet(name, encoder.classes(name), **splits)
