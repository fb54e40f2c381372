"""Random initialisation: the control without any training.

It contrasts nothing and takes no step: its checkpoint is the backbone as the seed initialised it, batch norm with mean
0 and variance 1.

Measured at cpu scale, 3 seeds (`snakemake --cores all reports/table1.pdf`): linear probe 78.3 ± 1.9 on Fashion-MNIST,
72.8 ± 2.4 in transfer to Animal-MNIST.
"""

from typing import Any

from torch import Tensor, nn

from polygrain.backbones.contract import Backbone
from polygrain.nn.clock import Clock
from polygrain.provenance.errors import UserError
from polygrain.views.batch import Batch


class Random(nn.Module):
    """The untrained backbone."""

    encoder_name = "backbone."
    uses_labels = False

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def views(self, clock: Clock) -> tuple[str, ...]:
        """Ask for none: no image is used."""
        return ()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return none: nothing is trained."""
        return []

    def forward(self, batch: Batch, clock: Clock) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Raise UserError: there is nothing to optimise."""
        raise UserError("method random takes no optimiser step; give its run 0 steps (encoder_passes: 0)")


METHOD = Random
