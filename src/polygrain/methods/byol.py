"""BYOL, Bootstrap Your Own Latent (Grill, Strub, Altche, Tallec, Richemond, ..., Valko; NeurIPS 2020).

Grain: instance. The prediction of one view meets the moving-average network's projection of the other; no negatives.

Equations. Online network f, g with predictor q; target network f', g'. For views v, w of B images:

    p_v = q(g(f(v))),  t_v = g'(f'(v)) without gradient
    L = mean over i of |unit(p_v(i)) - unit(t_w(i))|^2 + |unit(p_w(i)) - unit(t_v(i))|^2
      = 4 - 2 mean cos(p_v, t_w) - 2 mean cos(p_w, t_v)
    after each step:  f', g' <- m (f', g') + (1 - m) (f, g),  m = 1 - (1 - m_0) (cos(pi k / K) + 1) / 2 at step k of K

Collapsed rows give 0, orthogonal ones 4. Batch norm is per view and network; the target's running statistics come from
its own passes. The online network is the one that is evaluated.

Deviations: both views have one recipe, where `asymmetric` does not say otherwise, as all contrastive methods of a table
have; crops, budget, widths and optimiser of the scale. No bias in front of a batch norm, whose true gradient is 0.

Measured: not measured yet.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from polygrain.backbones.contract import Backbone
from polygrain.backbones.droppath import remove_drop_path
from polygrain.nn import ema
from polygrain.nn.clock import Clock
from polygrain.nn.distributed import mean_over_processes
from polygrain.nn.heads import Head
from polygrain.nn.optim import split_by_decay
from polygrain.nn.phases import phase
from polygrain.nn.schedules import cosine
from polygrain.nn.two_views import mean_cosine, pair_monitors, recipes
from polygrain.views.batch import Batch


class BYOL(nn.Module):
    """Online network with predictor, and target network.

    backbone: the network that is evaluated. hidden, embedding: inner and output width of g and q, two layers each.
    predictor: whether there is q; without it p = g(f). momentum, momentum_end: m at the start and towards the end.
    asymmetric: recipe `global_a` for the first view and `global_b` for the second, or `global` for both.
    """

    encoder_name = "backbone."
    uses_labels = False

    def __init__(
        self,
        backbone: Backbone,
        *,
        hidden: int,
        embedding: int,
        predictor: bool,
        momentum: float,
        momentum_end: float,
        asymmetric: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = Head(backbone.width, hidden, embedding, layers=2, bias=False, final_bias=False)
        self.predictor = (
            Head(embedding, hidden, embedding, layers=2, bias=False, final_bias=False) if predictor else nn.Identity()
        )
        self.target_backbone = cast(Backbone, ema.frozen_copy(backbone))
        self.target_projector = ema.frozen_copy(self.projector)
        remove_drop_path(self.target_backbone)
        self.momentum, self.momentum_end, self.asymmetric = momentum, momentum_end, asymmetric

    def views(self, clock: Clock) -> tuple[str, ...]:
        """Ask for two full-size views."""
        return recipes(self.asymmetric)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Train the online network and its predictor; biases and norms without weight decay."""
        return split_by_decay(self)

    def forward(self, batch: Batch, clock: Clock) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the instance term over the global batch, and monitors of the online projections."""
        z_1_bD, z_2_bD = (self.projector(self.backbone(view).pooled) for view in batch.views)
        with torch.no_grad():
            t_1_bD, t_2_bD = (self.target_projector(self.target_backbone(view).pooled) for view in batch.views)
        agreement = mean_cosine(self.predictor(z_1_bD), t_2_bD) + mean_cosine(self.predictor(z_2_bD), t_1_bD)
        with phase("rest: monitors"):
            monitors = pair_monitors(z_1_bD, z_2_bD)
        return {"instance": mean_over_processes(4.0 - 2.0 * agreement)}, monitors

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        """Update the target network's parameters from the new online network."""
        momentum = cosine(self.momentum, self.momentum_end, clock.step, clock.steps)
        ema.update(self.target_backbone, self.backbone, momentum)
        ema.update(self.target_projector, self.projector, momentum)


METHOD = BYOL
