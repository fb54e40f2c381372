"""MNCL, Multi-network Contrastive Learning Based on Global and Local Representations (Li, Long, Li; arXiv 2306.15930).

Grains: instance, a view against the queue's nearest neighbour of another view; and region, a view against averages of
parts of another view. Three networks: the trained one, its moving average, and the trained one without gradient.

Equations. Trained network f, g with predictor h; moving average f', g'. For views v_1, v_2, v_3 of N images:

    p_a = h(g(f(v_a))),  e_a = g'(f'(v_a)),  k_a = the row of the queue with the largest cosine to e_a
    t_a(s) = f(part s of v_a), s = 1 .. n^2;  c_a(j) = g(mean of t_a over the j-th set of r parts), J sets
    CE_T(A, B) = mean over i of -log( exp(A_i.B_i/T) / sum_k exp(A_i.B_k/T) ),   NTX_T: SimCLR's, over 2N rows
    L_region   = 1/(2J) sum_j [ CE_T1(p_2, c_1(j)) + CE_T1(p_1, c_2(j)) ]
    L_instance = 1/2 NTX_T2(k_3, p_1) + 1/2 NTX_T2(k_1, p_3)
    L = w L_region + a L_instance

All rows have unit length; c, k without gradient. e_3 enters the queue after the search. f', g' <- m (f', g') + (1 - m)
(f, g) opens the step, equivalent to the release's place between the passes. Batch norm is per pass, in the order v_1,
v_2, v_3, parts of v_1, of v_2. `local_gradient: tiles` is Fast-MoCo instead: with z_a = e_a and gradient through h, g
and f, L_region = 1/(2J) sum_j [ CE_T1(h(c_1(j)), z_2) + CE_T1(h(c_2(j)), z_1) ].

Deviations (specification 3 to 5). Described: what the authors' figure shows, as the paper's body could not be read.
* `local_gradient`: described `predictor`, L_region trains p; released `none`, p is detached.
* `queue_wrap`: described `ring`; released `cut` loses the rows of a batch that do not fit at the end of the queue.
* `search`: described `written`, past embeddings (k_a = e_a while there are none); released `all`, also initial noise.
* `head_norm_scale`, `ema_init`: described `one` and `copy`; released `uniform` in (0, 1) and `independent` (here the
  copy with the entries of each tensor shuffled).
Reconstructed: values at other scales than the paper's, biases and norms without weight decay there, the ablations (9).

Measured (reports/table1.pdf): Fashion-MNIST linear 82.7 ± 0.6, Animal-MNIST linear 86.6 ± 1.4.
Legend: N images of the global batch, b of this process, P parts of a view, J sets, D width, E feature width, Q queue.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from polygrain.backbones.contract import Backbone
from polygrain.nn import ema
from polygrain.nn.agreement import neighbour_agreement, own_key_share
from polygrain.nn.batch_norm import borrowed_statistics, norms_of
from polygrain.nn.clock import Clock
from polygrain.nn.contrastive import nt_xent, one_way
from polygrain.nn.distributed import gather_rows
from polygrain.nn.heads import Head
from polygrain.nn.monitors import effective_rank, spread
from polygrain.nn.neighbours import topk_cosine
from polygrain.nn.optim import split_by_decay
from polygrain.nn.parts import set_means, tiles
from polygrain.nn.phases import phase
from polygrain.nn.queue import Queue
from polygrain.provenance.errors import UserError
from polygrain.views.batch import Batch

Monitors = dict[str, Tensor]
Terms = tuple[dict[str, Tensor], Monitors]


class MNCL(nn.Module):
    """Trained network with predictor, its moving average, and a queue of past embeddings.

    backbone: the network that is evaluated. images, batch: of pre-training and of a step, all processes.
    grains: `region`, `instance` or both; parts that no grain needs are not built.
    local_gradient: `predictor` through p; `none`; `tiles`: Fast-MoCo, with region as only grain.
    hidden, embedding, predictor_hidden: inner and output width of g, inner width of h. momentum: m.
    region_weight, instance_weight: w and a. region_temperature, instance_temperature: T1 and T2.
    splits, combined: n and r. parts: `tiles` of the view, or n^2 small `crops`. combine: average `before` or `after` g.
    local_norm: batch norm's running statistics that parts update: `shared` the usual, `no_track` none, `separate` own.
    neighbour: k_a from the queue, or k_a = e_a. queue: Q, as a share of the images if below 1; at least a batch.
    third_view: v_3 is its `own` view, or the `first` or `second`. queue_wrap, search, head_norm_scale, ema_init: above.
    predictor_constant: h keeps the base learning rate. decay_all: biases and norms are decayed too.

    Raises UserError for values that do not fit each other.
    """

    encoder_name = "backbone."
    uses_labels = False

    def __init__(
        self,
        backbone: Backbone,
        *,
        images: int,
        batch: int,
        grains: list[Literal["region", "instance"]],
        local_gradient: Literal["predictor", "none", "tiles"],
        hidden: int,
        embedding: int,
        predictor_hidden: int,
        region_weight: float,
        instance_weight: float,
        region_temperature: float,
        instance_temperature: float,
        splits: int,
        combined: int,
        parts: Literal["tiles", "crops"],
        combine: Literal["before", "after"],
        local_norm: Literal["shared", "no_track", "separate"],
        neighbour: bool,
        queue: float,
        queue_wrap: Literal["ring", "cut"],
        search: Literal["written", "all"],
        head_norm_scale: Literal["one", "uniform"],
        ema_init: Literal["copy", "independent"],
        momentum: float,
        third_view: Literal["own", "first", "second"],
        predictor_constant: bool,
        decay_all: bool,
    ) -> None:
        super().__init__()
        _check(list(grains), local_gradient, splits, combined, local_norm)
        self.backbone = backbone
        self.projector = Head(backbone.width, hidden, embedding, layers=3, final_norm="batch_affine")
        self.predictor = Head(embedding, predictor_hidden, embedding, layers=2)
        for norm in norms_of(self.projector, self.predictor) if head_norm_scale == "uniform" else ():
            nn.init.uniform_(norm.weight)
        if "instance" in grains or local_gradient == "tiles":
            self.momentum_backbone = cast(Backbone, ema.frozen_copy(backbone))
            self.momentum_projector = ema.frozen_copy(self.projector)
            if ema_init == "independent":
                _shuffle(self.momentum_backbone)
                _shuffle(self.momentum_projector)
        self.neighbour = neighbour and "instance" in grains
        if self.neighbour:
            rows = max(round(queue * images), batch) if queue < 1 else int(queue)
            if not batch <= rows <= images:
                raise UserError(f"method.values.queue: {rows} rows, must be from {batch} (batch) to {images} (images)")
            self.queue = Queue(rows, embedding, wrap=queue_wrap, unit=True)
            self.queue_indices = Queue(rows, 1, wrap=queue_wrap, unit=False)
        if local_norm == "separate" and "region" in grains:
            own = [nn.BatchNorm1d(norm.num_features, affine=False) for norm in norms_of(backbone, self.projector)]
            self.part_statistics = nn.ModuleList(own)
        third = {"own": 3, "first": 1, "second": 2}[third_view]
        self.instance_roles, self.region_roles = (1, third), (1, 2)
        roles = {"instance": self.instance_roles, "region": self.region_roles}
        self.shown = sorted({role for grain in grains for role in roles[grain]})
        self.trained = {r for grain in grains if grain == "instance" or local_gradient != "none" for r in roles[grain]}
        self.grains, self.local_gradient, self.momentum, self.search = tuple(grains), local_gradient, momentum, search
        self.region_weight, self.instance_weight = region_weight, instance_weight
        self.region_temperature, self.instance_temperature = region_temperature, instance_temperature
        self.splits, self.combined, self.parts, self.combine = splits, combined, parts, combine
        self.local_norm = local_norm
        self.predictor_constant, self.decay_all = predictor_constant, decay_all
        self._newest: tuple[Tensor, Tensor] | None = None  # between forward and after_step

    def views(self, clock: Clock) -> tuple[str, ...]:
        """Ask for the views that the grains need, then for the crops of the first view and of the second."""
        crops = 2 * self.splits**2 if self.parts == "crops" and "region" in self.grains else 0
        return ("global",) * len(self.shown) + ("local",) * crops

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Train backbone, projector and predictor; with `predictor_constant` h keeps the base learning rate."""
        online = nn.ModuleList([self.backbone, self.projector])
        groups = []
        for name, part, constant in (("online", online, False), ("predictor", self.predictor, self.predictor_constant)):
            split = split_by_decay(part)
            if self.decay_all:
                split = [{"params": [p for g in split for p in g["params"]], "name": "decayed", "decay": True}]
            groups += [{**group, "name": f"{name}_{group['name']}", "lr_constant": constant} for group in split]
        return groups

    @torch.no_grad()
    def before_step(self, clock: Clock) -> None:
        """Update the moving average's parameters; its batch-norm statistics come from its own passes."""
        if hasattr(self, "momentum_backbone"):
            ema.update(self.momentum_backbone, self.backbone, self.momentum)
            ema.update(self.momentum_projector, self.projector, self.momentum)

    def forward(self, batch: Batch, clock: Clock) -> Terms:
        """Compute each grain's term over the global batch. The queue is written in `after_step`.

        Monitors: `region_top1`, `instance_top1`: share of images whose own key is the most similar one (chance 1 / N);
        `neighbour_agreement`: of labelled images whose nearest neighbour in the batch has their label;
        `neighbour_self`: of neighbours that show the same image; `spread`, `rank` of view 1 (`tiles`: of parts' means).
        """
        view, crops = dict(zip(self.shown, batch.views, strict=False)), batch.views[len(self.shown) :]
        if self.local_gradient == "tiles":
            return self._fast_moco(view, crops)
        losses: dict[str, Tensor] = {}
        monitors: dict[str, Tensor] = {}
        feature, p = {}, {}
        for role in self.shown:
            with torch.set_grad_enabled(torch.is_grad_enabled() and role in self.trained):
                feature[role] = self.backbone(view[role]).pooled
                p[role] = gather_rows(self.predictor(self.projector(feature[role])))
        if "region" in self.grains:
            with torch.no_grad(), self._part_norms():
                c_1, c_2 = (_gather_sets(self._combine(self._encode(part))) for part in self._parts(view, crops))
            p_1, p_2 = (p[role] if self.local_gradient == "predictor" else p[role].detach() for role in (1, 2))
            losses["region"], monitors["region_top1"] = self._region([(p_2[None], c_1), (p_1[None], c_2)])
        if "instance" in self.grains:
            losses["instance"], told = self._instance(view, p, batch)
            monitors |= told
        return losses, monitors | _feature_monitors(feature[1])

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        """Write this step's embeddings into the queue, and the indices of their images beside them."""
        if self.neighbour:
            assert self._newest is not None, "after_step follows forward"
            embedding_ND, index_N = self._newest
            self.queue.push(embedding_ND)
            self.queue_indices.push(index_N[:, None])
            self._newest = None

    def _fast_moco(self, view: Mapping[int, Tensor], crops: Sequence[Tensor]) -> Terms:
        features, anchors = [], []
        for part in self._parts(view, crops):
            features.append(self._encode(part))
            c_JbD = self._combine(features[-1])
            anchors.append(_gather_sets(self.predictor(c_JbD.flatten(0, 1)).unflatten(0, c_JbD.shape[:2])))
        with torch.no_grad():
            z_1, z_2 = (gather_rows(self._embed(view[role]))[None] for role in (1, 2))
        loss, top1 = self._region([(anchors[0], z_2), (anchors[1], z_1)])
        return {"region": loss}, {"region_top1": top1} | _feature_monitors(features[0].mean(dim=0))

    def _region(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Weighted loss and top-1 of two pairs of anchors and keys, [J, N, D] or [1, N, D] each."""
        terms = [one_way(anchor_JND, key_JND, self.region_temperature) for anchor_JND, key_JND in pairs]
        with phase("rest"):
            top1 = own_key_share(pairs)
        return self.region_weight * (terms[0] + terms[1]) / 2, top1

    def _instance(self, view: Mapping[int, Tensor], p: Mapping[int, Tensor], batch: Batch) -> tuple[Tensor, Monitors]:
        first, third = self.instance_roles
        with torch.no_grad():
            e = {role: self._embed(view[role]) for role in sorted({first, third})}
            with phase("rest"):
                index_N = gather_rows(batch.indices)
                found = {role: self._look_up(rows_bD, batch.indices) for role, rows_bD in e.items()}
                k = {role: gather_rows(rows_bD) for role, (rows_bD, _) in found.items()}
                e_1_ND, e_3_ND = gather_rows(e[first]), gather_rows(e[third])
                self._newest = e_3_ND, index_N
                own_N = gather_rows(found[third][1])
                agreement = neighbour_agreement(e_1_ND, e_3_ND, gather_rows(batch.labels_for_monitoring))
        terms = [nt_xent(k[a], p[b], self.instance_temperature) for a, b in ((third, first), (first, third))]
        with phase("rest"):
            top1 = own_key_share([(p[first][None], k[third][None]), (p[third][None], k[first][None])])
        monitors = {"instance_top1": top1, "neighbour_agreement": agreement, "neighbour_self": own_N.double().mean()}
        return self.instance_weight * (terms[0] + terms[1]) / 2, monitors

    def _embed(self, view_bCSS: Tensor) -> Tensor:
        embedding_bD: Tensor = self.momentum_projector(self.momentum_backbone(view_bCSS).pooled)
        return embedding_bD

    def _look_up(self, e_bD: Tensor, index_b: Tensor) -> tuple[Tensor, Tensor]:
        """The targets k of embeddings, and which of them show the same image, bool [b]."""
        if self.neighbour:
            searched_Q = self.queue.written if self.search == "written" else torch.ones_like(self.queue.written)
            place_Q = searched_Q.nonzero()[:, 0]
            if len(place_Q):
                _, found_b1 = topk_cosine(e_bD, self.queue.rows[place_Q], 1, byte_budget=1 << 27)
                place_b = place_Q[found_b1[:, 0]]
                own_b = self.queue.written[place_b] & (self.queue_indices.rows[place_b, 0] == index_b)
                return self.queue.rows[place_b], own_b
        return e_bD, torch.ones_like(index_b, dtype=torch.bool)

    def _parts(self, view: Mapping[int, Tensor], crops: Sequence[Tensor]) -> list[Tensor]:
        """Parts [P b, C, s, s] of view 1 and of view 2: tiles or small crops."""
        if self.parts == "tiles":
            return [tiles(view[role], self.splits) for role in self.region_roles]
        half = len(crops) // 2
        return [torch.cat(list(crops[:half])), torch.cat(list(crops[half:]))]

    def _encode(self, part_RCss: Tensor) -> Tensor:
        part_PbE: Tensor = self.backbone(part_RCss).pooled.unflatten(0, (self.splits**2, -1))
        return part_PbE

    def _combine(self, part_PbE: Tensor) -> Tensor:
        """The sets c [J, b, D] of a view: the projection of each mean, or the mean of the projections."""
        before = self.combine == "before"
        rows_XbE = set_means(part_PbE, self.combined) if before else part_PbE
        rows_XbD: Tensor = self.projector(rows_XbE.flatten(0, 1)).unflatten(0, rows_XbE.shape[:2])
        return rows_XbD if before else set_means(rows_XbD, self.combined)

    def _part_norms(self) -> AbstractContextManager[None]:
        """Protect batch norm's running statistics while parts are encoded, or use those of the parts instead."""
        if self.local_norm == "shared":
            return nullcontext()
        norms = norms_of(self.backbone, self.projector)
        return borrowed_statistics(norms, self.part_statistics if self.local_norm == "separate" else None)


def _check(grains: Sequence[str], local_gradient: str, splits: int, combined: int, local_norm: str) -> None:
    if not grains or len(set(grains)) < len(grains):
        raise UserError(f"method.values.grains is {list(grains)}; name region, instance or both, once each")
    if local_gradient == "tiles" and (list(grains) != ["region"] or local_norm != "shared"):
        raise UserError("method.values: local_gradient tiles (Fast-MoCo) needs grains: [region] and local_norm: shared")
    if local_gradient == "none" and list(grains) == ["region"]:
        raise UserError("method.values: local_gradient none with grains [region] trains nothing; change one of them")
    if splits < 1 or not 1 <= combined <= splits**2:
        raise UserError(f"method.values.combined is {combined}; with splits {splits} it must be in 1..{splits**2}")


@torch.no_grad()
def _shuffle(network: nn.Module) -> None:
    """Shuffle the entries of every tensor; tensors of equal entries, such as those of new norms, stay the same."""
    for parameter in network.parameters():
        order = torch.randperm(parameter.numel()).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))


def _gather_sets(rows_JbD: Tensor) -> Tensor:
    return gather_rows(rows_JbD.transpose(0, 1)).transpose(0, 1)


def _feature_monitors(feature_bE: Tensor) -> Monitors:
    with torch.no_grad(), phase("rest"):
        feature_NE = gather_rows(feature_bE.detach())
        return {"spread": spread(feature_NE), "rank": effective_rank(feature_NE)}


METHOD = MNCL
