"""SimSiam, Exploring Simple Siamese Representation Learning (Chen and He; CVPR 2021).

Grain: instance. The prediction of one view meets the projection of the other, both by one network; no negatives and no
moving average. That the projections carry no gradient keeps them from collapsing.

Equations. Network f, g with predictor h. For views v, w of B images:

    z_v = g(f(v)),  p_v = h(z_v),  D(p, z) = -mean over i of cos(p_i, z_i), with z without gradient
    L = ( D(p_v, z_w) + D(p_w, z_v) ) / 2

Collapsed rows give -1. Batch norm is per view; g ends with one without scale and shift. h keeps the base learning rate
(`predictor_constant`), and all parameters are decayed in the original (`decay_all`).

Deviations: crops, budget, widths and optimiser of the scale. No bias in front of a batch norm, as released.

Measured: not measured yet.
"""

from typing import Any

from torch import Tensor, nn

from polygrain.backbones.contract import Backbone
from polygrain.nn.clock import Clock
from polygrain.nn.distributed import mean_over_processes
from polygrain.nn.heads import Head
from polygrain.nn.phases import phase
from polygrain.nn.two_views import mean_cosine, pair_monitors, trained_groups
from polygrain.views.batch import Batch


class SimSiam(nn.Module):
    """Backbone (the network that is evaluated), projector g and predictor h.

    layers, hidden, embedding: linear layers of g, inner and output width. predictor_hidden: inner width of h.
    predictor: whether there is h; without it p = z. stop_gradient: whether z carries none in D.
    predictor_constant: h keeps the base learning rate. decay_all: weight decay on biases and norms too.
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
        predictor_hidden: int,
        predictor: bool,
        stop_gradient: bool,
        predictor_constant: bool,
        decay_all: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = Head(
            backbone.width, hidden, embedding, layers=layers, bias=False, final_bias=False, final_norm="batch"
        )
        self.predictor = (
            Head(embedding, predictor_hidden, embedding, layers=2, bias=False) if predictor else nn.Identity()
        )
        self.stop_gradient, self.predictor_constant, self.decay_all = stop_gradient, predictor_constant, decay_all

    def views(self, clock: Clock) -> tuple[str, ...]:
        """Ask for two full-size views from one recipe."""
        return ("global", "global")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Train everything; with `predictor_constant` the predictor at the base learning rate."""
        network = nn.ModuleList([self.backbone, self.projector])
        parts = [("network", network, False), ("predictor", self.predictor, self.predictor_constant)]
        groups = [
            {**group, "name": f"{name}_{group['name']}", "lr_constant": constant}
            for name, part, constant in parts
            for group in trained_groups(part, decay_all=self.decay_all)
        ]
        return [group for group in groups if group["params"]]

    def forward(self, batch: Batch, clock: Clock) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the instance term over the global batch, and monitors of the projections; `spread` 0 is collapse."""
        z_1_bD, z_2_bD = (self.projector(self.backbone(view).pooled) for view in batch.views)
        p_1_bD, p_2_bD = self.predictor(z_1_bD), self.predictor(z_2_bD)
        with phase("rest: monitors"):
            monitors = pair_monitors(z_1_bD, z_2_bD)
        if self.stop_gradient:
            z_1_bD, z_2_bD = z_1_bD.detach(), z_2_bD.detach()
        agreement = (mean_cosine(p_1_bD, z_2_bD) + mean_cosine(p_2_bD, z_1_bD)) / 2
        return {"instance": mean_over_processes(-agreement)}, monitors


METHOD = SimSiam
