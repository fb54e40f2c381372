"""Weak labels: golden graphs of WCL section 6, facts of section 4.2, and two oracles for connected components.

The oracles are a union-find written out here and networkx (installed with torch).
"""

import itertools
import math

import networkx
import numpy as np
import pytest
import torch
from torch import Tensor

from polygrain.nn import graph

VIEW_1 = (0, 8, 20, 95, 103, 200)
VIEW_2 = (5, 60, 25, 90, 110, 205)


def unit(degrees: tuple[float, ...]) -> Tensor:
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def rows(count: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, dtype=torch.float64, generator=generator)


def labels(nodes: int, edges: list[tuple[int, int]]) -> list[int]:
    """Union-find: the smallest member of each node's component."""
    parent = list(range(nodes))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in edges:
        a, b = sorted((root(i), root(j)))
        parent[b] = a
    return [root(i) for i in range(nodes)]


def labels_of_networkx(nodes: int, edges: list[tuple[int, int]]) -> list[int]:
    whole = networkx.Graph(edges)
    whole.add_nodes_from(range(nodes))
    found = [0] * nodes
    for members in networkx.connected_components(whole):
        for i in members:
            found[i] = min(members)
    return found


def links_of(neighbour: Tensor) -> list[tuple[int, int]]:
    return list(enumerate(neighbour.tolist()))


def matrix(nodes: int, edges: list[tuple[int, int]]) -> Tensor:
    linked = torch.zeros(nodes, nodes, dtype=torch.bool)
    for i, j in edges:
        linked[i, j] = True
    return linked


@pytest.mark.parametrize(
    ("degrees", "neighbour", "component"),
    [(VIEW_1, [1, 0, 1, 4, 3, 4], [0, 0, 0, 3, 3, 3]), (VIEW_2, [2, 3, 0, 4, 3, 4], [0, 1, 0, 1, 1, 1])],
)
def test_golden(degrees: tuple[float, ...], neighbour: list[int], component: list[int]) -> None:
    found = graph.nearest_neighbour(unit(degrees))
    assert found.tolist() == neighbour
    assert graph.pointer_components(found).tolist() == component
    assert graph.components(graph.links(found[:, None], 6)).tolist() == component


def test_mutual_pairs_of_the_golden_views() -> None:
    assert graph.mutual(torch.tensor([1, 0, 1, 4, 3, 4])).tolist() == [1, 0, 2, 4, 3, 5]
    assert graph.mutual(torch.tensor([2, 3, 0, 4, 3, 4])).tolist() == [2, 1, 0, 4, 3, 5]


@pytest.mark.parametrize(("count", "k"), [(2, 1), (9, 3), (40, 1), (40, 39)])
def test_neighbours_against_brute_force(count: int, k: int) -> None:
    x = rows(count, 5, count) * torch.linspace(0.1, 9, count)[:, None]
    cosine = (x / x.norm(dim=1, keepdim=True)).numpy()
    similarity = cosine @ cosine.T
    np.fill_diagonal(similarity, -np.inf)
    expected = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(graph.nearest_neighbours(x, k).numpy(), expected)
    if k == 1:
        np.testing.assert_array_equal(graph.nearest_neighbour(x).numpy(), expected[:, 0])


def test_equal_rows_never_pick_themselves_and_ties_go_to_the_smaller_index() -> None:
    assert graph.nearest_neighbour(torch.ones(7, 3)).tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert graph.nearest_neighbours(torch.ones(5, 3), 2).tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]
    assert graph.nearest_neighbour(torch.zeros(3, 2)).tolist() == [1, 0, 0]


def test_neighbours_that_do_not_exist_are_refused() -> None:
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k = {k} neighbours asked of 4 rows"):
            graph.nearest_neighbours(torch.eye(4), k)


def test_no_gradient_and_float32_sees_the_same_graph() -> None:
    x = rows(30, 6, 0).float().requires_grad_()
    assert torch.equal(graph.nearest_neighbours(x, 4), graph.nearest_neighbours(x.detach().double(), 4))
    assert not graph.nearest_neighbour(x).requires_grad


def pointers(nodes: int, seed: int) -> Tensor:
    """Random links with long tails and cycles: a mixture of any node, the next one of a shuffled ring, and itself."""
    generator = torch.Generator().manual_seed(seed)
    ring = torch.randperm(nodes, generator=generator)
    following = torch.empty_like(ring)
    following[ring] = ring.roll(-1)
    anywhere = torch.randint(nodes, (nodes,), generator=generator)
    kind = torch.rand(nodes, generator=generator)
    share = (seed % 5) / 20
    return torch.where(kind < share, anywhere, torch.where(kind > 1 - share / 2, torch.arange(nodes), following))


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5, 8, 17, 64, 130])
def test_components_of_pointers_against_the_oracles(nodes: int) -> None:
    for seed in range(25):
        neighbour = pointers(nodes, seed)
        expected = labels(nodes, links_of(neighbour))
        assert graph.pointer_components(neighbour).tolist() == expected
        assert labels_of_networkx(nodes, links_of(neighbour)) == expected


def chains(nodes: int) -> dict[str, list[int]]:
    half = nodes // 2
    bits = max(nodes - 1, 1).bit_length()
    return {
        "rising": list(range(nodes)),
        "falling": list(range(nodes))[::-1],
        "shuffled": np.random.default_rng(nodes).permutation(nodes).tolist(),
        "low and high in turn": [i // 2 if i % 2 == 0 else half + i // 2 for i in range(2 * half)],
        "closing in": [i // 2 if i % 2 == 0 else nodes - 1 - i // 2 for i in range(nodes)],
        "bits reversed": [i for i in (int(f"{j:0{bits}b}"[::-1], 2) for j in range(2**bits)) if i < nodes],
    }


@pytest.mark.parametrize("nodes", [2, 3, 16, 33, 129, 512])
def test_long_chains(nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = 0
    equal = torch.equal

    def counted(a: Tensor, b: Tensor) -> bool:
        nonlocal rounds
        rounds += 1
        return equal(a, b)

    monkeypatch.setattr(torch, "equal", counted)
    for order in chains(nodes).values():
        edges = list(itertools.pairwise(order))
        neighbour = torch.arange(nodes)  # the last of the chain points to itself, or closes the ring
        for last in (order[-1], order[0]):
            for i, j in [*edges, (order[-1], last)]:
                neighbour[i] = j
            assert graph.pointer_components(neighbour).tolist() == labels(nodes, links_of(neighbour))
        rounds = 0
        assert graph.components(matrix(nodes, edges)).tolist() == labels(nodes, edges)
        assert rounds <= math.log2(nodes) + 3, "each round at least halves a chain"


@pytest.mark.parametrize("nodes", [1, 2, 7, 40, 150])
@pytest.mark.parametrize("degree", [0.0, 0.5, 1.0, 1.5, 4.0])
def test_components_of_any_graph_against_the_oracles(nodes: int, degree: float) -> None:
    for seed in range(8):
        random = np.random.default_rng([nodes, seed, int(10 * degree)])
        edges = [(int(i), int(j)) for i, j in random.integers(nodes, size=(int(nodes * degree / 2 + 0.5), 2))]
        found = graph.components(matrix(nodes, edges)).tolist()
        assert found == labels(nodes, edges) == labels_of_networkx(nodes, edges)


def test_stars_and_trees() -> None:
    for centre in (0, 31, 63):
        assert graph.components(matrix(64, [(i, centre) for i in range(64)])).tolist() == [0] * 64
    tree = [(i, (i - 1) // 2) for i in range(1, 255)]
    assert graph.components(matrix(255, tree)).tolist() == [0] * 255
    mirrored = [(254 - i, 254 - j) for i, j in tree]
    assert graph.components(matrix(255, mirrored)).tolist() == [0] * 255


@pytest.mark.parametrize(("count", "width"), [(2, 4), (16, 4), (64, 16), (256, 64), (301, 2)])
def test_facts_of_a_nearest_neighbour_graph(count: int, width: int) -> None:
    for seed in range(6):
        neighbour = graph.nearest_neighbour(rows(count, width, seed))
        component = graph.pointer_components(neighbour)
        assert component.bincount(minlength=count)[component].min() >= 2
        pairs = (neighbour[neighbour] == torch.arange(count)).sum() // 2
        assert len(component.unique()) == pairs
        same = graph.links(neighbour[:, None], count) | (neighbour[:, None] == neighbour)  # sharing a neighbour
        assert torch.equal(graph.components(same), component)
        assert torch.equal(graph.components(graph.links(neighbour[:, None], count)), component)
        partner = graph.mutual(neighbour)
        assert torch.equal(partner[partner], torch.arange(count))
        assert (partner != torch.arange(count)).sum() == 2 * pairs


def test_order_of_the_rows_does_not_matter() -> None:
    x, order = rows(50, 8, 3), torch.randperm(50, generator=torch.Generator().manual_seed(0))
    for k in (1, 3):
        relation = graph.same_label(graph.components(graph.links(graph.nearest_neighbours(x, k), 50)))
        shuffled = graph.same_label(graph.components(graph.links(graph.nearest_neighbours(x[order], k), 50)))
        assert torch.equal(shuffled, relation[order][:, order])


# Table of WCL section 4.2: random unit vectors, mean and largest component.
@pytest.mark.parametrize(
    ("width", "count", "mean", "largest"), [(16, 64, 3.8, None), (128, 128, 4.0, 11), (128, 512, 4.0, 14)]
)
def test_component_sizes_of_random_rows(width: int, count: int, mean: float, largest: float | None) -> None:
    sizes = []
    for seed in range(30):
        component = graph.pointer_components(graph.nearest_neighbour(rows(count, width, seed)))
        sizes.append([float(size) for size in graph.component_sizes(graph.same_label(component))])
    found_mean, found_largest = np.mean(sizes, axis=0)
    assert found_mean == pytest.approx(mean, abs=0.15)
    if largest is not None:
        assert found_largest == pytest.approx(largest, abs=1.5)


def test_more_neighbours_give_a_giant_component() -> None:
    x = rows(256, 64, 0)
    assert graph.components(graph.links(graph.nearest_neighbours(x, 3), 256)).bincount().max() > 230


def test_generators_without_their_k_are_refused() -> None:
    for generator, k in (
        ("nearest", 2),
        ("mutual", 1),
        ("knn", None),
        ("kmeans", None),
        ("direct", None),
        ("near", None),
    ):
        with pytest.raises(ValueError, match=f"no generator of positives '{generator}' with k = {k}"):
            graph.positives(torch.eye(5), generator, k)


def test_positives_of_the_golden_views() -> None:
    first, second = unit(VIEW_1), unit(VIEW_2)
    assert torch.equal(graph.positives(first, "nearest", None), graph.same_label(torch.tensor([0, 0, 0, 3, 3, 3])))
    assert torch.equal(graph.positives(second, "nearest", None), graph.same_label(torch.tensor([0, 1, 0, 1, 1, 1])))
    assert torch.equal(graph.positives(second, "mutual", None), graph.same_label(torch.tensor([0, 1, 0, 3, 3, 5])))
    assert graph.positives(first, "direct", 2).nonzero().tolist() == [
        [i, j] for i, near in enumerate([(1, 2), (0, 2), (0, 1), (2, 4), (2, 3), (3, 4)]) for j in near
    ]
    assert graph.positives(first, "knn", 2).sum() == 30  # one component
    # from 0, 8 and 20 degrees the clusters move to 280, 8 and 73, then to 200, 9 and 99
    assert torch.equal(graph.positives(first, "kmeans", 3), graph.same_label(torch.tensor([0, 0, 0, 3, 3, 5])))


def test_kmeans_against_loops() -> None:
    for seed in range(4):
        x = rows(60, 3, seed)
        unit_rows = (x / x.norm(dim=1, keepdim=True)).numpy()
        centroids, history = unit_rows[:5].copy(), []
        for _ in range(graph.KMEANS_ROUNDS + 1):
            history.append((unit_rows @ centroids.T).argmax(1))
            for c in range(5):
                mean = unit_rows[history[-1] == c].mean(0)
                centroids[c] = mean / np.linalg.norm(mean)
        expected, early = (graph.same_label(torch.from_numpy(history[i])) for i in (-1, 1))
        assert torch.equal(graph.positives(x, "kmeans", 5), expected)
        assert not torch.equal(early, expected)


def test_same_label_leaves_the_diagonal_out() -> None:
    found = graph.same_label(torch.tensor([4, 1, 4, 4]))
    assert found.int().tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 1], [1, 0, 1, 0]]


def test_component_sizes_by_hand() -> None:
    mean, largest = graph.component_sizes(graph.same_label(torch.tensor([0, 0, 2, 0, 4, 4])))
    assert (float(mean), float(largest)) == (2.0, 3.0)
    mean, largest = graph.component_sizes(graph.links(torch.tensor([[1, 2], [0, 2], [0, 1], [0, 1]]), 4))
    assert (float(mean), float(largest)) == (3.0, 3.0)


def test_purity_by_hand() -> None:
    positive = graph.same_label(torch.tensor([0, 0, 0, 3, 3, 5]))  # pairs 01 02 12 34, in both directions
    classes = torch.tensor([7, 7, 1, 2, 2, 2])
    pure, hit = graph.purity(positive, classes)
    assert float(pure) == pytest.approx(2 / 4)  # 01 and 34
    assert float(hit) == pytest.approx(4 / 6)  # 0, 1, 3, 4
    pure, hit = graph.purity(positive, torch.tensor([7, -1, 7, -1, -1, 2]))
    assert float(pure) == 1.0  # 02 alone is known
    assert float(hit) == pytest.approx(2 / 3)
    nothing = graph.purity(positive, torch.full((6,), -1))
    assert [float(value) for value in nothing] == [0.0, 0.0]


@pytest.mark.gpu
def test_cuda_gives_the_same_graphs() -> None:
    for seed in range(3):
        x = rows(257, 16, seed).float()
        for k in (1, 3):
            here, there = graph.nearest_neighbours(x, k), graph.nearest_neighbours(x.cuda(), k)
            assert torch.equal(here, there.cpu())
            linked = graph.links(there, 257)
            assert torch.equal(graph.components(graph.links(here, 257)), graph.components(linked).cpu())
        neighbour = pointers(257, seed)
        assert torch.equal(graph.pointer_components(neighbour), graph.pointer_components(neighbour.cuda()).cpu())
