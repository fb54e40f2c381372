"""WCL, Weakly Supervised Contrastive Learning (Zheng, Wang, You, Qian, Zhang, Wang, Xu; ICCV 2021).

Grains: instance, as in SimCLR; and weak class, groups of similar images that are found in each batch. Each grain has
its own head on the shared backbone, so that pulling a group together does not undo the separation of its members.

Equations. For views v = 1, 2 of B images: h^v = F(x^v) pooled, z^v = unit(g(h^v)), u^v = unit(phi(h^v)).

    instance    L_NCE = mean over the 2B rows of -log( exp(z_i.z_pos(i)/t) / sum_{j != i} exp(z_i.z_j/t) )
    weak class  y^v = components of the graph that links every u^v_i to its nearest neighbour
                l(i, j) = -log( exp(u^v_i.k_j/t) / sum_{a != i} exp(u^v_i.k_a/t) ),   k = u^v without gradient
                L_sup(v | y) = mean over i of the mean over {j != i: y_j = y_i} of l(i, j)
                L_swap = ( L_sup(1 | y^2) + L_sup(2 | y^1) ) / 2
                L = L_NCE + L_swap

Each view is one forward pass, so batch norm is per view. Graph and sums are over the global batch. During the first
`weak_phase` of the run (the learning-rate warm-up) both views use the milder recipe `weak`.

Multi-crop (`local_crops` > 0): V small crops per image, encoded in a further pass, are anchors only. Keys are the B
embeddings of one view, without gradient; the two views are averaged. The instance term (head g) adds InfoNCE whose
positive is the crop's image, the weak-class term (head phi) L_sup whose positives are that and the K nearest keys.

Deviations (sections of the specification in brackets).
* Described against released [4.1, 7]: released, `nce_block` = 128 gives a key gradient only from anchors of its block
  of 128 images (one process; no difference up to a batch of 128), `decay_shortcut_norms` applies weight decay and LARS
  scaling to batch norm weights in modules named shortcut or downsample. Described: None, False.
* Known from the release only, as the paper's body could not be read: `keys_grad` = False, the change of recipes, the
  factor 1/2 of L_swap. Recipes, head widths (release 4096 and 256, paper 2048 and 128) and optimiser: see the scale.
* Reconstructed: multi-crop [5], which the abstract names and the release lacks, and the ablations [10]. Anchors without
  positives are left out of the mean. k-means starts from the first rows of the batch. `joint` links each row of both
  views to its nearest row, which is often the other view of the same image.
Legend: B images of the global batch, b of this process, V crops of an image, A = BV, N rows, d and D widths of feature
and embedding, K neighbours.

Measured (reports/table1.pdf): Fashion-MNIST linear 84.6 ± 0.4, Animal-MNIST linear 90.6 ± 0.5.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polygrain.backbones.contract import Backbone
from polygrain.nn import graph
from polygrain.nn.clock import Clock
from polygrain.nn.contrastive import nt_xent, sup_con, sup_con_to_bank
from polygrain.nn.distributed import gather_rows
from polygrain.nn.heads import Head
from polygrain.nn.monitors import alignment, effective_rank, spread
from polygrain.nn.neighbours import topk_cosine
from polygrain.nn.optim import split_by_decay
from polygrain.nn.phases import phase
from polygrain.provenance.errors import UserError
from polygrain.views.batch import Batch

Pair = tuple[Tensor, Tensor]


class WCL(nn.Module):
    """Backbone, instance head g and weak-label head phi.

    backbone: the network that is evaluated. hidden, embedding: inner and output width of a head (three linear layers).
    grains: the terms of the loss; parts that no grain needs are not built. shared_head: one head for both grains.
    temperature, weak_temperature: t of the instance and of the weak-class terms. instance_weight, weak_weight: factors.
    nce_block: None, or images per block; see above. keys_grad: whether gradient reaches keys of L_sup.
    label_source: the positives for view v: `swapped` of the other view, `own`, `intersection` of both, `instance_head`
    swapped, of the graph on g, `joint` swapped, of one graph over the rows of both views.
    label_generator: `nearest` components of the nearest-neighbour graph; `mutual` its mutual pairs; `knn` components of
    the graph of `label_k` neighbours; `direct` those neighbours; `kmeans` with `label_k` clusters; `classes` the true
    classes (an upper bound, not self-supervised). label_k: None for the other generators.
    weak_phase: share of the run with recipe `weak`. decay_shortcut_norms: see above.
    local_crops, local_neighbours: V (0: no multi-crop) and K (0: the own image is the only positive).

    Raises UserError without grains, for a weight of 0, and for a `label_k` that does not fit the generator.
    """

    encoder_name = "backbone."
    uses_labels = False

    def __init__(
        self,
        backbone: Backbone,
        *,
        grains: list[Literal["instance", "weak-class"]],
        hidden: int,
        embedding: int,
        shared_head: bool,
        temperature: float,
        weak_temperature: float,
        instance_weight: float,
        weak_weight: float,
        nce_block: int | None,
        keys_grad: bool,
        label_source: Literal["swapped", "own", "intersection", "instance_head", "joint"],
        label_generator: Literal["nearest", "mutual", "knn", "direct", "kmeans", "classes"],
        label_k: int | None,
        weak_phase: float,
        local_crops: int,
        local_neighbours: int,
        decay_shortcut_norms: bool,
    ) -> None:
        super().__init__()
        if not grains or 0 in (instance_weight, weak_weight):
            raise UserError("method.values: name at least one grain, and leave one out by grains, not by a weight of 0")
        if (label_k is not None) != (label_generator in ("knn", "direct", "kmeans")):
            need = "null" if label_k is not None else "a number"
            raise UserError(f"method.values.label_k is {label_k}; label_generator {label_generator} needs {need}")
        self.backbone = backbone
        weak_head = "instance" if shared_head else "weak"
        graph_head = "instance" if label_source == "instance_head" else weak_head
        used = {{"instance": "instance", "weak-class": weak_head}[grain] for grain in grains}
        if "weak-class" in grains and label_generator != "classes":
            used.add(graph_head)
        self.heads = nn.ModuleDict({name: Head(backbone.width, hidden, embedding, layers=3) for name in sorted(used)})
        self.grains, self.weak_head, self.graph_head = grains, weak_head, graph_head
        self.temperature, self.weak_temperature = temperature, weak_temperature
        self.instance_weight, self.weak_weight = instance_weight, weak_weight
        self.nce_block, self.keys_grad = nce_block, keys_grad
        self.label_source, self.label_generator, self.label_k = label_source, label_generator, label_k
        self.weak_phase = weak_phase
        self.local_crops, self.local_neighbours = local_crops, local_neighbours
        self.decay_shortcut_norms = decay_shortcut_norms
        self.uses_labels = label_generator == "classes" and "weak-class" in grains

    def views(self, clock: Clock) -> tuple[str, ...]:
        """Ask for two full-size views of the current recipe, then for the small crops."""
        full_size = "weak" if clock.step < round(self.weak_phase * clock.steps) else "global"
        return (full_size, full_size) + ("local",) * self.local_crops

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Train everything; biases and norms without weight decay, except those of `decay_shortcut_norms`."""
        groups = split_by_decay(self)
        if self.decay_shortcut_norms:
            slipped = {
                parameter
                for name, parameter in self.backbone.named_parameters()
                if {"shortcut", "downsample"} & set(name.split(".")) and name.endswith("weight") and parameter.ndim == 1
            }
            moved = [p for group in groups for p in group["params"] if p in slipped]
            for group in groups:
                kept = [p for p in group["params"] if p not in slipped]
                group["params"] = kept + moved if group["decay"] else kept
        return groups

    def forward(self, batch: Batch, clock: Clock) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute each grain's term over the global batch, and monitors.

        Monitors: `alignment`, `spread`, `rank` of head g (of phi if g is not trained), and of the second head with its
        name as prefix; `component_mean`, `component_max`: images per weak class; over labelled images `purity`, the
        share of positive pairs of equal class, and `hit`, the share of anchors with such a pair; `local_*`: the
        multi-crop terms.
        Raises UserError for more neighbours or clusters than a batch holds, and for unlabelled images with `classes`.
        """
        pooled_1_bd, pooled_2_bd = (self.backbone(view).pooled for view in batch.views[:2])
        pairs = {
            name: (gather_rows(head(pooled_1_bd)), gather_rows(head(pooled_2_bd))) for name, head in self.heads.items()
        }
        class_B = gather_rows(batch.labels_for_monitoring)
        self._check_size(len(class_B))
        losses: dict[str, Tensor] = {}
        with phase("rest: monitors"):
            monitors = _embedding_monitors(pairs, "instance" if "instance" in self.grains else self.weak_head)
        if "instance" in self.grains:
            z_1_BD, z_2_BD = pairs["instance"]
            losses["instance"] = self.instance_weight * nt_xent(z_1_BD, z_2_BD, self.temperature, block=self.nce_block)
        if "weak-class" in self.grains:
            with phase("rest: graph"):
                positives = self._positives(pairs, class_B)
            terms = [
                sup_con(u_BD, positive_BB, self.weak_temperature, keys_grad=self.keys_grad)
                for u_BD, positive_BB in zip(pairs[self.weak_head], positives, strict=True)
            ]
            losses["weak-class"] = self.weak_weight * (terms[0] + terms[1]) / 2
            with phase("rest: monitors"):
                monitors |= _label_monitors(positives, class_B)
        if self.local_crops:
            for grain, term in self._local_terms(batch.views[2:], pairs).items():
                losses[grain] = losses[grain] + term
                monitors[f"local_{grain}"] = term.detach()
        return losses, monitors

    def _check_size(self, images: int) -> None:
        wanted = {"label_k": self.label_k, "local_neighbours": self.local_neighbours if self.local_crops else None}
        for name, count in wanted.items():
            if count is not None and count >= images:
                raise UserError(f"method.values.{name} is {count} but a batch has {images} images; lower it")

    @torch.no_grad()
    def _positives(self, pairs: Mapping[str, Pair], class_B: Tensor) -> Pair:
        """Positives of the rows of view 1 and of view 2, bool [B, B] each."""
        if self.label_generator == "classes":
            if int(class_B.min()) < 0:
                raise UserError("method.values.label_generator is classes but an image has no label; use labelled data")
            return graph.same_label(class_B), graph.same_label(class_B)
        u_1_BD, u_2_BD = pairs[self.graph_head]
        if self.label_source == "joint":
            images = len(u_1_BD)
            joint_RR = graph.positives(torch.cat([u_1_BD, u_2_BD]), self.label_generator, self.label_k)
            by_1_BB, by_2_BB = joint_RR[:images, :images], joint_RR[images:, images:]
        else:
            by_1_BB, by_2_BB = (graph.positives(u_BD, self.label_generator, self.label_k) for u_BD in (u_1_BD, u_2_BD))
        if self.label_source == "own":
            return by_1_BB, by_2_BB
        if self.label_source == "intersection":
            return by_1_BB & by_2_BB, by_1_BB & by_2_BB
        return by_2_BB, by_1_BB

    def _local_terms(self, crops: Sequence[Tensor], pairs: Mapping[str, Pair]) -> dict[str, Tensor]:
        """Contrast small crops with the keys of each view; anchors A are ordered image by image."""
        pooled_bVd = torch.stack([encoded.pooled for encoded in self.backbone.encode_crops(crops)], dim=1)
        anchors = {name: gather_rows(head(pooled_bVd.flatten(0, 1))) for name, head in self.heads.items()}
        images = len(next(iter(pairs.values()))[0])
        own_AB = torch.eye(images, dtype=torch.bool, device=pooled_bVd.device).repeat_interleave(len(crops), dim=0)
        losses = {}
        if "instance" in self.grains:
            terms = [sup_con_to_bank(anchors["instance"], z_BD, own_AB, self.temperature) for z_BD in pairs["instance"]]
            losses["instance"] = self.instance_weight * (terms[0] + terms[1]) / 2
        if "weak-class" in self.grains:
            u_AD = anchors[self.weak_head]
            terms = [
                sup_con_to_bank(u_AD, bank_BD, own_AB | self._near(u_AD, bank_BD), self.weak_temperature)
                for bank_BD in pairs[self.weak_head]
            ]
            losses["weak-class"] = self.weak_weight * (terms[0] + terms[1]) / 2
        return losses

    def _near(self, u_AD: Tensor, bank_BD: Tensor) -> Tensor:
        if self.local_neighbours == 0:
            return torch.zeros(len(u_AD), len(bank_BD), dtype=torch.bool, device=u_AD.device)
        with phase("rest: neighbours"):
            _, near_AK = topk_cosine(u_AD, bank_BD, self.local_neighbours, byte_budget=1 << 27)
            return graph.links(near_AK, len(bank_BD))


def _embedding_monitors(pairs: Mapping[str, Pair], chief: str) -> dict[str, Tensor]:
    monitors = {}
    for name, (first_BD, second_BD) in pairs.items():
        prefix = "" if name == chief else f"{name}_"
        monitors[f"{prefix}alignment"] = alignment(first_BD, second_BD)
        monitors[f"{prefix}spread"] = spread(first_BD)
        monitors[f"{prefix}rank"] = effective_rank(first_BD)
    return monitors


def _label_monitors(positives: Pair, class_B: Tensor) -> dict[str, Tensor]:
    """Means over both views, and the largest component of either."""
    (mean_1, largest_1), (mean_2, largest_2) = (graph.component_sizes(positive_BB) for positive_BB in positives)
    (pure_1, hit_1), (pure_2, hit_2) = (graph.purity(positive_BB, class_B) for positive_BB in positives)
    return {
        "component_mean": (mean_1 + mean_2) / 2,
        "component_max": torch.maximum(largest_1, largest_2),
        "purity": (pure_1 + pure_2) / 2,
        "hit": (hit_1 + hit_2) / 2,
    }


METHOD = WCL
