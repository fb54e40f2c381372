"""Random numbers as pure functions of named counters: no generator and no state to save.

A draw is `hash64(seed, purpose, epoch, sample index, view, ...)`: each counter is mixed into a 64-bit word with the
finaliser of SplitMix64 (Steele, Lea and Flood 2014). Equal counters give equal bits everywhere.
"""

import hashlib

import torch
from torch import Tensor

from polygrain.nn.exact import square_root

Counter = int | str | Tensor

_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _signed(word: int) -> int:
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


def _shift_right(words: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's shift of signed words copies the sign bit, so it is masked away."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _mix(words: Tensor) -> Tensor:
    words = (words ^ _shift_right(words, 30)) * _signed(_MIX_1)
    words = (words ^ _shift_right(words, 27)) * _signed(_MIX_2)
    return words ^ _shift_right(words, 31)


def _word(counter: Counter, device: torch.device) -> Tensor:
    if isinstance(counter, Tensor):
        return counter.to(device=device, dtype=torch.int64)
    if isinstance(counter, str):
        counter = int.from_bytes(hashlib.sha256(counter.encode()).digest()[:8], "little")
    return torch.tensor(_signed(counter), dtype=torch.int64, device=device)


def hash64(*counters: Counter) -> Tensor:
    """Mix counters (ints, strings, int64 tensors; tensors broadcast) into int64 words of 64 random bits."""
    device = next((c.device for c in counters if isinstance(c, Tensor)), torch.device("cpu"))
    state = torch.zeros((), dtype=torch.int64, device=device)
    for counter in counters:
        state = _mix((state ^ _mix(_word(counter, device) + _signed(_GAMMA))) + _signed(_GAMMA))
    return state


def uniform(*counters: Counter) -> Tensor:
    """Float64 draws, uniform on [0, 1): the upper 53 bits of `hash64`."""
    return _shift_right(hash64(*counters), 11).to(torch.float64) * 2.0**-53


def normal(*counters: Counter) -> Tensor:
    """Float64 draws from the standard normal distribution, by the Box-Muller transform of two uniforms."""
    radius = square_root(-2.0 * torch.log1p(-uniform(*counters, "radius")))
    return radius * torch.cos(2.0 * torch.pi * uniform(*counters, "angle"))


def permutation(size: int, *counters: Counter) -> Tensor:
    """A permutation of 0..size-1, int64 [size]: positions sorted by their hash."""
    return torch.argsort(hash64(*counters, torch.arange(size)), stable=True)
