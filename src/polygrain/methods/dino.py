"""DINO (Caron, Touvron, Misra, Jegou, Mairal, Bojanowski, Joulin; ICCV 2021, arXiv 2104.14294): self-distillation.

Grain: group. A student predicts to which of K prototypes its teacher, a moving average, assigns another view.

Equations. o = c . unit(h(f(x))), with f the network, h a head of three layers and c prototypes of length g (1, or
trained). Teacher f', h', c' sees the full-size views t = 1, 2, the student these and the small crops s:

    P_t = softmax((o'_t - centre) / tau'),   l(t, s) = -sum_k P_tk log softmax(o_s / tau)_k
    L = mean over images, t and s != t of l(t, s)
    centre <- w centre + (1 - w) mean of o' over images and t                             (after its use in a step)
    theta' <- m theta' + (1 - m) theta, m from `momentum` to `momentum_end` by half a cosine     (after the optimiser)

tau' rises on a line over the first epochs. In the first epochs c and g stand still (`freeze_epochs`). The teacher stays
in training mode, without drop path; its batch norm follows its own passes. The teacher is evaluated.

Deviations: the two full-size views have SMoG's recipes (`global_a`, `global_b`), which at cpu scale differ by
solarisation alone, as blur is left out; crops, budget and optimiser of the scale. Mugs's group term is this loss with
another mean over pairs.

Measured: not measured yet.
Legend: B images of this process, S crops, T = 2 views of the teacher, R rows of several crops, E and D widths of
features and embeddings, K prototypes.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from polygrain.backbones.contract import Backbone
from polygrain.backbones.droppath import remove_drop_path
from polygrain.nn import ema
from polygrain.nn.clock import Clock
from polygrain.nn.distributed import mean_over_processes
from polygrain.nn.groups import assignment_monitors
from polygrain.nn.heads import Head
from polygrain.nn.monitors import feature_monitors
from polygrain.nn.optim import split_by_decay
from polygrain.nn.pairs import cross_entropies, over_pairs
from polygrain.nn.phases import phase
from polygrain.nn.prototypes import Prototypes
from polygrain.nn.schedules import cosine, linear_closed
from polygrain.views.batch import Batch


class Network(nn.Module):
    """Backbone, head and prototypes; linear layers of the head start truncated normal (0.02), their biases at 0."""

    def __init__(self, backbone: Backbone, projector: Head, prototypes: Prototypes) -> None:
        super().__init__()
        self.backbone, self.projector, self.prototypes = backbone, projector, prototypes
        for part in projector:
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)

    def forward(self, crops: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [S, B, K] of crops of one or several sizes, and the pooled features [B, E] of the first."""
        encoded = self.backbone.encode_crops(crops)
        rows_RD = self.projector(torch.cat([crop.pooled for crop in encoded]))
        logits_RK = self.prototypes(normalize(rows_RD, dim=1))
        return logits_RK.view(len(crops), -1, logits_RK.shape[1]), encoded[0].pooled


class DINO(nn.Module):
    """Student, teacher and centre.

    backbone: the student's; the teacher's copy is evaluated. local_crops: small crops of the student.
    prototypes, norm_last_layer: K, and whether g stays 1. freeze_epochs: epochs in which c and g are not trained.
    student_temperature: tau. teacher_temperature, final_teacher_temperature, teacher_warmup: start and end of tau', and
    the epochs of the straight line between, both ends included. centre_momentum: w; 1: there is no centre.
    hidden, embedding: inner and output width of the head. head_norm: batch norm in it.
    momentum, momentum_end: m at the start and the end of the run.
    """

    encoder_name = "teacher.backbone."
    uses_labels = False

    centre: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        local_crops: int,
        prototypes: int,
        norm_last_layer: bool,
        freeze_epochs: int,
        student_temperature: float,
        teacher_temperature: float,
        final_teacher_temperature: float,
        teacher_warmup: int,
        centre_momentum: float,
        hidden: int,
        embedding: int,
        head_norm: bool,
        momentum: float,
        momentum_end: float,
    ) -> None:
        super().__init__()
        self.student = Network(
            backbone,
            Head(backbone.width, hidden, embedding, layers=3, batch_norm=head_norm, activation="gelu"),
            Prototypes(embedding, prototypes, train_gain=not norm_last_layer),
        )
        self.teacher = cast(Network, ema.frozen_copy(self.student))
        remove_drop_path(self.teacher)
        self.register_buffer("centre", torch.zeros(prototypes))
        self.local_crops, self.freeze_epochs = local_crops, freeze_epochs
        self.student_temperature, self.centre_momentum = student_temperature, centre_momentum
        self.teacher_temperature = teacher_temperature, final_teacher_temperature, teacher_warmup
        self.momentum, self.momentum_end = momentum, momentum_end
        self._frozen = False  # between forward and after_clip

    def views(self, clock: Clock) -> tuple[str, ...]:
        """Ask for the two full-size views, then for the small crops."""
        return ("global_a", "global_b") + ("local_a",) * self.local_crops

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Train the student; biases and norms without weight decay."""
        return split_by_decay(self)

    def forward(self, batch: Batch, clock: Clock) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the group term over the global batch, and monitors; update the centre."""
        self._frozen = clock.epoch < self.freeze_epochs
        with torch.no_grad():
            output_TBK, feature_BE = self.teacher(batch.views[:2])
            target_TBK = self._assignments(output_TBK, clock)
        logits_SBK, _ = self.student(batch.views)
        losses_TS = cross_entropies(logits_SBK, target_TBK, self.student_temperature)
        with phase("rest: monitors"), torch.no_grad():
            monitors = assignment_monitors(target_TBK) | feature_monitors(feature_BE)
            mean_K = mean_over_processes(output_TBK.mean(dim=(0, 1)))
            self.centre = self.centre_momentum * self.centre + (1.0 - self.centre_momentum) * mean_K
        return {"group": mean_over_processes(over_pairs(losses_TS, "flat"))}, monitors

    @torch.no_grad()
    def after_clip(self) -> None:
        """In the first epochs drop the prototypes' gradients, so that the optimiser does not update them."""
        if self._frozen:
            for parameter in self.student.prototypes.parameters():
                parameter.grad = None

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        """Update the teacher's parameters from the student's."""
        ema.update(self.teacher, self.student, cosine(self.momentum, self.momentum_end, clock.step, clock.steps))

    def _assignments(self, output_TBK: Tensor, clock: Clock) -> Tensor:
        start, end, epochs = self.teacher_temperature
        return ((output_TBK - self.centre) / linear_closed(start, end, clock.epoch, epochs)).softmax(dim=2)


METHOD = DINO
