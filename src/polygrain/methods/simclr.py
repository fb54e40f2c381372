"""SimCLR (Chen, Kornblith, Norouzi, Hinton; ICML 2020): the single-grain baseline.

Grain: instance. The two views of an image attract each other; all other views in the global batch are pushed away.

Equations. h = f(x) pooled; z = W2 relu(BN(W1 h)) (a head of `layers` linear layers); for the 2B rows z_i of
two views with cosine similarity s and temperature t, NT-Xent (equation 1):

    l(i) = -log( exp(s(z_i, z_p(i)) / t) / sum_{j != i} exp(s(z_i, z_j) / t) ),   L = mean_i l(i)

As in the original, all views are one forward pass, so batch norm is joint over the views, and negatives come from all
processes. Deviations: no batch norm after the head's last layer, as in WCL; crops, budget and optimiser of the scale.

Measured (reports/table1.pdf): Fashion-MNIST linear 84.3 ± 0.8, Animal-MNIST linear 90.1 ± 0.5.
"""

from typing import Any

import torch
from torch import Tensor, nn

from polygrain.backbones.contract import Backbone
from polygrain.nn.clock import Clock
from polygrain.nn.contrastive import nt_xent
from polygrain.nn.distributed import gather_rows
from polygrain.nn.heads import Head
from polygrain.nn.monitors import alignment, effective_rank, spread, uniformity
from polygrain.nn.optim import split_by_decay
from polygrain.views.batch import Batch


class SimCLR(nn.Module):
    """Backbone (the network that is evaluated) and projection head trained with NT-Xent.

    temperature: t. layers, hidden, embedding: linear layers of the projection head, inner and output width.
    """

    encoder_name = "backbone."
    uses_labels = False

    def __init__(self, backbone: Backbone, *, temperature: float, layers: int, hidden: int, embedding: int) -> None:
        super().__init__()
        self.backbone = backbone
        # No bias in front of a batch norm, as in the original: its true gradient is 0 and Adam would amplify the noise.
        self.projector = Head(backbone.width, hidden, embedding, layers=layers, bias=False)
        self.temperature = temperature

    def views(self, clock: Clock) -> tuple[str, ...]:
        """Ask for two full-size views from one recipe."""
        return ("global", "global")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Train everything; biases and norms without weight decay."""
        return split_by_decay(self)

    def forward(self, batch: Batch, clock: Clock) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the instance term over the global batch, and monitors of the embeddings."""
        z_RD = self.projector(self.backbone(torch.cat(batch.views)).pooled)
        z_1_BD, z_2_BD = (gather_rows(z_BD) for z_BD in z_RD.chunk(2))
        monitors = {
            "alignment": alignment(z_1_BD, z_2_BD),
            "uniformity": uniformity(z_1_BD),
            "spread": spread(z_1_BD),
            "rank": effective_rank(z_1_BD),
        }
        return {"instance": nt_xent(z_1_BD, z_2_BD, self.temperature)}, monitors


METHOD = SimCLR
