"""Arithmetic with the same bits on every processor."""

from torch import Tensor


def square_root(x: Tensor) -> Tensor:
    """The square root of numbers >= 0, within two units in the last place.

    `torch.sqrt` may start from the processor's own approximation (RSQRTPS), which differs between makers in the last
    bit of one result in seven. `torch.rsqrt` divides by a root that is rounded as IEEE 754 demands.
    """
    return x.rsqrt().reciprocal()
