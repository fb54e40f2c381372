"""Arithmetic with the same bits on every processor."""

from torch import Tensor


def square_root(x: Tensor) -> Tensor:
    """The square root of numbers >= 0, to two units in the last place, with equal bits on every processor.

    `torch.sqrt` may use the processor's approximation (RSQRTPS), whose last bit differs between makers in one result in
    seven. `torch.rsqrt` divides by a root that is rounded as IEEE 754 demands.
    """
    return x.rsqrt().reciprocal()
