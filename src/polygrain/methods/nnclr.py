"""NNCLR, With a Little Help from My Friends (Dwibedi, Aytar, Tompson, Sermanet, Zisserman; ICCV 2021).

Grain: instance. The nearest neighbour of one view in a queue of past embeddings attracts the prediction of the other
view and is pushed away from the predictions of the other images of the batch.

Equations. Network f, g with predictor h. For views v, w of B images, all rows of unit length:

    z_v = g(f(v)),  p_v = h(z_v),  n_v = the row of the queue with the largest cosine to z_v, without gradient
    l(n, p) = mean over i of -log( exp(n_i.p_i / t) / sum_k exp(n_i.p_k / t) )
    L = ( l(n_v, p_w) + l(n_w, p_v) ) / 2;  after the step the z_v of the first view enter the queue

Collapsed rows give ln B. Sums are over the global batch, batch norm is per view. Equal cosines: the older place wins.

Deviations: the queue's initial noise is never a neighbour; n_v = z_v while it holds nothing else. h alone has a bias,
behind its last batch norm. Crops, budget, widths and optimiser of the scale.
Reconstructed: which recipe of views the paper has (here SimCLR's) and its weight decay.

Measured: not measured yet.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from polygrain.backbones.contract import Backbone
from polygrain.nn.clock import Clock
from polygrain.nn.contrastive import one_way
from polygrain.nn.distributed import gather_rows
from polygrain.nn.heads import Head
from polygrain.nn.neighbours import topk_cosine
from polygrain.nn.optim import split_by_decay
from polygrain.nn.phases import phase
from polygrain.nn.queue import Queue
from polygrain.nn.two_views import pair_monitors, queue_rows
from polygrain.views.batch import Batch


class NNCLR(nn.Module):
    """Backbone (the network that is evaluated), projector g, predictor h, and a queue of past embeddings.

    images, batch: of pre-training and of a step, all processes. hidden, embedding: inner and output width of g (three
    layers). predictor_hidden: inner width of h (two layers). temperature: t.
    neighbour: n_v from the queue, or n_v = z_v. queue: its rows, as a share of the images if below 1; at least a batch.

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
        hidden: int,
        embedding: int,
        predictor_hidden: int,
        temperature: float,
        neighbour: bool,
        queue: float,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = Head(
            backbone.width, hidden, embedding, layers=3, bias=False, final_bias=False, final_norm="batch_affine"
        )
        self.predictor = Head(embedding, predictor_hidden, embedding, layers=2, bias=False)
        self.queue = None
        if neighbour:
            self.queue = Queue(queue_rows(queue, images=images, batch=batch), embedding, wrap="ring", unit=True)
            self.queue_indices = Queue(len(self.queue.rows), 1, wrap="ring", unit=False)
        self.temperature = temperature
        self._newest: tuple[Tensor, Tensor] | None = None  # between forward and after_step

    def views(self, clock: Clock) -> tuple[str, ...]:
        """Ask for two full-size views from one recipe."""
        return ("global", "global")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Train everything; biases and norms without weight decay."""
        return split_by_decay(self)

    def forward(self, batch: Batch, clock: Clock) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the instance term over the global batch; the queue is written in `after_step`.

        Monitors: of the embeddings, and `neighbour_self`, the share of the first view's neighbours that show the same
        image.
        """
        z_1_bD, z_2_bD = (self.projector(self.backbone(view).pooled) for view in batch.views)
        p_1_BD, p_2_BD = gather_rows(self.predictor(z_1_bD)), gather_rows(self.predictor(z_2_bD))
        with torch.no_grad(), phase("rest: neighbours"):
            z_1_BD, z_2_BD = normalize(gather_rows(z_1_bD), dim=1), normalize(gather_rows(z_2_bD), dim=1)
            index_B = gather_rows(batch.indices)
            (n_1_BD, own_B), (n_2_BD, _) = self._look_up(z_1_BD, index_B), self._look_up(z_2_BD, index_B)
        terms = [
            one_way(n_BD[None], p_BD[None], self.temperature) for n_BD, p_BD in ((n_1_BD, p_2_BD), (n_2_BD, p_1_BD))
        ]
        with phase("rest: monitors"):
            monitors = pair_monitors(z_1_bD, z_2_bD) | {"neighbour_self": own_B.double().mean()}
        self._newest = z_1_BD, index_B
        return {"instance": (terms[0] + terms[1]) / 2}, monitors

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        """Write the first view's embeddings into the queue, and the indices of their images beside them."""
        assert self._newest is not None, "after_step follows forward"
        embedding_BD, index_B = self._newest
        if self.queue is not None:
            self.queue.push(embedding_BD)
            self.queue_indices.push(index_B[:, None])
        self._newest = None

    def _look_up(self, z_BD: Tensor, index_B: Tensor) -> tuple[Tensor, Tensor]:
        """The neighbours of embeddings, and which of them show the same image, bool [B]."""
        place_Q = self.queue.written.nonzero()[:, 0] if self.queue is not None else index_B[:0]
        if self.queue is None or len(place_Q) == 0:
            return z_BD, torch.ones_like(index_B, dtype=torch.bool)
        _, found_B1 = topk_cosine(z_BD, self.queue.rows[place_Q], 1, byte_budget=1 << 27)
        place_B = place_Q[found_B1[:, 0]]
        return self.queue.rows[place_B], self.queue_indices.rows[place_B, 0] == index_B


METHOD = NNCLR
