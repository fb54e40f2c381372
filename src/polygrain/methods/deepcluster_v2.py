"""DeepCluster-v2 (Caron, Misra, Mairal, Goyal, Bojanowski, Joulin; NeurIPS 2020, arXiv 2006.09882, appendix).

Grain: group. Every crop of an image is classified into the cluster that k-means gave the image before the epoch.

Equations. z = unit(p(f(x))) with a head p of two layers. A memory holds z of the full-size views v = 1, 2 of an epoch's
images, as each step computed them; before step 0 a pass without gradient fills it. Before each epoch, for each of H
heads, spherical k-means of the memory of view h mod 2, from rows drawn at random, gives K groups G_h (unit length) and
for each image i its group c_h(i). All epoch long, over the crops s of the images of the memory:

    L = mean over h, s, i of -log( exp(z_s(i) . G_{h, c_h(i)} / temperature) / sum_k exp(z_s(i) . G_hk / temperature) )

Groups have no gradient. Images that the last epoch left out (it ends with its last whole batch) have no group and count
in no mean. SMoG's cell `asynchronous` differs: there a momentum network chooses the group and a predictor predicts it.

Deviations: means over the global batch, theirs are over each process; the first rows are drawn from all images, theirs
from those of the first process; no bias before the head's batch norm, whose gradient is 0. Weight decay (and LARC) on
all parameters as in the authors' code with `decay_all` (scale paper).

Measured: not measured yet.
Legend: B images of this process, S crops, V = 2 views in the memory, M its slots, H heads, K groups, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from polygrain.backbones.contract import Backbone
from polygrain.backbones.droppath import drop_path_off
from polygrain.nn.clock import Clock
from polygrain.nn.distributed import gather_rows, sum_over_processes, world
from polygrain.nn.groups import assign, occupancy, pair_purity, spherical_kmeans
from polygrain.nn.heads import Head
from polygrain.nn.linear import linear_map
from polygrain.nn.monitors import feature_monitors
from polygrain.nn.optim import split_by_decay
from polygrain.nn.phases import phase
from polygrain.nn.random import permutation
from polygrain.provenance.errors import UserError
from polygrain.views.batch import Batch, DataPasses

VIEWS = ("global", "global")


def classification(z_SBD: Tensor, groups_KD: Tensor, target_B: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies of S crops of images with a target, and their number; target -1: there is none."""
    log_SBK = (linear_map(z_SBD, groups_KD) / temperature).log_softmax(dim=2)
    known_B = target_B >= 0
    own_SB = log_SBK.gather(2, target_B.clamp(min=0).expand(len(z_SBD), -1)[:, :, None])[:, :, 0]
    return -torch.where(known_B, own_SB, 0.0).sum(), known_B.sum() * len(z_SBD)


class DeepClusterV2(nn.Module):
    """Backbone (the network that is evaluated), projection head, memory, groups, and the group of each image.

    images, batch: of pre-training and of a step, all processes. local_crops: small crops.
    groups, heads: K and H. kmeans_iterations: rounds of k-means before each epoch. temperature: of the predictions.
    hidden, embedding: inner and output width of the head. decay_all: biases and norms are decayed too.

    Raises UserError for more groups than an epoch has images, and for an epoch of other size than the memory.
    """

    encoder_name = "backbone."
    uses_labels = False

    memory: Tensor
    memory_index: Tensor
    groups: Tensor
    grouped_index: Tensor
    group_of: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        images: int,
        batch: int,
        local_crops: int,
        groups: int,
        heads: int,
        kmeans_iterations: int,
        temperature: float,
        hidden: int,
        embedding: int,
        decay_all: bool,
    ) -> None:
        super().__init__()
        slots = images // batch * batch
        if not 1 <= groups <= slots or heads < 1:
            raise UserError(
                f"method.values: groups {groups} must be from 1 to the {slots} images of an epoch,"
                f" and heads {heads} at least 1"
            )
        self.backbone = backbone
        self.projector = Head(backbone.width, hidden, embedding, layers=2, bias=False)
        self.register_buffer("memory", torch.zeros(len(VIEWS), slots, embedding))
        self.register_buffer("memory_index", torch.zeros(slots, dtype=torch.int64))
        self.register_buffer("groups", torch.zeros(heads, groups, embedding))
        # the images of the last epoch, in the order of their indices, and the group of each
        self.register_buffer("grouped_index", torch.zeros(slots, dtype=torch.int64))
        self.register_buffer("group_of", torch.zeros(heads, slots, dtype=torch.int64))
        self.batch, self.local_crops, self.temperature = batch, local_crops, temperature
        self.kmeans_iterations, self.decay_all = kmeans_iterations, decay_all

    def views(self, clock: Clock) -> tuple[str, ...]:
        """Ask for two full-size views from one recipe, then for the small crops."""
        return VIEWS + ("local",) * self.local_crops

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Train everything; biases and norms without weight decay, except with `decay_all`."""
        groups = split_by_decay(self)
        if self.decay_all:
            return [{"params": [p for group in groups for p in group["params"]], "name": "decayed", "decay": True}]
        return groups

    @torch.no_grad()
    def start_epoch(self, clock: Clock, data: DataPasses) -> None:
        """Group the images of the memory; before step 0 fill it, each view alone through the untrained network."""
        if clock.steps_per_epoch * self.batch != self.memory.shape[1]:
            raise UserError(
                f"method.values: images and batch make an epoch of {self.memory.shape[1]} images, but it has"
                f" {clock.steps_per_epoch} steps of {self.batch}; take both from pretrain"
            )
        if clock.step == 0:
            for place, batch in enumerate(data.augmented_pass(clock, VIEWS)):
                with drop_path_off(self.backbone):
                    rows = [self.projector(self.backbone(view).pooled) for view in batch.views]
                self._remember(place, normalize(torch.stack(rows), dim=2), batch.indices)
        with phase("rest: k-means"):
            self._group(clock)

    def forward(self, batch: Batch, clock: Clock) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the group term over the global batch, and monitors; write the memory.

        `known`: share of images that have a group; `agreement`: of these whose first view is nearest to it (head 1);
        `purity`, `occupancy`: of the groups of the batch's images.
        """
        pooled_RE = torch.cat([encoded.pooled for encoded in self.backbone.encode_crops(batch.views)])
        z_RD = normalize(self.projector(pooled_RE), dim=1)
        z_SBD = z_RD.view(len(batch.views), -1, z_RD.shape[1])
        target_HB = self._targets(batch.indices)
        terms = []
        for groups_KD, target_B in zip(self.groups, target_HB, strict=True):
            total, count = classification(z_SBD, groups_KD, target_B, self.temperature)
            terms.append(sum_over_processes(total) / sum_over_processes(count).clamp(min=1))
        with phase("rest: monitors"):
            monitors = self._monitors(z_SBD[0].detach(), target_HB[0], batch.labels_for_monitoring)
            self._remember(clock.step_in_epoch, z_SBD[: len(VIEWS)].detach(), batch.indices)
        return {"group": torch.stack(terms).mean()}, monitors

    def _targets(self, index_B: Tensor) -> Tensor:
        """The groups of images, [H, B]; -1 for images that the last epoch left out."""
        place_B = torch.searchsorted(self.grouped_index, index_B).clamp(max=len(self.grouped_index) - 1)
        return torch.where(self.grouped_index[place_B] == index_B, self.group_of[:, place_B], -1)

    @torch.no_grad()
    def _remember(self, place: int, z_VBD: Tensor, index_B: Tensor) -> None:
        slots = slice(place * self.batch, (place + 1) * self.batch)
        self.memory[:, slots] = gather_rows(z_VBD.transpose(0, 1).contiguous()).transpose(0, 1)
        self.memory_index[slots] = gather_rows(index_B)

    def _group(self, clock: Clock) -> None:
        """K-means of every head; each process works on its share of the rows, and finds all images' groups."""
        rank, processes = world()
        self.grouped_index, order_M = self.memory_index.sort()
        groups, found = [], []
        for head in range(len(self.groups)):
            bank_MD = self.memory[head % len(VIEWS)]
            start_K = permutation(len(bank_MD), clock.seed, "groups", clock.epoch, head)[: self.groups.shape[1]]
            start_KD = bank_MD[start_K.to(bank_MD.device)]
            groups.append(spherical_kmeans(bank_MD[rank::processes], start_KD, self.kmeans_iterations))
            found.append(assign(bank_MD, groups[-1])[order_M])
        self.groups, self.group_of = torch.stack(groups), torch.stack(found)

    @torch.no_grad()
    def _monitors(self, z_BD: Tensor, target_B: Tensor, label_B: Tensor) -> dict[str, Tensor]:
        nearest_B, target_B, label_B = (gather_rows(rows) for rows in (assign(z_BD, self.groups[0]), target_B, label_B))
        known_B = target_B >= 0
        count = known_B.sum()
        return {
            "known": known_B.double().mean(),
            "agreement": ((nearest_B == target_B) & known_B).sum() / count.clamp(min=1),
            "purity": pair_purity(target_B[known_B], label_B[known_B]),
            "occupancy": occupancy(nearest_B, self.groups.shape[1])[0],
        } | feature_monitors(z_BD)


METHOD = DeepClusterV2
