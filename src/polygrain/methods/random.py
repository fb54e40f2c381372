"""Random initialisation: the control without any training.

It contrasts nothing and takes no step: its checkpoint is the backbone as the seed initialised it. Batch norm has mean 0
and variance 1 then, that is, it does nothing. With `calibrated` its statistics are those of the training images: the
mean over plain batches, so that only weights are random.

Measured (reports/table1.pdf): Fashion-MNIST linear 77.5 ± 1.6, Animal-MNIST linear 74.3 ± 1.6.
"""

from typing import Any

import torch
from torch import Tensor, nn

from polygrain.backbones.contract import Backbone
from polygrain.nn.batch_norm import norms_of
from polygrain.nn.clock import Clock
from polygrain.provenance.errors import UserError
from polygrain.views.batch import Batch, DataPasses


class Random(nn.Module):
    """The untrained backbone. calibrated: whether batch norm takes the statistics of the training images."""

    encoder_name = "backbone."
    uses_labels = False

    def __init__(self, backbone: Backbone, *, calibrated: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.calibrated = calibrated

    def views(self, clock: Clock) -> tuple[str, ...]:
        """Ask for none: no augmented image is used."""
        return ()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return none: nothing is trained."""
        return []

    @torch.no_grad()
    def start_epoch(self, clock: Clock, data: DataPasses) -> None:
        """Give every batch norm the mean of its statistics over one plain pass in batches."""
        norms = norms_of(self.backbone) if self.calibrated else []
        for norm in norms:
            norm.momentum = None  # torch then keeps the plain mean over batches
        for view, _, _ in data.plain_pass() if norms else ():
            self.backbone(view)

    def forward(self, batch: Batch, clock: Clock) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Raise UserError: there is nothing to optimise."""
        raise UserError("method random takes no optimiser step; give its run 0 steps (encoder_passes: 0)")


METHOD = Random
