"""Neighbour graphs of a batch, their connected components and their purity (WCL section 4.2). No gradient.

Similarities are exact (see `neighbours`), ties go to the smaller index and nothing is summed by atomics: equal rows
give equal graphs on CPU and GPU. Tensors are [N, N], for batches, not data sets. A component is named by its smallest
member. Legend: N rows (nodes), A rows that look for neighbours, D width, K neighbours.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from polygrain.nn.groups import assign, spherical_kmeans
from polygrain.nn.neighbours import topk_cosine

# Memory for one block of similarities; it changes no bit.
_BYTES = 1 << 27
KMEANS_ROUNDS = 10


def nearest_neighbours(rows_ND: Tensor, k: int) -> Tensor:
    """The k rows of largest cosine to each row, without itself, int64 [N, k]. Raises ValueError unless 1 <= k < N."""
    if not 1 <= k < len(rows_ND):
        raise ValueError(f"k = {k} neighbours asked of {len(rows_ND)} rows")
    _, found_NK = topk_cosine(rows_ND, rows_ND, k + 1, byte_budget=_BYTES)
    # A row is usually its own first neighbour; equal rows of smaller index come before it, or even in its place.
    own_NK = found_NK == torch.arange(len(found_NK), device=found_NK.device)[:, None]
    return found_NK.gather(1, own_NK.to(torch.uint8).argsort(dim=1, stable=True))[:, :k]


def nearest_neighbour(rows_ND: Tensor) -> Tensor:
    """The row of largest cosine to each row, without itself, int64 [N]."""
    return nearest_neighbours(rows_ND, 1)[:, 0]


def mutual(neighbour_N: Tensor) -> Tensor:
    """Keep mutual links: `neighbour_N[i]` where that node's neighbour is i, else i itself."""
    own_N = torch.arange(len(neighbour_N), device=neighbour_N.device)
    return torch.where(neighbour_N[neighbour_N] == own_N, neighbour_N, own_N)


def links(neighbours_AK: Tensor, nodes: int) -> Tensor:
    """Lists of neighbours as a matrix, bool [A, nodes]: row i is True at the neighbours of i."""
    none_AN = torch.zeros(len(neighbours_AK), nodes, dtype=torch.bool, device=neighbours_AK.device)
    return none_AN.scatter(1, neighbours_AK, True)


def pointer_components(neighbour_N: Tensor) -> Tensor:
    """Label the components of a graph in which every node has one link, to `neighbour_N[i]`, int64 [N].

    Links count in both directions; a link to itself is none. Following links ends in one cycle per component. After
    ceil(log2 N) rounds, each of which doubles the steps followed, every node knows the smallest node of its cycle.
    """
    nodes = len(neighbour_N)
    place_N, least_N = neighbour_N, torch.arange(nodes, device=neighbour_N.device)
    for _ in range(max(nodes - 1, 1).bit_length()):
        least_N = torch.minimum(least_N, least_N[place_N])
        place_N = place_N[place_N]
    return _smallest_of_equals(least_N[place_N])


def components(linked_NN: Tensor) -> Tensor:
    """Label the components of any graph, int64 [N]; i and j are linked where bool [N, N] is True in either direction.

    Until nothing changes: every node takes the smallest label of its neighbours and passes it to the node of its old
    label; then every label is replaced by the label of that node. About log N rounds suffice, for chains too.
    """
    linked_NN = linked_NN | linked_NN.T
    own_N = torch.arange(len(linked_NN), device=linked_NN.device)
    label_N, before_N = own_N, own_N - 1
    while not torch.equal(label_N, before_N):
        before_N = label_N
        least_N = torch.where(linked_NN, label_N, label_N[:, None]).amin(dim=1)
        named_NN = label_N == own_N[:, None]
        label_N = torch.where(named_NN, least_N, label_N[:, None]).amin(dim=1)
        label_N = label_N[label_N]
    return label_N


def same_label(label_N: Tensor) -> Tensor:
    """Which pairs of different nodes share a label, bool [N, N]; the diagonal is False."""
    return (label_N[:, None] == label_N).fill_diagonal_(False)


def _smallest_of_equals(mark_N: Tensor) -> Tensor:
    """The first position of an equal mark; argmax gives the first of equals, on any device."""
    return (mark_N[:, None] == mark_N).to(torch.uint8).argmax(dim=1)


@torch.no_grad()
def positives(rows_ND: Tensor, generator: str, k: int | None) -> Tensor:
    """Which rows are positives of which, bool [N, N], diagonal False. Raises ValueError if generator and k do not fit.

    generator: `nearest`, components of the graph of nearest neighbours; `mutual`, its mutual pairs; `knn`, components
    of the graph of k neighbours; `direct`, those neighbours themselves, in one direction; `kmeans`, members of one of k
    spherical clusters, started from the first k rows. The first two take None for k.
    """
    match generator, k:
        case "nearest", None:
            label_N = pointer_components(nearest_neighbour(rows_ND))
        case "mutual", None:
            label_N = pointer_components(mutual(nearest_neighbour(rows_ND)))
        case "knn", int():
            label_N = components(links(nearest_neighbours(rows_ND, k), len(rows_ND)))
        case "direct", int():
            return links(nearest_neighbours(rows_ND, k), len(rows_ND))
        case "kmeans", int():
            unit_ND = normalize(rows_ND, dim=1)
            # Every process has all rows here, so sums over processes count every row equally often: same means.
            label_N = assign(unit_ND, spherical_kmeans(unit_ND, unit_ND[:k], KMEANS_ROUNDS))
        case _:
            raise ValueError(f"no generator of positives {generator!r} with k = {k}")
    return same_label(label_N)


def component_sizes(positive_NN: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and largest number of nodes of a component, from its pairs (diagonal False); float scalars.

    For `direct` neighbours a node's group is itself and its positives, and the mean is harmonic over nodes.
    """
    size_N = positive_NN.sum(dim=1) + 1
    return len(size_N) / (1.0 / size_N).sum(), size_N.max().float()


def purity(positive_NN: Tensor, class_N: Tensor) -> tuple[Tensor, Tensor]:
    """Share of positive pairs of equal class, and of nodes with such a pair, in 0..1; without nodes of class -1."""
    known_N = class_N >= 0
    pair_NN = positive_NN & known_N & known_N[:, None]
    right_NN = pair_NN & (class_N == class_N[:, None])
    return right_NN.sum() / pair_NN.sum().clamp(min=1), right_NN.any(dim=1).sum() / known_N.sum().clamp(min=1)
