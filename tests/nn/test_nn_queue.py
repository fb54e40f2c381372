"""Queues: where rows land and pointers go, by the papers' golden sequences and a list-based oracle; refusal; resume."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polygrain.nn.queue import Queue, Wrap


def queue(size: int, wrap: Wrap, width: int = 2, *, unit: bool = False) -> Queue:
    torch.manual_seed(0)
    return Queue(size, width, wrap=wrap, unit=unit)


def rows(step: int, count: int, width: int = 2) -> Tensor:
    """Rows that tell the step, and their place in the batch, that they come from."""
    return torch.stack([torch.full((count,), 100.0 + step), torch.arange(count) + 0.5], dim=1)[:, :width]


def pointers(size: int, count: int, wrap: Wrap, pushes: int) -> list[int]:
    one, found = queue(size, wrap), []
    for step in range(pushes):
        one.push(rows(step, count))
        found.append(int(one.pointer))
    return found


@pytest.mark.parametrize(
    ("size", "count", "wrap", "expected"),
    [
        (20, 6, "double", [12, 4, 16, 2, 14, 6, 18, 4]),  # Mugs section 3.4
        (10, 5, "double", [0, 0, 0, 0, 0, 0, 0, 0]),
        (20, 6, "ring", [6, 12, 18, 4, 10, 16, 2, 8]),
        (10, 5, "ring", [5, 0, 5, 0, 5, 0, 5, 0]),
        (20, 8, "cut", [8, 16, 0, 8, 16, 0, 8, 16]),  # MNCL section 4
        (20, 5, "cut", [5, 10, 15, 0, 5, 10, 15, 0]),
        (8, 20, "cut", [0, 0, 0, 0, 0, 0, 0, 0]),
        (8, 8, "ring", [0, 0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_golden_pointers(size: int, count: int, wrap: Wrap, expected: list[int]) -> None:
    assert pointers(size, count, wrap, len(expected)) == expected


def test_an_exact_fit_of_the_double_pointer_starts_at_n_not_at_0() -> None:
    one = queue(10, "double")
    one.push(rows(0, 3))  # pointer 6
    one.push(rows(1, 4))  # fills 6 .. 9 exactly
    assert int(one.pointer) == 4
    assert one.written.tolist() == [True] * 3 + [False] * 3 + [True] * 4


@pytest.mark.parametrize("wrap", ["ring", "cut", "double"])
@pytest.mark.parametrize(("size", "count"), [(20, 6), (20, 8), (10, 5), (7, 7), (9, 4), (5, 1)])
def test_rows_land_where_a_list_says(size: int, count: int, wrap: Wrap) -> None:
    one = queue(size, wrap)
    expected: list[Any] = one.rows.tolist()
    written, at = [False] * size, 0
    for step in range(25):
        batch = rows(step, count)
        one.push(batch)
        crossed = at + count > size
        for place, row in enumerate(batch.tolist()):
            if at + place >= size and wrap == "cut":
                continue
            expected[(at + place) % size], written[(at + place) % size] = row, True
        if wrap == "cut":
            at = 0 if at + count >= size else at + count
        else:
            at = (at + count * (2 if wrap == "double" and not crossed else 1)) % size
        assert one.rows.tolist() == expected
        assert one.written.tolist() == written
        assert int(one.pointer) == at


def test_a_push_larger_than_the_queue() -> None:
    one = queue(8, "cut")
    one.push(rows(0, 20))
    assert torch.equal(one.rows, rows(0, 20)[:8])
    for wrap in ("ring", "double"):
        two = queue(8, wrap)
        before = two.rows.clone()
        with pytest.raises(ValueError, match="9 rows do not fit a queue of 8"):
            two.push(rows(0, 9))
        assert torch.equal(two.rows, before)
        assert not two.written.any()


@pytest.mark.parametrize("wrap", ["ring", "cut", "double"])
def test_a_push_of_nothing_changes_nothing(wrap: Wrap) -> None:
    one = queue(10, wrap)
    one.push(rows(0, 3))
    before = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    one.push(rows(1, 0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.state_dict().items())


def test_noise_and_what_is_stored() -> None:
    one = Queue(5000, 16, wrap="ring", unit=False)
    assert one.rows.dtype == torch.float32
    assert one.rows.mean().item() == pytest.approx(0.0, abs=0.02)
    assert one.rows.std().item() == pytest.approx(1.0, abs=0.02)
    two = Queue(50, 16, wrap="ring", unit=True)
    torch.testing.assert_close(two.rows.norm(dim=1), torch.ones(50))
    assert not two.written.any()
    two.push(torch.full((3, 16), 2.0))
    assert two.rows[:3].unique().tolist() == [2.0]  # as they come, unit queue or not
    torch.manual_seed(4)
    first = Queue(5, 2, wrap="ring", unit=False)
    torch.manual_seed(4)
    assert torch.equal(first.rows, Queue(5, 2, wrap="double", unit=False).rows)


def test_no_gradient_enters_and_a_pending_backward_is_not_disturbed() -> None:
    one = queue(6, "ring")
    weight = torch.ones(2, requires_grad=True)
    held = one.rows
    loss = (one.rows @ weight).square().sum()
    one.push(rows(0, 4) * weight)
    assert not one.rows.requires_grad
    expected = 2 * ((held @ weight)[:, None] * held).sum(0)
    loss.backward()
    torch.testing.assert_close(weight.grad, expected.detach())
    assert list(one.parameters()) == []


@pytest.mark.parametrize("wrap", ["ring", "cut", "double"])
def test_a_resumed_queue_has_the_same_bits(wrap: Wrap) -> None:
    straight, first = queue(20, wrap), queue(20, wrap)
    for step in range(3):
        straight.push(rows(step, 6))
        first.push(rows(step, 6))
    kept = io.BytesIO()
    torch.save(first.state_dict(), kept)
    kept.seek(0)
    torch.manual_seed(9)
    second = Queue(20, 2, wrap=wrap, unit=False)
    second.load_state_dict(torch.load(kept, weights_only=True))
    for step in range(3, 9):
        straight.push(rows(step, 6))
        second.push(rows(step, 6))
    assert {"rows", "pointer", "written"} == set(straight.state_dict())
    assert all(torch.equal(second.state_dict()[name], tensor) for name, tensor in straight.state_dict().items())


# --- what the double pointer does to a memory of 65,536 rows (table of Mugs section 3.4)


K = 65536


def filled(counts: list[int], wrap: Wrap = "double") -> tuple[list[float], Tensor]:
    """Share of real rows after each push, and the ages in steps of the real rows at the end (the newest is 0)."""
    one, shares = Queue(K, 1, wrap=wrap, unit=False), []
    for step, count in enumerate(counts):
        one.push(torch.full((count, 1), float(step)))
        shares.append(one.written.float().mean().item())
    return shares, len(counts) - 1 - one.rows[one.written][:, 0]


@pytest.mark.parametrize("n", [512, 1024])
def test_half_of_the_memory_stays_noise(n: int) -> None:
    shares, ages = filled([n] * (4 * K // n))
    assert shares[K // (2 * n) - 2] < 0.5
    assert set(shares[K // (2 * n) - 1 :]) == {0.5}
    assert ages.max().item() == K // (2 * n) - 1  # the newest half
    assert filled([n] * (K // n), "ring")[0][-1] == 1.0


def test_a_batch_of_640() -> None:
    shares, ages = filled([640] * 800)
    assert shares[K // 640 - 1] == pytest.approx(0.79, abs=0.005)
    assert shares[3 * K // 640 - 1] == pytest.approx(0.900, abs=5e-4)
    assert len(set(shares[3 * K // 640 - 1 :])) == 1
    assert ages.max().item() == 256
    assert filled([640] * 800, "ring")[1].max().item() == 102


def test_a_batch_of_1008() -> None:
    """After 12 rounds; the oldest row still ages then, and the last rows are reached in the end."""
    shares, ages = filled([1008] * (12 * K // 1008))
    assert shares[K // 1008 - 1] == pytest.approx(0.992, abs=5e-4)
    assert shares[-1] == pytest.approx(0.992, abs=5e-4)
    assert ages.median().item() == 32
    assert ages.max().item() == 778
    assert filled([1008] * (12 * K // 1008), "ring")[1].max().item() == 65


def test_random_counts_fill_the_memory() -> None:
    shares, _ = filled(np.random.default_rng(0).binomial(512, 0.5, size=8 * K // 512).tolist())
    found = [shares[rounds * K // 512 - 1] for rounds in (1, 2, 4, 8)]
    assert found[0] == pytest.approx(0.5, abs=0.005)
    assert 0.68 <= found[1] <= 0.74
    assert 0.87 <= found[2] <= 0.98
    assert found[3] > 0.997
