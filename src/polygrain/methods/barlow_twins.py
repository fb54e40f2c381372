"""Barlow Twins (Zbontar, Jing, Misra, LeCun, Deny; ICML 2021).

Grain: instance. Each number of the embedding shall agree over the two views of an image, and say what no other number
says; there are no negatives.

Equations. Network f, g. For views v, w of B images, with embeddings z = g(f(.)) whose D numbers have mean 0 and
variance 1 over the batch:

    C = Z_v^T Z_w / B,   L = sum_d (1 - C_dd)^2 + a sum_{d != e} C_de^2

Collapsed rows give D; whitened rows that agree give 0. Batch norm is per view; g ends with one without scale and shift.
Biases and norms have a learning rate of their own (`free_rate`), in the original 0.0048 against 0.2.

Deviations: both views have one recipe, where `asymmetric` does not say otherwise, as all contrastive methods of a table
have; crops, budget, widths and optimiser of the scale. The released code also multiplies L by a constant, which LARS
and Adam do not see but for biases and norms.

Measured: not measured yet.
"""

from typing import Any

from torch import Tensor, nn

from polygrain.backbones.contract import Backbone
from polygrain.nn.clock import Clock
from polygrain.nn.distributed import gather_rows
from polygrain.nn.heads import Head
from polygrain.nn.optim import split_by_decay
from polygrain.nn.phases import phase
from polygrain.nn.two_views import pair_monitors, recipes
from polygrain.views.batch import Batch


def redundancy(z_1_BD: Tensor, z_2_BD: Tensor, off_diagonal: float) -> Tensor:
    """Compute L of two views' embeddings, whose columns have mean 0 and variance 1, a scalar; off_diagonal: a."""
    c_DD = z_1_BD.T @ z_2_BD / len(z_1_BD)
    diagonal_D = c_DD.diagonal()
    off = c_DD.square().sum() - diagonal_D.square().sum()
    return (1.0 - diagonal_D).square().sum() + off_diagonal * off


class BarlowTwins(nn.Module):
    """Backbone (the network that is evaluated) and projector g.

    layers, hidden, embedding: linear layers of g, inner and output width. off_diagonal: a.
    free_rate: factor of the learning rate of biases and norms, which are not decayed.
    asymmetric: recipe `global_a` for the first view and `global_b` for the second, or `global` for both.
    """

    encoder_name = "backbone."
    uses_labels = False

    def __init__(
        self,
        backbone: Backbone,
        *,
        layers: int,
        hidden: int,
        embedding: int,
        off_diagonal: float,
        free_rate: float,
        asymmetric: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = Head(
            backbone.width, hidden, embedding, layers=layers, bias=False, final_bias=False, final_norm="batch"
        )
        self.off_diagonal, self.free_rate, self.asymmetric = off_diagonal, free_rate, asymmetric

    def views(self, clock: Clock) -> tuple[str, ...]:
        """Ask for two full-size views."""
        return recipes(self.asymmetric)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Train everything; biases and norms without weight decay, with their own rate."""
        return [{**group, "lr_scale": 1.0 if group["decay"] else self.free_rate} for group in split_by_decay(self)]

    def forward(self, batch: Batch, clock: Clock) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the instance term over the global batch, and monitors of the embeddings."""
        z_1_bD, z_2_bD = (self.projector(self.backbone(view).pooled) for view in batch.views)
        with phase("rest: monitors"):
            monitors = pair_monitors(z_1_bD, z_2_bD)
        return {"instance": redundancy(gather_rows(z_1_bD), gather_rows(z_2_bD), self.off_diagonal)}, monitors


METHOD = BarlowTwins
