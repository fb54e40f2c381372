"""Linear maps by the convolution: float64 numpy, and which rows take it."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polygrain.nn import linear as module
from polygrain.nn.linear import Linear, linear_map

FILLING = [(256,), (64,), (100,), (512,), (8, 32), (2, 5, 10)]  # 16 maps or more of 4 x 4 or 2 x 2 rows
OTHERS = [(16,), (60,), (255,), (66,), (1,), (0,), (), (3, 5)]
D, O = 48, 40  # noqa: E741


def numbers(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.fixture
def convolutions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of the images that reach the convolution."""
    seen, real = [], module.conv2d

    def counted(images: Tensor, *rest: Tensor) -> Tensor:
        seen.append(tuple(images.shape))
        return real(images, *rest)

    monkeypatch.setattr(module, "conv2d", counted)
    return seen


def close(got: Tensor, exact: np.ndarray) -> None:
    assert got.shape == exact.shape
    np.testing.assert_allclose(got.numpy(), exact, rtol=0, atol=1e-5 * max(np.abs(exact).max(initial=0), 1e-30))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [*FILLING, *OTHERS], ids=str)
def test_values_and_gradients_are_those_of_float64(rows: tuple[int, ...], bias: bool) -> None:
    x, weight, shift, pull = (
        numbers(*rows, D, seed=0),
        numbers(O, D, seed=1),
        numbers(O, seed=2),
        numbers(*rows, O, seed=3),
    )
    given = [tensor.requires_grad_() for tensor in ((x, weight, shift) if bias else (x, weight))]
    result = linear_map(*given)
    gradients = torch.autograd.grad(result, given, pull)
    x_ND, weight_OD, shift_O, pull_NO = (tensor.detach().double().numpy() for tensor in (x, weight, shift, pull))
    assert result.dtype == torch.float32
    close(result.detach(), x_ND @ weight_OD.T + (shift_O if bias else 0))
    flat_ND, flat_NO = x_ND.reshape(-1, D), pull_NO.reshape(-1, O)
    expected = [pull_NO @ weight_OD, flat_NO.T @ flat_ND, flat_NO.sum(axis=0)]
    for gradient, exact in zip(gradients, expected[: len(given)], strict=True):
        close(gradient, exact)


@pytest.mark.parametrize("bias", [False, True])
def test_rows_that_lie_apart_in_memory_give_the_same(bias: bool) -> None:
    weight, shift = numbers(O, D, seed=1), numbers(O, seed=2) if bias else None
    for x in (numbers(D, 256, seed=0).T, numbers(512, D, seed=0)[::2], numbers(16, D, 16, seed=0).transpose(1, 2)):
        assert not x.is_contiguous()
        exact = x.double().numpy() @ weight.double().numpy().T + (0 if shift is None else shift.double().numpy())
        close(linear_map(x, weight, shift), exact)


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (1, 40), (48, 1), (3, 5)])
def test_narrow_maps(inputs: int, outputs: int) -> None:
    x, weight = numbers(256, inputs, seed=0), numbers(outputs, inputs, seed=1)
    close(linear_map(x, weight), x.double().numpy() @ weight.double().numpy().T)


@pytest.mark.parametrize(
    ("rows", "images"),
    [
        ((256,), (16, D, 4, 4)),
        ((1024,), (64, D, 4, 4)),
        ((8, 32), (16, D, 4, 4)),
        ((64,), (16, D, 2, 2)),
        ((240,), (60, D, 2, 2)),  # 15 maps of 4 x 4 are too few
        ((260,), (65, D, 2, 2)),
        ((100,), (25, D, 2, 2)),
    ],
    ids=str,
)
def test_rows_that_fill_the_maps_take_the_convolution(
    convolutions: list[tuple[int, ...]], rows: tuple[int, ...], images: tuple[int, ...]
) -> None:
    linear_map(numbers(*rows, D, seed=0), numbers(O, D, seed=1))
    assert convolutions == [images]


@pytest.mark.parametrize("rows", OTHERS, ids=str)
def test_other_rows_take_the_matrix_product(convolutions: list[tuple[int, ...]], rows: tuple[int, ...]) -> None:
    x, weight, shift = numbers(*rows, D, seed=0), numbers(O, D, seed=1), numbers(O, seed=2)
    assert torch.equal(linear_map(x, weight, shift), nn.functional.linear(x, weight, shift))
    assert convolutions == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_numbers_take_the_matrix_product(convolutions: list[tuple[int, ...]], dtype: torch.dtype) -> None:
    x, weight, shift = (numbers(*shape, seed=0, dtype=dtype) for shape in ((256, D), (O, D), (O,)))
    got = linear_map(x, weight, shift)
    assert got.dtype == dtype
    assert torch.equal(got, nn.functional.linear(x, weight, shift))
    assert convolutions == []


def test_in_float64_the_gradients_are_exact() -> None:
    parts = [numbers(*shape, seed=0, dtype=torch.float64).requires_grad_() for shape in ((64, 3), (2, 3), (2,))]
    assert torch.autograd.gradcheck(linear_map, parts)


@pytest.mark.parametrize("bias", [False, True])
def test_the_layer_is_that_of_torch_with_another_product(convolutions: list[tuple[int, ...]], bias: bool) -> None:
    torch.manual_seed(0)
    mine, after = Linear(D, O, bias=bias), torch.rand(3)
    torch.manual_seed(0)
    theirs, then = nn.Linear(D, O, bias=bias), torch.rand(3)
    assert isinstance(mine, nn.Linear)  # modules find linear layers by this class
    assert list(mine.state_dict()) == list(theirs.state_dict()) == (["weight", "bias"] if bias else ["weight"])
    assert all(torch.equal(mine.state_dict()[name], value) for name, value in theirs.state_dict().items())
    assert torch.equal(after, then)
    x = numbers(256, D, seed=3)
    exact = x.double() @ mine.weight.detach().double().T + (mine.bias.detach().double() if bias else 0)
    close(mine(x).detach(), exact.numpy())
    assert len(convolutions) == 1
