"""SwAV (Caron, Misra, Mairal, Goyal, Bojanowski, Joulin; NeurIPS 2020, arXiv 2006.09882): swapped assignments.

Grain: group. A crop predicts to which of K prototypes another view of its image belongs; the batch is spread over them.

Equations. z = unit(p(f(x))) with a head p of two layers; prototypes C, rows of unit length. View t = 1, 2 is a
full-size view, crop s one of these or a small one. Scores of R rows, the batch's and older ones from the view's queue:

    Q_t = diag(u) exp(z_t C^T / epsilon) diag(v),   columns sum to R / K and rows to 1 (Sinkhorn-Knopp, a few times)
    l(t, s) = -sum_k Q_tk log softmax(z_s C^T / temperature)_k,   L = mean over images, t and s != t of l(t, s)

Q has no gradient. Prototypes are brought to unit length before each step and stand still at first (`freeze_epochs`). A
queue for each view takes z of the global batch after use, from epoch `queue_epoch` on; it joins Q once it is full.

Deviations: the queue is one for all processes, theirs is one for each; sums of Q as logarithms, so that no epsilon
overflows; no bias before the head's batch norm, whose gradient is 0. Weight decay (and LARC) on all parameters as in
the authors' code with `decay_all` (scale paper).

Measured: not measured yet.
Legend: B images of this process, S crops, T = 2 views with codes, R rows, D width, K prototypes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from polygrain.backbones.contract import Backbone
from polygrain.nn.clock import Clock
from polygrain.nn.distributed import gather_rows, mean_over_processes, world
from polygrain.nn.groups import assignment_monitors
from polygrain.nn.heads import Head
from polygrain.nn.linear import Linear
from polygrain.nn.monitors import feature_monitors
from polygrain.nn.optim import split_by_decay
from polygrain.nn.pairs import cross_entropies, over_pairs
from polygrain.nn.phases import phase
from polygrain.nn.queue import Queue
from polygrain.provenance.errors import UserError
from polygrain.views.batch import Batch


@torch.no_grad()
def sinkhorn(scores_RK: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Codes [R, K]: each row sums to 1, columns are made equal `iterations` times; with 0 a softmax. No gradient.

    The factors 1 / K and 1 / R of the paper's marginals cancel, as each half step scales the other's sums anew.
    """
    log_RK = scores_RK / epsilon
    for _ in range(iterations):
        log_RK = log_RK - log_RK.logsumexp(dim=0)
        log_RK = log_RK - log_RK.logsumexp(dim=1, keepdim=True)
    return log_RK.softmax(dim=1)


class SwAV(nn.Module):
    """Backbone (the network that is evaluated), projection head, prototypes, and a queue for each full-size view.

    images, batch: of pre-training and of a step, all processes. local_crops: small crops.
    prototypes, epsilon, iterations: K, and of Sinkhorn-Knopp. temperature: of the predictions.
    queue, queue_epoch: rows of a queue, as a share of the images if below 1, 0 for none; the first epoch that fills it.
    freeze_epochs: epochs in which prototypes are not trained. hidden, embedding: inner and output width of the head.
    decay_all: biases and norms are decayed too.

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
        local_crops: int,
        prototypes: int,
        epsilon: float,
        iterations: int,
        temperature: float,
        queue: float,
        queue_epoch: int,
        freeze_epochs: int,
        hidden: int,
        embedding: int,
        decay_all: bool,
    ) -> None:
        super().__init__()
        rows = max(round(queue * images), batch) if 0 < queue < 1 else int(queue)
        if rows and not batch <= rows <= images:
            raise UserError(f"method.values.queue: {rows} rows, must be 0 or from {batch} (batch) to {images} (images)")
        self.backbone = backbone
        self.projector = Head(backbone.width, hidden, embedding, layers=2, bias=False)
        self.prototypes = Linear(embedding, prototypes, bias=False)
        self.queues = nn.ModuleList(Queue(rows, embedding, wrap="ring", unit=True) for _ in range(2 if rows else 0))
        self.local_crops, self.epsilon, self.iterations = local_crops, epsilon, iterations
        self.temperature, self.queue_epoch, self.freeze_epochs = temperature, queue_epoch, freeze_epochs
        self.decay_all = decay_all
        self._frozen = False  # between forward and after_clip

    def views(self, clock: Clock) -> tuple[str, ...]:
        """Ask for two full-size views from one recipe, then for the small crops."""
        return ("global", "global") + ("local",) * self.local_crops

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Train everything; biases and norms without weight decay, except with `decay_all`."""
        groups = split_by_decay(self)
        if self.decay_all:
            return [{"params": [p for group in groups for p in group["params"]], "name": "decayed", "decay": True}]
        return groups

    @torch.no_grad()
    def before_step(self, clock: Clock) -> None:
        """Bring the prototypes to unit length."""
        self.prototypes.weight.copy_(normalize(self.prototypes.weight, dim=1))

    def forward(self, batch: Batch, clock: Clock) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the group term over the global batch, and monitors; write the queues."""
        self._frozen = clock.epoch < self.freeze_epochs
        pooled_RE = torch.cat([encoded.pooled for encoded in self.backbone.encode_crops(batch.views)])
        z_RD = normalize(self.projector(pooled_RE), dim=1)
        z_SBD = z_RD.view(len(batch.views), -1, z_RD.shape[1])
        logits_SBK = self.prototypes(z_RD).view(*z_SBD.shape[:2], -1)
        with phase("rest: codes"), torch.no_grad():
            code_TBK = torch.stack([self._codes(view, z_SBD, logits_SBK, clock) for view in (0, 1)])
        losses_TS = cross_entropies(logits_SBK, code_TBK, self.temperature)
        with phase("rest: monitors"):
            monitors = assignment_monitors(code_TBK) | feature_monitors(z_SBD[0])
        return {"group": mean_over_processes(over_pairs(losses_TS, "flat"))}, monitors

    @torch.no_grad()
    def after_clip(self) -> None:
        """In the first epochs drop the prototypes' gradient, so that the optimiser does not update them."""
        if self._frozen:
            self.prototypes.weight.grad = None

    def _codes(self, view: int, z_SBD: Tensor, logits_SBK: Tensor, clock: Clock) -> Tensor:
        """Codes of a full-size view, [B, K], from the global batch and the view's queue."""
        rank, images = world()[0], z_SBD.shape[1]
        scores_RK = gather_rows(logits_SBK[view])
        if self.queues and clock.epoch >= self.queue_epoch:
            queue = self.queues[view]
            assert isinstance(queue, Queue)
            if bool(queue.written.all()):
                scores_RK = torch.cat([scores_RK, self.prototypes(queue.rows)])
            queue.push(gather_rows(z_SBD[view]))
        return sinkhorn(scores_RK, self.epsilon, self.iterations)[rank * images : (rank + 1) * images]


METHOD = SwAV
