"""Mugs (Zhou, Zhou, Si, Yu, Ng, Yan; 2022, arXiv 2203.14415): multi-granular self-supervised learning.

Grains: instance (an image against others), local group (an image together with its nearest neighbours, against other
such groups) and group (soft assignments to learnable prototypes). Student f, h, p; EMA teacher f', h' without p.

Equations. unit(.) is l2 normalisation; t = 1, 2 are the teacher's (weak) views of an image, s = 1, 2 the student's own
global crops and s = 3 .. V + 2 its local ones. X are the tokens of a crop before the final norm of f, Y after it, y_c
the class token of Y (the mean of the map where a network has none).

    instance     q_s = unit(p(unit(h(y_c)))), k_t = unit(h'(y_c))
                 l(t, s) = mean_b -log( e^{q_s.k_t/tau} / (e^{q_s.k_t/tau} + sum_j e^{q_s.n_j/tau}) ), n_j: a queue
    local group  the same l, with own heads and queue, of y* in place of y_c: u is the mean token of a crop, J its k
                 most similar rows of a memory M, y* = norm( block([u, M_J])_0 ), a transformer block without positions
    group        o = c . unit(h(y_c)) for prototypes c of length g; P_t = softmax((o_t - centre)/tau_t)
                 l(t, s) = mean_b -sum_j P_t[j] log softmax(o_s/tau_s)[j]
    each         L = ( mean of l(1, 2), l(2, 1)  +  mean of l(t, s) over t and s > 2 ) / 2;  total sum w L / sum w

Student and teacher each have a memory of the mean patch token of Y of their first global crop; the student's memory
takes only weakly augmented crops. Queues take the keys of view 1, then of view 2. Queues, memories and centre are
written at the end of `forward`, equivalent to updating after the step. theta' <- m theta' + (1 - m) theta follows the
optimiser's step, m rising to 1. The teacher stays in training mode, without drop path.

Described against released (sections of the specification in brackets; abstract, figure and code could be read):
* `query` [3.3]: u is the mean patch token of Y (consistent), or the mean of all tokens of X (asymmetric).
* `pointer` [3.4]: a ring, or the release's write pointer, which moves twice as far as it should.
* `unfilled` [10.2]: rows of a memory that still hold initial noise are masked, or retrieved like others.
* `weighting` [4.3]: w are factors; or they only switch terms on: sum L / sum w over the w above 0.
* Backbone `vit`, `resample` [2.1]: position tables of small crops are resized, or sampled with the release's factor.
Reconstructed: values at other scales than the paper's; the ablations of section 9; batch norm in heads; for a ResNet
the first convolution has the learning rate of the patch embedding. One memory serves search and retrieval.

Measured (reports/table1.pdf): Fashion-MNIST linear 83.2 ± 0.3, Animal-MNIST linear 86.5 ± 0.9.
Legend: B images, S crops of the student, T views of the teacher, R rows of several crops, crop-major; D width of a
feature or an embedding, P prototypes.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from polygrain.backbones.contract import Backbone
from polygrain.backbones.droppath import remove_drop_path
from polygrain.backbones.grains import CropFeatures, Network
from polygrain.backbones.relation import Relation
from polygrain.nn import ema
from polygrain.nn.clock import Clock
from polygrain.nn.distributed import gather_rows, mean_over_processes
from polygrain.nn.graph import nearest_neighbour
from polygrain.nn.groups import assignment_monitors
from polygrain.nn.heads import Head
from polygrain.nn.local_group import LocalGroup
from polygrain.nn.monitors import feature_monitors
from polygrain.nn.optim import split_by_decay, with_own_rate
from polygrain.nn.pairs import cross_entropies, info_nce, over_pairs
from polygrain.nn.phases import phase
from polygrain.nn.prototypes import Prototypes
from polygrain.nn.queue import Queue
from polygrain.nn.schedules import cosine, linear_closed
from polygrain.provenance.errors import UserError
from polygrain.views.batch import Batch

GRAINS = ("instance", "local-group", "group")


class Mugs(nn.Module):
    """Student, teacher, predictors, queues, memories and centre; parts that no grain needs are not built.

    backbone: the student's; the teacher's copy is evaluated. images, batch: of pre-training and a step, all processes.
    grains: those that are contrasted. weights, weighting: w, and what they mean (see above).
    pairs: see `over_pairs`. local_crops: V. student_views: own crops of recipes `mixed_*`, or the teacher's views.
    remember: which global crops the student's memory takes, the weak ones or all.
    memory, pointer, unfilled: rows of a memory (None: one per image), its write pointer, how its noise is treated.
    neighbours, query, aggregation: k, u, and how y* is made: by the block of `relation_heads`, as the mean, or as u.
    queue, temperature: Q of instance and of local-group (None: one per image; the release has one number for the rows
    of memory and local-group queue), and tau of both.
    prototypes, norm_last_layer: P, and whether g stays 1. freeze_epochs: epochs in which c and g are not trained.
    student_temperature: tau_s. teacher_temperature, final_teacher_temperature, teacher_warmup: start and end of tau_t,
    and the epochs of the straight line between, both ends included. centre_momentum: of the centre.
    hidden, prediction_hidden, embedding, bottleneck: widths inside projectors and predictors, of queries and keys, and
    before the prototypes. head_norm: batch norm in heads. prediction, norm_before_prediction: p, and the inner unit.
    momentum: m at the start. embedding_lr: factor of the patch embedding's learning rate.

    Raises UserError for values that do not fit each other.
    """

    encoder_name = "teacher.backbone."
    uses_labels = False

    centre: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        images: int,
        batch: int,
        grains: list[Literal["instance", "local-group", "group"]],
        weights: Mapping[str, float],
        weighting: Literal["factors", "switches"],
        pairs: Literal["half", "flat"],
        local_crops: int,
        student_views: Literal["own", "teacher"],
        remember: Literal["weak", "all"],
        memory: int | None,
        pointer: Literal["ring", "double"],
        unfilled: Literal["masked", "retrieved"],
        neighbours: int,
        query: Literal["consistent", "asymmetric"],
        aggregation: Literal["block", "mean", "query"],
        relation_heads: int,
        queue: Mapping[str, int | None],
        temperature: float,
        prototypes: int,
        norm_last_layer: bool,
        freeze_epochs: int,
        student_temperature: float,
        teacher_temperature: float,
        final_teacher_temperature: float,
        teacher_warmup: int,
        centre_momentum: float,
        hidden: int,
        prediction_hidden: int,
        embedding: int,
        bottleneck: int,
        head_norm: bool,
        prediction: bool,
        norm_before_prediction: bool,
        momentum: float,
        embedding_lr: float,
    ) -> None:
        super().__init__()
        _check_grains(grains, weights)
        self.grains: list[str] = [grain for grain in GRAINS if grain in grains]
        contrasted = [grain for grain in self.grains if grain != "group"]
        group, local = "group" in grains, "local-group" in grains
        queues = {grain: _rows(f"queue.{grain}", queue.get(grain, 0), images, batch) for grain in contrasted}
        memory = _rows("memory", memory, images, batch) if local else neighbours
        if not 0 <= neighbours <= memory or backbone.width % relation_heads:
            raise UserError(
                f"method.values: neighbours {neighbours} must be at most memory {memory}, and relation_heads"
                f" {relation_heads} must divide the backbone's width {backbone.width}"
            )
        head = partial(Head, batch_norm=head_norm, activation="gelu")
        projectors: dict[str, nn.Module] = {
            grain: head(backbone.width, hidden, embedding, layers=3, bias=False, final_bias=False)
            for grain in contrasted
        }
        if group:
            projectors["group"] = head(backbone.width, hidden, bottleneck, layers=3)
        relation = Relation(backbone.width, relation_heads) if local and aggregation == "block" else None
        count = 0 if aggregation == "query" else neighbours
        self.student = Network(
            backbone,
            LocalGroup(relation, neighbours=count, query=query, masked=unfilled == "masked") if local else None,
            projectors,
            Prototypes(bottleneck, prototypes, train_gain=not norm_last_layer) if group else None,
        )
        self.teacher = cast(Network, ema.frozen_copy(self.student))
        remove_drop_path(self.teacher)
        self.predictors = nn.ModuleDict(
            {
                grain: head(embedding, prediction_hidden, embedding, layers=2, bias=False, final_bias=False)
                for grain in contrasted
                if prediction
            }
        )
        self.queues = nn.ModuleDict(
            {grain: Queue(rows, embedding, wrap="ring", unit=True) for grain, rows in queues.items()}
        )
        self.student_memory = Queue(memory, backbone.width, wrap=pointer, unit=False) if local else None
        self.teacher_memory = Queue(memory, backbone.width, wrap=pointer, unit=False) if local else None
        self.register_buffer("centre", torch.zeros(prototypes if group else 0))
        self.weights, self.weighting, self.pairs = weights, weighting, pairs
        self.local_crops, self.student_views, self.remember = local_crops, student_views, remember
        self.temperature, self.freeze_epochs = temperature, freeze_epochs
        self.student_temperature, self.centre_momentum = student_temperature, centre_momentum
        self.teacher_temperature = teacher_temperature, final_teacher_temperature, teacher_warmup
        self.norm_before_prediction, self.momentum, self.embedding_lr = norm_before_prediction, momentum, embedding_lr
        self._frozen = False  # between forward and after_clip

    def views(self, clock: Clock) -> tuple[str, ...]:
        """Ask for the teacher's views, the student's global crops if it has its own, and its local crops."""
        own = ("mixed_a", "mixed_b") if self.student_views == "own" else ()
        return ("weak_a", "weak_b", *own) + ("mixed_local",) * self.local_crops

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Train student and predictors; biases and 1-D tensors without decay [6.2]; the embedding has its own rate."""
        backbone = self.student.backbone
        embed = getattr(backbone, "embed", None) or getattr(backbone, "stem", None)
        first = {id(parameter) for parameter in embed.parameters()} if isinstance(embed, nn.Module) else set()
        return with_own_rate(split_by_decay(self), first, "embedding", self.embedding_lr)

    def forward(self, batch: Batch, clock: Clock) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute a term per grain over the global batch, and monitors; write queues, memories and centre.

        `purity`: share of images whose nearest neighbour in the batch, by what the memory takes, has their label.
        """
        self._frozen = clock.epoch < self.freeze_epochs
        taught, views = batch.views[:2], batch.views
        own = views[2:4] if self.student_views == "own" else taught
        with torch.no_grad():
            target = self.teacher(taught, self.teacher_memory)
        local = views[len(views) - self.local_crops :]
        seen = [self.student(crops, self.student_memory) for crops in (own, local) if crops]
        size = len(taught[0])
        targets = {grain: rows_RD.view(2, size, -1) for grain, rows_RD in target.rows.items()}
        targets |= {grain: normalize(targets[grain], dim=2) for grain in self.queues}
        losses = {}
        for grain in self.grains:
            outputs_RD = torch.cat([self._outputs(grain, features.rows[grain]) for features in seen])
            losses[grain] = self._term(grain, outputs_RD.view(-1, size, outputs_RD.shape[1]), targets[grain], clock)
        with phase("rest"), torch.no_grad():
            monitors = self._monitors(target, targets, seen[0], batch.labels_for_monitoring, clock)
            self._write(target, targets, seen[0].memory, batch)
        return losses, monitors

    @torch.no_grad()
    def after_clip(self) -> None:
        """In the first epochs drop the prototypes' gradients, so that the optimiser does not update them."""
        if self._frozen and self.student.prototypes is not None:
            for parameter in self.student.prototypes.parameters():
                parameter.grad = None

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        """Update the teacher from the student."""
        ema.update(self.teacher, self.student, cosine(self.momentum, 1.0, clock.step, clock.steps))

    def _outputs(self, grain: str, rows_RD: Tensor) -> Tensor:
        """The student's queries, unit length; for the group grain its logits."""
        if grain == "group":
            return rows_RD
        if grain in self.predictors:
            rows_RD = self.predictors[grain](normalize(rows_RD, dim=1) if self.norm_before_prediction else rows_RD)
        return normalize(rows_RD, dim=1)

    def _term(self, grain: str, outputs_SBD: Tensor, target_TBD: Tensor, clock: Clock) -> Tensor:
        if grain == "group":
            losses_TS = cross_entropies(outputs_SBD, self._assignments(target_TBD, clock), self.student_temperature)
        else:
            losses_TS = info_nce(outputs_SBD, target_TBD, self._queue(grain).rows, self.temperature)
        factor = self.weights[grain] if self.weighting == "factors" else 1.0
        share = factor / sum(self.weights[name] for name in self.grains)
        return share * mean_over_processes(over_pairs(losses_TS, self.pairs))

    def _queue(self, grain: str) -> Queue:
        return cast(Queue, self.queues[grain])

    def _assignments(self, logits_TBP: Tensor, clock: Clock) -> Tensor:
        temperature = linear_closed(*self.teacher_temperature[:2], clock.epoch, self.teacher_temperature[2])
        return ((logits_TBP - self.centre) / temperature).softmax(dim=2)

    def _write(self, target: CropFeatures, targets: dict[str, Tensor], student_BD: Tensor, batch: Batch) -> None:
        for grain in self.queues:
            for keys_BD in targets[grain]:
                self._queue(grain).push(gather_rows(keys_BD))
        if "group" in targets:
            mean_P = mean_over_processes(targets["group"].mean(dim=(0, 1)))
            self.centre = self.centre_momentum * self.centre + (1.0 - self.centre_momentum) * mean_P
        if self.student_memory is None or self.teacher_memory is None:
            return
        self.teacher_memory.push(gather_rows(target.memory).float())
        student_BD = gather_rows(student_BD).float()
        if self.remember == "weak" and self.student_views == "own":
            student_BD = student_BD[self._weak(batch)]
        self.student_memory.push(student_BD)

    def _weak(self, batch: Batch) -> Tensor:
        """Which of the student's first global crops are weakly augmented, bool [B], all processes."""
        weak_B = batch.weak[2]
        if weak_B is None:
            raise UserError("augmentation.mixed_a is no mixed recipe (weak, strong); set method.values.remember: all")
        return gather_rows(weak_B.to(torch.uint8)).bool()

    def _monitors(
        self, target: CropFeatures, targets: dict[str, Tensor], student: CropFeatures, labels_B: Tensor, clock: Clock
    ) -> dict[str, Tensor]:
        monitors = feature_monitors(target.pooled[: len(labels_B)])
        labels_B = gather_rows(labels_B)
        if "group" in targets:
            monitors |= assignment_monitors(self._assignments(targets["group"], clock))
        if self.teacher_memory is not None:
            same_B = labels_B[nearest_neighbour(gather_rows(target.memory))] == labels_B
            monitors["purity"] = (same_B & (labels_B >= 0)).sum() / (labels_B >= 0).sum().clamp(min=1)
            monitors["teacher_unfilled"] = mean_over_processes(target.unfilled)
            monitors["student_unfilled"] = mean_over_processes(student.unfilled)
        return monitors


def _check_grains(grains: Sequence[str], weights: Mapping[str, float]) -> None:
    if not grains or len(set(grains)) < len(grains) or not set(grains) <= set(GRAINS):
        raise UserError(f"method.values.grains: one or more of {', '.join(GRAINS)}, each once, not {list(grains)}")
    if set(weights) != set(GRAINS) or min(weights[grain] for grain in grains) <= 0:
        raise UserError(f"method.values.weights: give each of {', '.join(GRAINS)} a number, above 0 if in grains")


def _rows(name: str, size: int | None, images: int, batch: int) -> int:
    """How many rows a queue or memory has."""
    size = images if size is None else size
    if not batch <= size <= images:
        raise UserError(f"method.values.{name} {size} must be from {batch} (batch) to {images} (images)")
    return size


METHOD = Mugs
