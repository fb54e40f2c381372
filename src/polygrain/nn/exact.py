"""Arithmetic with the same bits on every processor."""

from torch import Tensor


def square_root(x: Tensor) -> Tensor:
    """The square root of numbers >= 0, to two units in the last place, with equal bits on every processor.

    `torch.sqrt` may use RSQRTPS, which differs between makers; `torch.rsqrt` uses a root rounded as IEEE 754 demands.
    """
    return x.rsqrt().reciprocal()
