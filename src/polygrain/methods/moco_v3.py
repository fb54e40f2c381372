"""MoCo v3, An Empirical Study of Training Self-Supervised Vision Transformers (Chen, Xie, He; ICCV 2021).

Grain: instance. The prediction of one view is contrasted with the moving-average network's keys of the other views in
the batch, without a queue.

Equations. Network f, g with predictor h; key network f', g'. For views v, w of B images, all rows of unit length:

    q_v = h(g(f(v))),  k_v = g'(f'(v)) without gradient
    c(q, k) = 2 t mean over i of -log( exp(q_i.k_i / t) / sum_j exp(q_i.k_j / t) ),   L = c(q_v, k_w) + c(q_w, k_v)
    before each step:  f', g' <- m (f', g') + (1 - m) (f, g),  m = 1 - (1 - m_0) (cos(pi k / K) + 1) / 2 at step k of K

Collapsed rows give 4 t ln B. Sums are over the global batch; batch norm is per view and network, and ends g and h
without scale and shift. For transformers the original leaves the projection of the patches as it was drawn
(`frozen_embedding`), which keeps training stable, and has one more layer in g.

Deviations: both views have one recipe, where `asymmetric` does not say otherwise, as all contrastive methods of a table
have; crops, budget, widths and optimiser of the scale.

Measured: not measured yet.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from polygrain.backbones.contract import Backbone
from polygrain.backbones.droppath import remove_drop_path
from polygrain.nn import ema
from polygrain.nn.agreement import own_key_share
from polygrain.nn.clock import Clock
from polygrain.nn.contrastive import one_way
from polygrain.nn.distributed import gather_rows
from polygrain.nn.heads import Head
from polygrain.nn.optim import split_by_decay
from polygrain.nn.phases import phase
from polygrain.nn.schedules import cosine
from polygrain.nn.two_views import pair_monitors, recipes
from polygrain.provenance.errors import UserError
from polygrain.views.batch import Batch


class MoCoV3(nn.Module):
    """Network with predictor, and key network.

    backbone: the network that is evaluated. layers, hidden, embedding: linear layers of g, inner and output width of g
    and h. temperature: t. momentum, momentum_end: m at the start and towards the end. predictor: whether there is h;
    without it q = g(f). frozen_embedding: the backbone's first layer is not trained.
    asymmetric: recipe `global_a` for the first view and `global_b` for the second, or `global` for both.

    Raises UserError for `frozen_embedding` of a backbone whose first layer is not known.
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
        temperature: float,
        momentum: float,
        momentum_end: float,
        predictor: bool,
        frozen_embedding: bool,
        asymmetric: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        if frozen_embedding:
            _first_layer(backbone).requires_grad_(False)
        self.projector = Head(
            backbone.width, hidden, embedding, layers=layers, bias=False, final_bias=False, final_norm="batch"
        )
        self.predictor = (
            Head(embedding, hidden, embedding, layers=2, bias=False, final_bias=False, final_norm="batch")
            if predictor
            else nn.Identity()
        )
        self.key_backbone = cast(Backbone, ema.frozen_copy(backbone))
        self.key_projector = ema.frozen_copy(self.projector)
        remove_drop_path(self.key_backbone)
        self.temperature, self.asymmetric = temperature, asymmetric
        self.momentum, self.momentum_end = momentum, momentum_end

    def views(self, clock: Clock) -> tuple[str, ...]:
        """Ask for two full-size views."""
        return recipes(self.asymmetric)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Train network and predictor; biases and norms without weight decay."""
        return split_by_decay(self)

    @torch.no_grad()
    def before_step(self, clock: Clock) -> None:
        """Update the key network's parameters; its batch-norm statistics come from its own passes."""
        momentum = cosine(self.momentum, self.momentum_end, clock.step, clock.steps)
        ema.update(self.key_backbone, self.backbone, momentum)
        ema.update(self.key_projector, self.projector, momentum)

    def forward(self, batch: Batch, clock: Clock) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the instance term over the global batch, and monitors.

        Monitors: of the projections, and `instance_top1`, the share of queries whose own key is the most similar one.
        """
        z_1_bD, z_2_bD = (self.projector(self.backbone(view).pooled) for view in batch.views)
        q_1_BD, q_2_BD = gather_rows(self.predictor(z_1_bD)), gather_rows(self.predictor(z_2_bD))
        with torch.no_grad():
            k_1_BD, k_2_BD = (gather_rows(self.key_projector(self.key_backbone(view).pooled)) for view in batch.views)
        pairs = [(q_1_BD[None], k_2_BD[None]), (q_2_BD[None], k_1_BD[None])]
        terms = [one_way(q_1BD, k_1BD, self.temperature) for q_1BD, k_1BD in pairs]
        with phase("rest: monitors"):
            monitors = pair_monitors(z_1_bD, z_2_bD) | {"instance_top1": own_key_share(pairs)}
        return {"instance": 2.0 * self.temperature * (terms[0] + terms[1])}, monitors


def _first_layer(backbone: Backbone) -> nn.Module:
    layer = getattr(backbone, "embed", None) or getattr(backbone, "stem", None)
    if not isinstance(layer, nn.Module):
        name = type(backbone).__name__.lower()
        raise UserError(f"method.values.frozen_embedding: backbone {name} has no known first layer; set it to false")
    return layer


METHOD = MoCoV3
