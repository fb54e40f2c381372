"""SMoG (Pang, Zhang, Li, Cai, Lu; ECCV 2022, arXiv 2207.06167): synchronous momentum grouping.

Grain: group. A crop is contrasted with K groups of images, which are updated in the same step in which they are used.

Equations. Online network f, p with predictor r; momentum network f', p'. For crops x_r of an image (online) and x'_s
(momentum): e_r = unit(p(f(x_r))), o_r = unit(r(p(f(x_r)))), t_s = unit(p'(f'(x'_s))). For each of H banks of K unit
vectors G (heads; head h is updated from large crop h mod 2), over the images i of the global batch:

    c_s(i) = argmax_c t_s(i) . G_c,   a(i) = argmax_c e(i) . G_c                                   (old groups)
    G'_c = unit( beta G_c + (1 - beta) mean_{a(i) = c} e(i) ), or G_c without members
    L = mean_{h, s, r, i} -log( exp(o_r(i) . G'_{c_s(i)} / tau) / sum_c exp(o_r(i) . G'_c / tau) )   (new groups)

beta falls linearly and is lowered before it is used; theta' <- m theta' + (1 - m) theta opens each step. A memory
holds e of every image's (at most two) large crops; before step 0 a pass without gradient fills it. Every
`reset_epochs`, first at step 0, spherical k-means of the memory replaces the groups, and theta' <- theta.

Described: gradient also flows through the new groups (`group_grad`). Released: it does not. Reconstructed, as only
the released code could be read: values at other scales than the paper's; only the last of several `micro_batches` has
this gradient; batch norm in the pass of `clean`.
Released also: passes that only move running statistics (`statistics_passes`), and micro-batches that count as batches
(`micro_as_batches`), for the learning rate as well (`optimizer.schedule.parts`).

Measured (reports/table1.pdf): Fashion-MNIST linear 83.6 ± 0.5, Animal-MNIST linear 86.1 ± 2.0.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from polygrain.backbones.contract import Backbone
from polygrain.backbones.droppath import drop_path_off, remove_drop_path
from polygrain.nn import ema
from polygrain.nn.clock import Clock
from polygrain.nn.distributed import gather_rows, sum_over_processes, world
from polygrain.nn.groups import assign, group_loss, group_monitors, moved_groups, spherical_kmeans
from polygrain.nn.heads import Head
from polygrain.nn.phases import phase
from polygrain.nn.random import permutation
from polygrain.nn.schedules import linear
from polygrain.provenance.errors import UserError
from polygrain.views.batch import Batch, DataPasses


class Embedded(NamedTuple):
    """Unit rows of a micro-batch: o of all online crops [R, B, D], e of the large ones [L, B, D], t [S, B, D]."""

    predictor: Tensor
    online: Tensor
    momentum: Tensor


class SMoG(nn.Module):
    """Online and momentum network, groups, and a memory of an epoch's embeddings.

    backbone: the network that is evaluated. images, batch: of pre-training and of a step, all processes.
    groups, heads: K (None: one per image of an epoch, which is instance discrimination) and H. temperature: tau.
    momentum: m; 0: equal weights. beta_start, beta_end: momentum of the groups; both 1: fixed between resets.
    reset: what is reset every `reset_epochs` (after the first groups), with `kmeans_iterations` rounds of k-means.
    hidden, embedding, activation: inner and output width of the heads, activation of p.
    predictor: whether there is r; without it o = e. truncated_init: heads' linear layers start as in Swin, or torch.
    group_features: what updates the groups: e, t or o. logit_groups: new or old G in the loss.
    large, targets, small: large crops of the online and of the momentum network; small crops.
    asymmetric: recipes `*_a` for one network and `*_b` for the other, exchanged at each step; else one recipe for both.
    joint_norm: crops of both sizes share batch-norm statistics. clean: e from a pass without drop path and gradient.
    micro_batches: parts with their own batch norm; in the loss, all parts but the last use the old groups.
    micro_as_batches: micro-batches exchange the recipes in turn, and fill the memory one by one.
    statistics_passes: small crops pass the momentum network without `joint_norm`, rows of `clean` the predictor.
    decay_all: weight decay (and LARC) on all parameters; else not on biases, norms and tables of relative positions.

    Raises UserError for values that do not fit each other.
    """

    encoder_name = "backbone."
    uses_labels = False

    groups: Tensor
    memory: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        images: int,
        batch: int,
        groups: int | None,
        heads: int,
        temperature: float,
        momentum: float,
        group_grad: bool,
        beta_start: float,
        beta_end: float,
        reset: Literal["both", "groups", "momentum", "none"],
        reset_epochs: float,
        kmeans_iterations: int,
        hidden: int,
        embedding: int,
        activation: Literal["relu", "gelu"],
        predictor: bool,
        truncated_init: bool,
        group_features: Literal["online", "momentum", "predictor"],
        logit_groups: Literal["new", "old"],
        large: int,
        targets: int,
        small: int,
        asymmetric: bool,
        joint_norm: bool,
        clean: bool,
        micro_batches: int,
        micro_as_batches: bool,
        statistics_passes: bool,
        decay_all: bool,
    ) -> None:
        super().__init__()
        slots = images // batch * batch
        groups = slots if groups is None else groups
        if groups > slots:
            raise UserError(f"method.values.groups {groups} exceeds the {slots} images of an epoch; take fewer groups")
        if min(groups, heads, large, targets, micro_batches) < 1 or small < 0 or batch % micro_batches:
            raise UserError(
                "method.values: groups, heads, large, targets and micro_batches must be at least 1, small at least 0,"
                f" and micro_batches {micro_batches} must divide the batch {batch}"
            )
        if clean and group_grad:
            raise UserError("method.values: clean embeddings carry no gradient; set clean or group_grad to false")
        own_small = small if asymmetric and (joint_norm or statistics_passes) else 0
        if micro_as_batches and asymmetric and micro_batches > 1 and (large, small) != (targets, own_small):
            raise UserError(
                f"method.values: micro_as_batches exchanges crops, but the online network has {large} and {small}, the"
                f" momentum network {targets} and {own_small}; take as many, or set micro_as_batches to false"
            )
        self.backbone = backbone
        self.projector = Head(backbone.width, hidden, embedding, layers=2, activation=activation, final_norm="batch")
        self.predictor = Head(embedding, hidden, embedding, layers=2) if predictor else nn.Identity()
        for part in (*self.projector, *self.predictor.children()) if truncated_init else ():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)
        self.momentum_backbone = cast(Backbone, ema.frozen_copy(backbone))
        self.momentum_projector = ema.frozen_copy(self.projector)
        remove_drop_path(self.momentum_backbone)
        self.register_buffer("groups", torch.zeros(heads, groups, embedding))
        self.register_buffer("memory", torch.zeros(min(large, 2), slots, embedding))
        self.batch, self.temperature, self.momentum, self.group_grad = batch, temperature, momentum, group_grad
        self.beta_start, self.beta_end = beta_start, beta_end
        self.reset, self.reset_epochs, self.kmeans_iterations = reset, reset_epochs, kmeans_iterations
        self.group_features, self.logit_groups = group_features, logit_groups
        self.large, self.targets, self.small, self.own_small = large, targets, small, own_small
        self.asymmetric, self.joint_norm, self.clean = asymmetric, joint_norm, clean
        self.micro_batches, self.micro_as_batches = micro_batches, micro_as_batches
        self.statistics_passes, self.decay_all = statistics_passes, decay_all
        self._moved: tuple[Tensor, Tensor] | None = None  # between forward and after_step

    def views(self, clock: Clock) -> tuple[str, ...]:
        """Ask for the online network's large and small crops, then for the momentum network's."""
        turn = clock.step_in_epoch * (self.micro_batches if self.micro_as_batches else 1)
        q, k = ("_a", "_b") if turn % 2 == 0 else ("_b", "_a")
        if not self.asymmetric:
            q = k = ""
        online = (f"global{q}",) * self.large + (f"local{q}",) * self.small
        return online + (f"global{k}",) * self.targets + (f"local{k}",) * self.own_small

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Train the online network and its predictor."""
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                free = parameter.ndim <= 1 or name.endswith("bias") or "relative" in name
                groups[self.decay_all or not free].append(parameter)
        names = {True: "decayed", False: "not_decayed"}
        return [{"params": params, "name": names[decay], "decay": decay} for decay, params in groups.items() if params]

    @torch.no_grad()
    def start_epoch(self, clock: Clock, data: DataPasses) -> None:
        """Before step 0, fill the memory: each large crop alone through the untrained online network."""
        if clock.steps_per_epoch * self.batch != self.memory.shape[1]:
            raise UserError(
                f"method.values: images and batch make an epoch of {self.memory.shape[1]} images, but it has"
                f" {clock.steps_per_epoch} steps of {self.batch}; take both from pretrain"
            )
        if clock.step > 0:
            return
        recipes = ("global_a" if self.asymmetric else "global",) * len(self.memory)
        for place, batch in enumerate(data.augmented_pass(clock, recipes)):
            parts = _parts(batch.views, self.micro_batches if self.micro_as_batches else 1)
            projected = [self._fill(views) for views in parts]
            self._remember(place, normalize(torch.cat(projected, dim=1), dim=2))

    @torch.no_grad()
    def before_step(self, clock: Clock) -> None:
        """Reset groups and momentum network when due; then update the momentum network's parameters."""
        if clock.step % max(1, round(self.reset_epochs * clock.steps_per_epoch)) == 0:
            if self.reset in ("both", "groups") or clock.step == 0:
                with phase("rest: k-means"):
                    self.groups = torch.stack([self._cluster(head, clock) for head in range(len(self.groups))])
            if self.reset in ("both", "momentum"):
                ema.copy_parameters(self.momentum_backbone, self.backbone)
                ema.copy_parameters(self.momentum_projector, self.projector)
        ema.update(self.momentum_backbone, self.backbone, self.momentum)
        ema.update(self.momentum_projector, self.projector, self.momentum)

    def forward(self, batch: Batch, clock: Clock) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the group term over the global batch; groups and memory are written in `after_step`."""
        beta = linear(self.beta_start, self.beta_end, clock.step + 1, clock.steps)
        micro = enumerate(_parts(batch.views, self.micro_batches))
        parts = [self._embed(self._exchanged(views, number)) for number, views in micro]
        moved, terms = [], []
        for head, old_KD in enumerate(self.groups):
            features_BD = self._group_features(parts, head)
            with phase("rest: groups"):
                moved.append(moved_groups(old_KD, features_BD, assign(features_BD, old_KD), beta))
            for number, part in enumerate(parts, start=1):
                bank_KD = moved[head] if self.logit_groups == "new" and number == len(parts) else old_KD
                with phase("rest: groups"):
                    targets_SB = assign(part.momentum.flatten(0, 1), old_KD).view(self.targets, -1)
                terms.append(group_loss(part.predictor, bank_KD, targets_SB, self.temperature))
        online_LBD = torch.cat([part.online.detach() for part in parts], dim=1)
        momentum_BD = torch.cat([part.momentum[0] for part in parts])
        self._moved = torch.stack(moved).detach(), online_LBD[: len(self.memory)]
        with phase("rest: monitors"):
            labels_B, new_KD = batch.labels_for_monitoring, moved[0].detach()
            monitors = group_monitors(online_LBD[0], momentum_BD, labels_B, self.groups[0], new_KD)
        return {"group": sum_over_processes(torch.stack(terms).mean()) / world()[1]}, monitors

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        """Store the new groups and this step's embeddings."""
        assert self._moved is not None, "after_step follows forward"
        self.groups, online_LBD = self._moved
        self._remember(clock.step_in_epoch, online_LBD)
        self._moved = None

    def _exchanged(self, views: list[Tensor], number: int) -> list[Tensor]:
        """The views of a micro-batch; those of the two networks change places in every second one, if it counts."""
        if not (self.micro_as_batches and self.asymmetric and number % 2):
            return views
        online = self.large + self.small
        return views[online:] + views[:online]

    def _fill(self, views: Sequence[Tensor]) -> Tensor:
        """Project each large crop alone, [L, B, D]."""
        with drop_path_off(self.backbone):
            projected = [self._project(self.backbone, self.projector, [view])[0] for view in views]
        for rows_BD in projected:
            self.predictor(rows_BD)  # for its batch norm, which follows the data too
        return torch.stack(projected)

    def _embed(self, views: Sequence[Tensor]) -> Embedded:
        end = self.large + self.small
        q, k = list(views[:end]), list(views[end : end + self.targets])
        if self.joint_norm or self.statistics_passes:  # the momentum network gets the same mixture of sizes
            k += views[end + self.targets :] if self.asymmetric else q[self.large :]
        projected = self._project(self.backbone, self.projector, q)
        outputs_RD = torch.cat([self.predictor(rows_RD) for rows_RD in projected])
        with torch.no_grad():
            momentum_RD = torch.cat(self._project(self.momentum_backbone, self.momentum_projector, k))
            if self.clean:
                with drop_path_off(self.backbone):
                    projected = self._project(self.backbone, self.projector, q if self.joint_norm else q[: self.large])
                for rows_RD in projected if self.statistics_passes else ():
                    self.predictor(rows_RD)
        outputs_RBD, online_RBD, momentum_RBD = (
            normalize(rows_RD, dim=1).view(-1, len(views[0]), rows_RD.shape[1])
            for rows_RD in (outputs_RD, torch.cat(projected), momentum_RD)
        )
        return Embedded(outputs_RBD, online_RBD[: self.large], momentum_RBD[: self.targets])

    def _project(self, backbone: Backbone, projector: nn.Module, crops: Sequence[Tensor]) -> list[Tensor]:
        """Project crops, large before small, to rows in crop-major order: in one part, or in one part per size."""
        pooled = [encoded.pooled for encoded in backbone.encode_crops(crops, joint_norm=self.joint_norm)]
        border = sum(crop.shape[-1] == crops[0].shape[-1] for crop in crops)
        parts = [pooled] if self.joint_norm else [pooled[:border], pooled[border:]]
        return [projector(torch.cat(part)) for part in parts if part]

    def _group_features(self, parts: Sequence[Embedded], head: int) -> Tensor:
        """The rows [B, D] that update a head's groups; the last micro-batch may keep its gradient."""
        crop = head % (min(self.targets, 2) if self.group_features == "momentum" else len(self.memory))
        *earlier, last_BD = [getattr(part, self.group_features)[crop] for part in parts]
        return torch.cat([*(rows_BD.detach() for rows_BD in earlier), last_BD if self.group_grad else last_BD.detach()])

    def _remember(self, place: int, online_LBD: Tensor) -> None:
        rows_BLD = gather_rows(online_LBD.transpose(0, 1).contiguous())
        self.memory[:, place * self.batch : (place + 1) * self.batch] = rows_BLD.transpose(0, 1)

    def _cluster(self, head: int, clock: Clock) -> Tensor:
        """A head's groups by k-means of its memory; each process works on its share of the rows."""
        bank_MD, (rank, processes) = self.memory[head % len(self.memory)], world()
        start_K = permutation(len(bank_MD), clock.seed, "groups", clock.step, head)[: self.groups.shape[1]]
        start_KD = bank_MD[start_K.to(bank_MD.device)]
        return spherical_kmeans(bank_MD[rank::processes], start_KD, self.kmeans_iterations)


def _parts(views: Sequence[Tensor], count: int) -> list[list[Tensor]]:
    """The views of each of `count` parts of a batch."""
    return [list(part) for part in zip(*(view.chunk(count) for view in views), strict=True)]


METHOD = SMoG
