"""Groups on the unit sphere (SMoG): assign rows to them, move them towards their members, find them by k-means.

Sums and counts run over all processes. Legend: R rows of this process, D width, K groups of unit length.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from polygrain.nn.distributed import gather_rows, mean_over_processes, sum_over_processes
from polygrain.nn.linear import linear_map
from polygrain.nn.monitors import feature_monitors

# Rows of one block of similarities [block, K], which stay in the cache: on one CPU core 60,000 x 300 similarities take
# 71 ms with 1024 rows, 85 ms with 16,384 and 104 ms at once.
_BLOCK = 1024


@torch.no_grad()
def assign(rows_RD: Tensor, groups_KD: Tensor) -> Tensor:
    """Find for each row the group of the largest dot product, int64 [R]; the first of equal ones. No gradient."""
    return torch.cat([(block_BD @ groups_KD.T).argmax(dim=1) for block_BD in torch.split(rows_RD, _BLOCK)])


def moved_groups(groups_KD: Tensor, rows_RD: Tensor, assignment_R: Tensor, momentum: float) -> Tensor:
    """Move every group towards the mean of its members, unit(momentum * group + (1 - momentum) * mean), a new [K, D].

    A group without members does not change. Gradient reaches `rows_RD` of all processes. Normalise rows before.
    """
    ones_R1 = rows_RD.new_ones(len(rows_RD), 1)
    zeros_KD1 = rows_RD.new_zeros(len(groups_KD), rows_RD.shape[1] + 1)
    # a sum per group and, in the last column, its members; in torch's deterministic mode a GPU uses no atomics here
    totals_KD1 = sum_over_processes(zeros_KD1.index_add(0, assignment_R, torch.cat([rows_RD, ones_R1], dim=1)))
    count_K1 = totals_KD1[:, -1:]
    mean_KD = totals_KD1[:, :-1] / count_K1.clamp(min=1.0)
    moved_KD = normalize(momentum * groups_KD + (1.0 - momentum) * mean_KD, dim=1)
    return torch.where(count_K1 > 0, moved_KD, groups_KD)


@torch.no_grad()
def spherical_kmeans(rows_ND: Tensor, start_KD: Tensor, iterations: int) -> Tensor:
    """Run `iterations` rounds of k-means on the sphere from `start_KD`: assign, then unit mean of the members, [K, D].

    A cluster without members stays. `rows_ND` (unit length) are this process's share; `start_KD` is equal everywhere.
    """
    centroids_KD = start_KD.clone()
    for _ in range(iterations):
        centroids_KD = moved_groups(centroids_KD, rows_ND, assign(rows_ND, centroids_KD), momentum=0.0)
    return centroids_KD


@torch.no_grad()
def occupancy(assignment_R: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """exp(entropy) / K of the groups' shares (1: all equal, 1 / K: one has all), and the share of empty groups."""
    count_K = torch.bincount(assignment_R, minlength=groups)
    entropy = torch.special.entr(count_K / len(assignment_R)).sum()
    return entropy.exp() / groups, (count_K == 0).double().mean()


def assignment_monitors(share_TBP: Tensor) -> dict[str, Tensor]:
    """Of T views of B images' assignments to P groups: entropy of the mean, mean entropy, occupancy by view 1."""
    mean_P = mean_over_processes(share_TBP.mean(dim=(0, 1)))
    return {
        "batch_entropy": torch.special.entr(mean_P).sum(),
        "sample_entropy": mean_over_processes(torch.special.entr(share_TBP).sum(dim=2).mean()),
        "occupancy": occupancy(gather_rows(share_TBP[0].argmax(dim=1)), len(mean_P))[0],
    }


@torch.no_grad()
def group_monitors(
    online_BD: Tensor, momentum_BD: Tensor, labels_B: Tensor, old_KD: Tensor, new_KD: Tensor
) -> dict[str, Tensor]:
    """Of a step's embeddings by both networks and its old and new groups, over all processes (SMoG)."""
    assignment_B, target_B = assign(gather_rows(online_BD), old_KD), assign(gather_rows(momentum_BD), old_KD)
    occupied, empty = occupancy(assignment_B, len(old_KD))
    return {
        "occupancy": occupied,
        "empty": empty,
        "agreement": (assignment_B == target_B).double().mean(),
        "purity": pair_purity(target_B, gather_rows(labels_B)),
        "displacement": (new_KD - old_KD).norm(dim=1).mean(),
    } | feature_monitors(online_BD)


@torch.no_grad()
def pair_purity(assignment_R: Tensor, labels_R: Tensor) -> Tensor:
    """Share of the pairs of rows in one group that share their label; 0 without pairs; label -1 is unknown."""
    assignment_R, labels_R = assignment_R[labels_R >= 0], labels_R[labels_R >= 0]
    together_RR = (assignment_R[:, None] == assignment_R).triu(diagonal=1)
    alike_RR = together_RR & (labels_R[:, None] == labels_R)
    return alike_RR.sum() / together_RR.sum().clamp(min=1)


def group_loss(outputs_RBD: Tensor, groups_KD: Tensor, targets_SB: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of R crops' unit outputs and S views' target groups, mean over R, S and B; chance gives ln K."""
    log_RBK = (linear_map(outputs_RBD, groups_KD) / temperature).log_softmax(dim=2)
    return -log_RBK.gather(2, targets_SB.T.expand(len(outputs_RBD), -1, -1)).mean()
