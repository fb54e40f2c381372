"""Groups on the sphere against float64 loops: assignment, movement, k-means, monitors; two processes against one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from torch import Tensor
from torch.nn.functional import normalize
from two_processes import WORLD, run_in_two

from polygrain.nn import groups as module
from polygrain.nn.groups import assign, group_loss, moved_groups, occupancy, pair_purity, spherical_kmeans


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, dtype=torch.float64, generator=generator), dim=-1)


def angles(*degrees: float) -> Tensor:
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def to_angles(points_K2: Tensor) -> list[float]:
    return torch.atan2(points_K2[:, 1], points_K2[:, 0]).rad2deg().tolist()


def nearest(row: np.ndarray, groups: np.ndarray) -> int:
    best = 0
    for c in range(len(groups)):
        if sum(row * groups[c]) > sum(row * groups[best]):
            best = c
    return best


def oracle_moved(groups: np.ndarray, rows: np.ndarray, assignment: list[int], beta: float) -> np.ndarray:
    """Section 4.3, one group and one row after the other."""
    result = groups.copy()
    for c in range(len(groups)):
        members = [rows[i] for i in range(len(rows)) if assignment[i] == c]
        if members:
            vector = beta * groups[c] + (1 - beta) * sum(members) / len(members)
            result[c] = vector / np.sqrt(sum(vector**2))
    return result


def oracle_kmeans(rows: np.ndarray, start: np.ndarray, iterations: int) -> np.ndarray:
    centroids = start.copy()
    for _ in range(iterations):
        labels = [nearest(row, centroids) for row in rows]
        for c in range(len(centroids)):
            members = [row for row, label in zip(rows, labels, strict=True) if label == c]
            if members:
                total = np.sum(members, axis=0)
                centroids[c] = total / np.linalg.norm(total)
    return centroids


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_assign_against_a_loop(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    rows, groups = unit(40, 6), unit(9, 6, seed=1)
    found = assign(rows, groups)
    assert found.dtype == torch.int64
    assert found.tolist() == [nearest(row, groups.numpy()) for row in rows.numpy()]


def test_assign_takes_the_first_of_equals_and_the_largest_product_whatever_the_sign() -> None:
    groups = angles(180, 0, 0, 90)
    assert assign(angles(10, -10, 100, 185), groups).tolist() == [1, 1, 3, 0]
    assert assign(torch.zeros(3, 2, dtype=torch.float64), groups).tolist() == [0, 0, 0]


def test_assign_has_no_gradient() -> None:
    rows = unit(4, 3).requires_grad_()
    assert not assign(rows, unit(2, 3, seed=1)).requires_grad


@pytest.mark.parametrize(("beta", "expected"), [(0.99, [0.065341, 90.099508, 180.0]), (0.5, [3.312481, 95.0, 180.0])])
def test_golden_angles(beta: float, expected: list[float]) -> None:
    groups, rows = angles(0, 90, 180), angles(10, 20, 100, 350)
    assignment = assign(rows, groups)
    assert assignment.tolist() == [0, 0, 1, 0]
    assert assign(angles(350, 30, 120, 5), groups).tolist() == [0, 0, 1, 0]
    assert to_angles(moved_groups(groups, rows, assignment, beta)) == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.97])
def test_moved_groups_against_a_loop(beta: float) -> None:
    rows, groups = unit(17, 5), unit(8, 5, seed=1)
    assignment = torch.arange(17) % 3 * 2  # groups 0, 2, 4 have members, the others none
    before = groups.clone()
    moved = moved_groups(groups, rows, assignment, beta)
    expected = oracle_moved(groups.numpy(), rows.numpy(), assignment.tolist(), beta)
    np.testing.assert_allclose(moved.numpy(), expected, rtol=0, atol=1e-14)
    assert torch.equal(groups, before)
    assert moved.data_ptr() != groups.data_ptr()


def test_groups_without_members_keep_their_bits() -> None:
    groups = unit(50, 5, seed=1).float()
    moved = moved_groups(groups, unit(4, 5).float(), torch.tensor([3, 3, 9, 9]), 0.9)
    same = [k for k in range(50) if torch.equal(moved[k], groups[k])]
    assert same == [k for k in range(50) if k not in (3, 9)]


def test_rows_enter_with_their_length() -> None:
    groups, rows, assignment = angles(0, 90), angles(20, 100), torch.tensor([0, 1])
    assert to_angles(moved_groups(groups, 3 * rows, assignment, 0.5))[0] == pytest.approx(
        np.degrees(np.arctan2(3 * np.sin(np.radians(20)), 1 + 3 * np.cos(np.radians(20))))
    )


def test_gradient_reaches_the_members_and_only_them() -> None:
    groups, rows = unit(4, 3, seed=1), unit(6, 3).requires_grad_()
    assignment = torch.tensor([0, 0, 2, 2, 2, 0])
    assert torch.autograd.gradcheck(lambda x: moved_groups(groups, x, assignment, 0.7), rows)
    moved_groups(groups, rows, assignment, 0.7)[2].sum().backward()
    assert rows.grad is not None
    reached = (rows.grad.abs().sum(dim=1) > 1e-6).tolist()
    assert reached == [False, False, True, True, True, False]


@pytest.mark.parametrize("iterations", [0, 1, 10])
def test_kmeans_against_a_loop(iterations: int) -> None:
    rows = unit(60, 4)
    start = torch.cat([rows[:6], -rows[:2]])
    before = start.clone()
    found = spherical_kmeans(rows, start, iterations)
    np.testing.assert_allclose(found.numpy(), oracle_kmeans(rows.numpy(), start.numpy(), iterations), atol=1e-12)
    assert torch.equal(start, before)
    assert found.data_ptr() != start.data_ptr()


def test_kmeans_finds_clusters_and_keeps_an_empty_centroid() -> None:
    rows = torch.cat([angles(*range(-5, 6)), angles(*range(85, 96))])
    start = torch.cat([angles(4), angles(80), angles(225)])
    assert to_angles(spherical_kmeans(rows, start, 10)) == pytest.approx([0, 90, -135], abs=1e-9)


def test_order_of_rows_and_names_of_groups_do_not_matter() -> None:
    rows, start = unit(60, 4), unit(6, 4, seed=1)
    found = spherical_kmeans(rows, start, 5)
    torch.testing.assert_close(spherical_kmeans(rows.flip(0), start, 5), found, rtol=0, atol=1e-13)
    torch.testing.assert_close(spherical_kmeans(rows, start.flip(0), 5), found.flip(0), rtol=0, atol=1e-13)


def test_equal_calls_give_equal_bits() -> None:
    rows, start = unit(3000, 8).float(), unit(20, 8, seed=1).float()
    assert torch.equal(spherical_kmeans(rows, start, 10), spherical_kmeans(rows, start, 10))


def test_occupancy_by_hand() -> None:
    for assignment, expected, empty in (([0, 1, 2, 3], 1.0, 0.0), ([2, 2, 2], 0.25, 0.75), ([0, 0, 1, 1], 0.5, 0.5)):
        occupied, share = occupancy(torch.tensor(assignment), 4)
        assert occupied.item() == pytest.approx(expected, rel=1e-6)
        assert share.item() == empty
    shares = np.array([0.5, 0.25, 0.25])
    assert occupancy(torch.tensor([0, 0, 1, 2]), 3)[0].item() == pytest.approx(
        np.exp(-(shares * np.log(shares)).sum()) / 3, rel=1e-6
    )


def test_pair_purity_against_a_loop() -> None:
    assignment = torch.arange(30) * 7 % 5
    labels = torch.arange(30) * 11 % 4 - 1
    pairs = alike = 0
    for i in range(30):
        for j in range(i):
            if labels[i] >= 0 and labels[j] >= 0 and assignment[i] == assignment[j]:
                pairs += 1
                alike += int(labels[i] == labels[j])
    assert 0 < alike < pairs
    assert pair_purity(assignment, labels).item() == pytest.approx(alike / pairs, rel=1e-6)
    assert pair_purity(torch.arange(5), torch.zeros(5, dtype=torch.int64)).item() == 0.0


def results(rows: Tensor) -> dict[str, Tensor]:
    """What a process gets from its rows; the loss differs by process, so that both gradients must be summed."""
    groups, rank = unit(5, 3, seed=1), torch.distributed.get_rank() if torch.distributed.is_initialized() else None
    rows = rows.clone().requires_grad_()
    moved = moved_groups(groups, rows, assign(rows, groups), 0.6)
    weight = sum(range(1, WORLD + 1)) if rank is None else rank + 1
    (moved * unit(5, 3, seed=2)).sum().mul(weight).backward()
    assert rows.grad is not None
    return {"moved": moved.detach(), "gradient": rows.grad, "kmeans": spherical_kmeans(rows.detach(), groups, 4)}


def work(rank: int) -> Any:
    # unequal shares: 13 and 8 rows
    return results(unit(21, 3)[:13] if rank == 0 else unit(21, 3)[13:])


def test_two_processes_equal_one(tmp_path: Path) -> None:
    shared = run_in_two(work, tmp_path)
    whole = results(unit(21, 3))
    for name in ("moved", "kmeans"):
        assert torch.equal(shared[0][name], shared[1][name])
        torch.testing.assert_close(shared[0][name], whole[name], rtol=0, atol=1e-13)
    gradient = torch.cat([result["gradient"] for result in shared])
    torch.testing.assert_close(gradient, whole["gradient"], rtol=0, atol=1e-13)


@pytest.mark.gpu
def test_cuda_repeats_its_bits_and_agrees_with_the_cpu() -> None:
    rows, start = unit(5000, 16), unit(40, 16, seed=1)
    on_cpu = spherical_kmeans(rows, start, 5)
    first, second = (spherical_kmeans(rows.cuda(), start.cuda(), 5) for _ in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(first.cpu(), on_cpu, rtol=0, atol=1e-12)
    live = rows.cuda().requires_grad_()
    moved_groups(start.cuda(), live, assign(live, start.cuda()), 0.5).sum().backward()


def test_group_loss_against_a_loop_and_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, groups = (torch.randn(*s, dtype=torch.float64, generator=generator) for s in ((3, 5, 4), (6, 4)))
    targets = torch.randint(6, (2, 5), generator=generator)
    terms = []
    for r in range(3):
        for s in range(2):
            for i in range(5):
                logits = (groups @ outputs[r, i] / 0.3).numpy()
                terms.append(np.log(np.exp(logits).sum()) - logits[targets[s, i]])
    assert group_loss(outputs, groups, targets, 0.3).item() == pytest.approx(np.mean(terms), rel=1e-12)
    live = outputs.requires_grad_(), groups.requires_grad_()
    assert torch.autograd.gradcheck(lambda o, g: group_loss(o, g, targets, 0.3), live)
