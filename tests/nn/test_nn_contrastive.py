"""NT-Xent and SupCon: numpy oracles of value and gradient, golden values, invariances, collapse."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from polygrain.nn.contrastive import nt_xent, one_way, sup_con, sup_con_to_bank


def oracle(z: np.ndarray, temperature: float) -> tuple[float, np.ndarray]:
    """Loss of stacked rows [2B, D] and its gradient, from the written formula, float64."""
    rows = len(z)
    length = np.linalg.norm(z, axis=1, keepdims=True)
    unit = z / length
    partner = (np.arange(rows) + rows // 2) % rows
    loss, by_similarity = 0.0, np.zeros((rows, rows))
    for i in range(rows):
        others = [j for j in range(rows) if j != i]
        terms = {j: math.exp(unit[i] @ unit[j] / temperature) for j in others}
        total = sum(terms.values())
        loss -= math.log(terms[partner[i]] / total) / rows
        for j in others:
            by_similarity[i, j] = (terms[j] / total - (j == partner[i])) / temperature / rows
    by_unit = (by_similarity + by_similarity.T) @ unit
    return loss, (by_unit - (by_unit * unit).sum(1, keepdims=True) * unit) / length


def views(images: int = 5, width: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, images, width, dtype=torch.float64, generator=generator)
    return z[0].requires_grad_(), z[1].requires_grad_()


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_value_and_gradient(temperature: float) -> None:
    z_1, z_2 = views()
    loss = nt_xent(z_1, z_2, temperature)
    loss.backward()
    value, gradient = oracle(torch.cat([z_1, z_2]).detach().numpy(), temperature)
    assert loss.item() == pytest.approx(value, rel=1e-13)
    np.testing.assert_allclose(torch.cat([z_1.grad, z_2.grad]).numpy(), gradient, atol=1e-13)


def unit(*degrees: float) -> Tensor:
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angle.cos(), angle.sin()], dim=1)


VIEW_1, VIEW_2 = unit(0, 8, 20, 95, 103, 200), unit(5, 60, 25, 90, 110, 205)


def test_golden_of_wcl() -> None:
    loss = nt_xent(VIEW_1, VIEW_2, 0.1)
    assert float(loss) == pytest.approx(1.429603, abs=5e-7)


def test_golden_of_mncl() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    assert float(nt_xent(eye, eye, 1.0)) == pytest.approx(math.log(math.e + 6) - 1, rel=1e-14)
    assert float(nt_xent(eye, eye, 1.0)) == pytest.approx(1.16542, abs=5e-6)
    p, targets = torch.eye(2).double(), torch.tensor([[0.8, 0.6], [0.0, 1.0]]).double()
    assert float(nt_xent(p, targets, 1.0)) == pytest.approx(0.75877, abs=5e-6)


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.3), views(3, 3))


@pytest.mark.parametrize("images", [1, 2, 8, 64])
def test_collapse(images: int) -> None:
    z = torch.ones(images, 3, dtype=torch.float64)
    assert float(nt_xent(z, z, 0.1)) == pytest.approx(math.log(2 * images - 1), abs=1e-12)


def test_invariances() -> None:
    z_1, z_2 = views()
    loss = nt_xent(z_1, z_2, 0.2)
    order = torch.tensor([3, 0, 4, 1, 2])
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    lengths = torch.tensor([0.1, 5.0, 1.0, 2.0, 30.0], dtype=torch.float64)[:, None]
    for other in (
        nt_xent(z_1[order], z_2[order], 0.2),
        nt_xent(z_2, z_1, 0.2),
        nt_xent(z_1 * lengths, z_2 * 7, 0.2),
        nt_xent(z_1 @ turn, z_2 @ turn, 0.2),
    ):
        torch.testing.assert_close(other, loss, rtol=1e-13, atol=0)


def test_the_pairing_and_the_temperature_matter() -> None:
    z_1, z_2 = (z.detach() for z in views())
    loss = nt_xent(z_1, z_2, 0.2)
    assert abs(float(nt_xent(z_1, z_2.roll(1, 0), 0.2) - loss)) > 0.001
    assert abs(float(nt_xent(z_1, z_2, 0.25) - loss)) > 0.01


def test_float32_survives_a_small_temperature() -> None:
    z_1, z_2 = (z.detach() for z in views())
    exact = nt_xent(z_1, z_2, 0.005)
    assert float(nt_xent(z_1.float(), z_2.float(), 0.005)) == pytest.approx(float(exact), rel=1e-4)


def test_without_a_block_no_bit_has_changed() -> None:
    def before(z_1: Tensor, z_2: Tensor) -> Tensor:
        z = normalize(torch.cat([z_1, z_2]), dim=1)
        logits = z @ z.T / 0.2
        positive = torch.cat([logits.diagonal(len(z_1)), logits.diagonal(-len(z_1))])
        own = torch.eye(len(z), dtype=torch.bool)
        return (logits.masked_fill(own, float("-inf")).logsumexp(dim=1) - positive).mean()

    results = []
    for loss_of in (before, lambda a, b: nt_xent(a, b, 0.2), lambda a, b: nt_xent(a, b, 0.2, block=None)):
        z_1, z_2 = (z.detach().float().requires_grad_() for z in views(32, 16))
        loss = loss_of(z_1, z_2)
        loss.backward()
        results.append((loss.detach(), z_1.grad, z_2.grad))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def block_gradient(z_1: Tensor, z_2: Tensor, block: int | None) -> Tensor:
    z_1, z_2 = (z.detach().requires_grad_() for z in (z_1, z_2))
    nt_xent(z_1, z_2, 0.2, block=block).backward()
    return torch.cat([z_1.grad, z_2.grad])


def released_gradient(z_1: Tensor, z_2: Tensor, processes: int) -> Tensor:
    """Gradient of the mean of the processes' losses as WCL section 4.1 distributes them.

    Columns are [view 1 here, view 2 here, view 1 elsewhere, view 2 elsewhere], the first 2b less the diagonal.
    Elsewhere is without gradient.
    """
    size = len(z_1) // processes
    z_1, z_2 = (z.detach().requires_grad_() for z in (z_1, z_2))
    losses = []
    for rank in range(processes):
        here = slice(rank * size, (rank + 1) * size)
        there = [i for i in range(len(z_1)) if i // size != rank]
        anchor = normalize(torch.cat([z_1[here], z_2[here]]), dim=1)
        column = torch.cat([anchor, normalize(torch.cat([z_1[there], z_2[there]]), dim=1).detach()])
        rows = []
        for i in range(2 * size):
            kept = [j for j in range(len(column)) if j != i]
            logits = anchor[i] @ column[kept].T / 0.2
            target = size - 1 + i if i < size else i - size
            rows.append(logits.logsumexp(0) - logits[target])
        losses.append(torch.stack(rows).mean())
    torch.stack(losses).mean().backward()
    return torch.cat([z_1.grad, z_2.grad])


@pytest.mark.parametrize(("images", "processes"), [(4, 2), (8, 2), (8, 4), (12, 4), (6, 1)])
def test_blocks_are_what_so_many_processes_release(images: int, processes: int) -> None:
    z_1, z_2 = views(images, 6)
    blocks = block_gradient(z_1, z_2, images // processes)
    torch.testing.assert_close(blocks, released_gradient(z_1, z_2, processes), rtol=0, atol=1e-13)
    formula = block_gradient(z_1, z_2, None)
    if processes == 1:
        torch.testing.assert_close(blocks, formula, rtol=0, atol=1e-14)
    else:
        assert (blocks - formula).abs().max() > 0.02 * formula.abs().max()


def test_blocks_change_no_bit_of_the_value() -> None:
    z_1, z_2 = (z.detach().float() for z in views(24, 8))
    for block in (1, 5, 8, 24, 128):
        assert torch.equal(nt_xent(z_1, z_2, 0.2, block=block), nt_xent(z_1, z_2, 0.2))


def partition(labels: tuple[int, ...]) -> Tensor:
    given = torch.tensor(labels)
    return given[:, None] == given  # the diagonal is True: the loss must not count it


LABELS_1, LABELS_2 = partition((0, 0, 0, 3, 3, 3)), partition((0, 1, 0, 1, 1, 1))


def test_golden_sup_con_of_wcl() -> None:
    def value(rows: Tensor, positive: Tensor) -> float:
        return float(sup_con(rows, positive, 0.1, keys_grad=False))

    assert value(VIEW_1, LABELS_2) == pytest.approx(5.653846, abs=5e-7)
    assert value(VIEW_2, LABELS_1) == pytest.approx(3.184372, abs=5e-7)
    assert value(VIEW_1, LABELS_1) == pytest.approx(2.475133, abs=5e-7)
    assert value(VIEW_2, LABELS_2) == pytest.approx(3.411986, abs=5e-7)
    assert (value(VIEW_1, LABELS_2) + value(VIEW_2, LABELS_1)) / 2 == pytest.approx(4.419109, abs=5e-7)


@pytest.mark.parametrize(("keys_grad", "slope"), [(False, 0.134137), (True, 0.328321)])
def test_golden_slope_of_wcl(keys_grad: bool, slope: float) -> None:
    angle = torch.deg2rad(torch.tensor((0, 8, 20, 95, 103, 200), dtype=torch.float64)).requires_grad_()
    rows = torch.stack([angle.cos(), angle.sin()], dim=1)
    sup_con(rows, LABELS_2, 0.1, keys_grad=keys_grad).backward()
    assert float(angle.grad[2]) == pytest.approx(slope, abs=5e-7)


def sup_con_oracle(anchors: np.ndarray, keys: np.ndarray, positive: np.ndarray, t: float, own: bool) -> float:
    """Section 4.3 in loops. `own`: anchors and keys are the same rows, and a row is no key of itself."""
    unit_a, unit_k = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (anchors, keys))
    terms = []
    for i in range(len(anchors)):
        others = [a for a in range(len(keys)) if not (own and a == i)]
        total = sum(math.exp(unit_a[i] @ unit_k[a] / t) for a in others)
        wanted = [j for j in others if positive[i, j]]
        if wanted:
            terms.append(-sum(math.log(math.exp(unit_a[i] @ unit_k[j] / t) / total) for j in wanted) / len(wanted))
    return sum(terms) / len(terms) if terms else 0.0


def slopes(function: object, x: np.ndarray) -> np.ndarray:
    found = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        values = []
        for sign in (1, -1):
            moved = x.copy()
            moved[place] += sign * 1e-6
            values.append(function(moved))  # type: ignore[operator]
        found[place] = (values[0] - values[1]) / 2e-6
    return found


def relation(anchors: int, keys: int, seed: int) -> Tensor:
    """An asymmetric relation, with one anchor that has no positive (but itself)."""
    positive = torch.rand(anchors, keys, generator=torch.Generator().manual_seed(seed)) < 0.4
    positive[1] = False
    positive[1, 1] = anchors == keys
    return positive


@pytest.mark.parametrize("temperature", [0.1, 0.7])
@pytest.mark.parametrize("keys_grad", [False, True])
def test_sup_con_value_and_gradient(temperature: float, keys_grad: bool) -> None:
    z, positive = views(7, 3)[0], relation(7, 7, 0)
    loss = sup_con(z, positive, temperature, keys_grad=keys_grad)
    loss.backward()
    x, mask = z.detach().numpy(), positive.numpy()
    assert loss.item() == pytest.approx(sup_con_oracle(x, x, mask, temperature, own=True), rel=1e-13)
    expected = slopes(lambda y: sup_con_oracle(y, y if keys_grad else x, mask, temperature, own=True), x)
    np.testing.assert_allclose(z.grad.numpy(), expected, atol=1e-7)


def test_sup_con_gradcheck() -> None:
    z, positive = views(5, 3)[0], relation(5, 5, 1)
    assert torch.autograd.gradcheck(lambda a: sup_con(a, positive, 0.5, keys_grad=True), (z,))
    u, bank = views(5, 3, seed=2)
    assert torch.autograd.gradcheck(lambda a: sup_con_to_bank(a, bank.detach(), positive, 0.5), (u,))


@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_sup_con_to_bank(temperature: float) -> None:
    u, bank, positive = views(6, 3)[0], views(4, 3)[1], relation(6, 4, 2)
    loss = sup_con_to_bank(u, bank, positive, temperature)
    loss.backward()
    x, keys, mask = u.detach().numpy(), bank.detach().numpy(), positive.numpy()
    assert loss.item() == pytest.approx(sup_con_oracle(x, keys, mask, temperature, own=False), rel=1e-13)
    expected = slopes(lambda y: sup_con_oracle(y, keys, mask, temperature, own=False), x)
    np.testing.assert_allclose(u.grad.numpy(), expected, atol=1e-7)
    assert bank.grad is None


def test_one_positive_in_a_bank_is_cross_entropy() -> None:
    u, bank = (z.detach() for z in views(6, 3))
    target = torch.tensor([2, 0, 5, 1, 1, 4])
    logits = normalize(u, dim=1) @ normalize(bank, dim=1).T / 0.2
    loss = sup_con_to_bank(u, bank, torch.eye(6, dtype=torch.bool)[target], 0.2)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, target), rtol=1e-13, atol=0)


def test_no_positive_at_all_gives_0_and_no_gradient() -> None:
    for positive in (torch.zeros(5, 5, dtype=torch.bool), torch.eye(5, dtype=torch.bool)):
        z = views()[0]
        loss = sup_con(z, positive, 0.1, keys_grad=True)
        loss.backward()
        assert loss.item() == 0.0
        assert torch.equal(z.grad, torch.zeros_like(z))


def test_two_images_are_degenerate() -> None:
    z = views(2, 3)[0]
    loss = sup_con(z, torch.ones(2, 2, dtype=torch.bool), 0.1, keys_grad=True)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-14)
    torch.testing.assert_close(z.grad, torch.zeros_like(z), rtol=0, atol=1e-14)


@pytest.mark.parametrize("images", [3, 8, 64])
def test_sup_con_collapse(images: int) -> None:
    z = torch.ones(images, 3, dtype=torch.float64)
    for labels in (torch.zeros(images, dtype=torch.int64), torch.arange(images) // 2):
        loss = sup_con(z, labels[:, None] == labels, 0.1, keys_grad=False)
        assert float(loss) == pytest.approx(math.log(images - 1), abs=1e-12)
        bank = sup_con_to_bank(z, z, labels[:, None] == labels, 0.1)
        assert float(bank) == pytest.approx(math.log(images), abs=1e-12)


def test_sup_con_invariances() -> None:
    z, positive = views(6, 4)[0], relation(6, 6, 3)
    loss = sup_con(z, positive, 0.2, keys_grad=False)
    order = torch.tensor([3, 0, 5, 4, 1, 2])
    lengths = torch.tensor([0.1, 5.0, 1.0, 2.0, 30.0, 0.3], dtype=torch.float64)[:, None]
    for rows, mask in (
        (z[order], positive[order][:, order]),
        (z * lengths, positive),
        (z, positive & ~torch.eye(6).bool()),
    ):
        torch.testing.assert_close(sup_con(rows, mask, 0.2, keys_grad=False), loss, rtol=1e-13, atol=0)
    for mask in (positive.T, positive.roll(1, 1)):
        assert (sup_con(z, mask, 0.2, keys_grad=False) - loss).abs() > 0.001


def test_sup_con_in_float32_survives_a_small_temperature() -> None:
    z, positive = views(12, 4)[0].detach(), relation(12, 12, 4)
    exact = float(sup_con(z, positive, 0.005, keys_grad=False))
    assert float(sup_con(z.float(), positive, 0.005, keys_grad=False)) == pytest.approx(exact, rel=1e-4)


def test_one_way_loss_against_a_loop_and_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    one, many = (torch.randn(*s, 4, dtype=torch.float64, generator=generator) for s in ((1, 5), (3, 5)))
    for anchor, key in ((one, many), (many, one)):
        terms = []
        for j, i in itertools.product(range(3), range(5)):
            a, b = (x[j % len(x)].numpy() for x in (anchor, key))
            cosines = [a[i] @ row / np.linalg.norm(a[i]) / np.linalg.norm(row) for row in b]
            terms.append(np.log(np.sum(np.exp(np.array(cosines) / 0.3))) - cosines[i] / 0.3)
        assert one_way(anchor, key, 0.3).item() == pytest.approx(np.mean(terms), rel=1e-12)
    live = one.requires_grad_(), many.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: one_way(a, b, 0.3), live)
