"""MoCo v2 (He, Fan, Wu, Xie, Girshick; CVPR 2020. Chen, Fan, Girshick, He; arXiv 2003.04297): momentum contrast.

Grain: instance. A view attracts the other view of its image, as a slowly moving copy of the network sees it, and is
pushed away from a queue of such keys of earlier batches.

Equations. Query network f, g; key network f', g'. For views v, w of B images and the Q rows k_j of the queue:

    q_i = unit(g(f(v_i))),  k_i = unit(g'(f'(w_i))) without gradient
    L = mean over i of -log( exp(q_i.k_i / t) / (exp(q_i.k_i / t) + sum_j exp(q_i.k_j / t)) )
    before each step: f', g' <- m (f', g') + (1 - m) (f, g);  after it the k_i enter the queue, the oldest rows leave it

The queue starts as noise of unit length, as released. g has no batch norm.

Shuffled batch norm: on several devices the original sends each key to another device than its query, so that no key
can be told by the statistics of the few images it is normalised with. Here batch norm has the statistics of the whole
batch, over all processes, and there is no such part of it. What is left of the effect: a query and its positive key
share the statistics of their batch, of 128 images and more, which the keys in the queue do not.

Deviations: crops, budget, widths and optimiser of the scale; `decay_all` is the original's, which decays biases and
norms too.

Measured: not measured yet.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from polygrain.backbones.contract import Backbone
from polygrain.backbones.droppath import remove_drop_path
from polygrain.nn import ema
from polygrain.nn.clock import Clock
from polygrain.nn.distributed import gather_rows, mean_over_processes
from polygrain.nn.heads import Head
from polygrain.nn.pairs import info_nce
from polygrain.nn.phases import phase
from polygrain.nn.queue import Queue
from polygrain.nn.two_views import pair_monitors, queue_rows, trained_groups
from polygrain.views.batch import Batch


class MoCoV2(nn.Module):
    """Query network, key network, and a queue of keys.

    backbone: the network that is evaluated. images, batch: of pre-training and of a step, all processes.
    layers, hidden, embedding: linear layers of g (1: MoCo v1's head), inner and output width. temperature: t.
    queue: Q, as a share of the images if below 1; at least a batch. momentum: m.
    decay_all: weight decay on biases and norms too.

    Raises UserError for a queue that does not fit.
    """

    encoder_name = "backbone."
    uses_labels = False

    def __init__(
        self,
        backbone: Backbone,
        *,
        images: int,
        batch: int,
        layers: int,
        hidden: int,
        embedding: int,
        temperature: float,
        queue: float,
        momentum: float,
        decay_all: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = Head(backbone.width, hidden, embedding, layers=layers, batch_norm=False)
        self.key_backbone = cast(Backbone, ema.frozen_copy(backbone))
        self.key_projector = ema.frozen_copy(self.projector)
        remove_drop_path(self.key_backbone)
        self.queue = Queue(queue_rows(queue, images=images, batch=batch), embedding, wrap="ring", unit=True)
        self.temperature, self.momentum, self.decay_all = temperature, momentum, decay_all
        self._keys: Tensor | None = None  # between forward and after_step

    def views(self, clock: Clock) -> tuple[str, ...]:
        """Ask for two full-size views from one recipe, the query's and the key's."""
        return ("global", "global")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Train the query network."""
        return trained_groups(self, decay_all=self.decay_all)

    @torch.no_grad()
    def before_step(self, clock: Clock) -> None:
        """Update the key network's parameters; its batch-norm statistics come from its own passes."""
        ema.update(self.key_backbone, self.backbone, self.momentum)
        ema.update(self.key_projector, self.projector, self.momentum)

    def forward(self, batch: Batch, clock: Clock) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the instance term over the global batch; the queue is written in `after_step`.

        Monitors: of queries and keys, and `instance_top1`, the share of queries to which no row of the queue is as
        similar as their own key.
        """
        query_view, key_view = batch.views
        query_bD = normalize(self.projector(self.backbone(query_view).pooled), dim=1)
        with torch.no_grad():
            key_bD = normalize(self.key_projector(self.key_backbone(key_view).pooled), dim=1)
        loss = info_nce(query_bD[None], key_bD[None], self.queue.rows, self.temperature)[0, 0]
        with phase("rest: monitors"), torch.no_grad():
            hit_b = (query_bD * key_bD).sum(dim=1) > (query_bD @ self.queue.rows.T).amax(dim=1)
            monitors = pair_monitors(query_bD, key_bD) | {"instance_top1": mean_over_processes(hit_b.float().mean())}
        self._keys = gather_rows(key_bD)
        return {"instance": mean_over_processes(loss)}, monitors

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        """Write this step's keys into the queue."""
        assert self._keys is not None, "after_step follows forward"
        self.queue.push(self._keys)
        self._keys = None


METHOD = MoCoV2
