"""Nearest neighbours: brute force, ties, and the promise that no bit depends on blocks or company."""

import numpy as np
import pytest
import torch
from torch import Tensor

from polygrain.nn.neighbours import topk_cosine


def rows(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_against_brute_force() -> None:
    queries, bank = rows(23, 12, 0), rows(57, 12, 1) * 3
    values, indices = topk_cosine(queries, bank, 7, byte_budget=1 << 20)
    q, b = (x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True) for x in (queries, bank))
    cosine = q @ b.T
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(indices.numpy(), order)
    np.testing.assert_allclose(values.numpy(), np.take_along_axis(cosine, order, 1), atol=12**0.5 * 2**-26)
    assert values.dtype == torch.float64
    assert indices.dtype == torch.int64


def test_exact_to_the_last_bit_in_integers() -> None:
    # The similarity is defined without rounding: Python's integers give the same number.
    queries, bank = rows(3, 300, 2), rows(4, 300, 3)
    values, indices = topk_cosine(queries, bank, 4, byte_budget=1 << 20)
    q, b = (
        (x.double() / x.double().norm(dim=1, keepdim=True) * 2**26).round().long().tolist() for x in (queries, bank)
    )
    for i in range(3):
        for j, value in zip(indices[i].tolist(), values[i].tolist(), strict=True):
            assert int(value * 2**52) == sum(x * y for x, y in zip(q[i], b[j], strict=True))


@pytest.mark.parametrize("width", [3, 64, 513])
@pytest.mark.parametrize("byte_budget", [1, 8 * 201 * 2, 8 * 201 * 7, 8 * 201 * 96, 1 << 30])
def test_no_bit_depends_on_the_block_size(width: int, byte_budget: int) -> None:
    queries, bank = rows(97, width, 4), rows(201, width, 5)
    expected = topk_cosine(queries, bank, 9, byte_budget=8 * 201 * 50)
    values, indices = topk_cosine(queries, bank, 9, byte_budget=byte_budget)
    assert torch.equal(values, expected[0])
    assert torch.equal(indices, expected[1])


def test_no_bit_depends_on_the_other_queries_or_bank_rows() -> None:
    queries, bank = rows(40, 33, 6), rows(90, 33, 7)
    values, indices = topk_cosine(queries, bank, 5, byte_budget=8 * 90 * 16)
    for i in (0, 15, 16, 39):
        alone = topk_cosine(queries[i : i + 1], bank, 5, byte_budget=8 * 90 * 16)
        assert torch.equal(alone[0][0], values[i])
        assert torch.equal(alone[1][0], indices[i])
    only = topk_cosine(queries[:1], bank[indices[0]], 5, byte_budget=1 << 20)
    assert torch.equal(only[0], values[:1])
    assert only[1].tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("k", [1, 3, 4, 5, 9, 12])
def test_ties_go_to_the_smaller_index(k: int) -> None:
    base = rows(3, 8, 8)
    bank = torch.cat([base * scale for scale in (1.0, 2.0, 0.5, 4.0)])  # row j, j + 3, j + 6, j + 9 are equal
    values, indices = topk_cosine(base, bank, k, byte_budget=1 << 20)
    cosine = (torch.nn.functional.normalize(base.double()) @ torch.nn.functional.normalize(base.double()).T).numpy()
    for i in range(3):
        expected = [3 * copy + j for j in np.argsort(-cosine[i], kind="stable") for copy in range(4)][:k]
        assert indices[i].tolist() == expected
    assert (values[:, 0] - 1.0).abs().max() < 1e-7


def test_all_rows_equal_and_rows_of_zeros() -> None:
    _, indices = topk_cosine(torch.ones(4, 5), torch.ones(50, 5), 6, byte_budget=100)
    assert indices.tolist() == [[0, 1, 2, 3, 4, 5]] * 4
    values, indices = topk_cosine(torch.zeros(1, 5), torch.ones(9, 5), 2, byte_budget=100)
    assert values.tolist() == [[0.0, 0.0]]
    assert indices.tolist() == [[0, 1]]


@pytest.mark.parametrize("k", [0, 10])
def test_k_must_fit(k: int) -> None:
    with pytest.raises(ValueError, match="bank of 9"):
        topk_cosine(torch.ones(1, 2), torch.ones(9, 2), k, byte_budget=1)


def test_no_gradient() -> None:
    values, _ = topk_cosine(rows(2, 3, 0).requires_grad_(), rows(4, 3, 1).requires_grad_(), 2, byte_budget=1)
    assert not values.requires_grad
