"""The draws of `polygrain.nn.random` in numpy, for protocols that start without torch: equal counters, equal bits.

`hash64`, `uniform` and `permutation` have the bits of their twins in torch. `normal` follows the same formula, but its
logarithm and cosine are numpy's, so it may differ from its twin in the last bits.
"""

import hashlib

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Counter = int | str | Integers

_ALL = (1 << 64) - 1
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(words: Words) -> Words:
    words = (words ^ (words >> np.uint64(30))) * _MIX_1
    words = (words ^ (words >> np.uint64(27))) * _MIX_2
    return words ^ (words >> np.uint64(31))


def _word(counter: Counter) -> Words:
    if isinstance(counter, np.ndarray):
        return counter.astype(np.int64).view(np.uint64)
    if isinstance(counter, str):
        counter = int.from_bytes(hashlib.sha256(counter.encode()).digest()[:8], "little")
    return np.array(counter & _ALL, dtype=np.uint64)


def hash64(*counters: Counter) -> Words:
    """Mix counters (ints, strings, int64 arrays; arrays broadcast) into words of 64 random bits."""
    state = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant; numpy warns of it for single numbers
        for counter in counters:
            state = _mix((state ^ _mix(_word(counter) + _GAMMA)) + _GAMMA)
    return np.asarray(state)


def uniform(*counters: Counter) -> Doubles:
    """Float64 draws, uniform on [0, 1): the upper 53 bits of `hash64`."""
    return np.asarray((hash64(*counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def normal(*counters: Counter) -> Doubles:
    """Float64 draws from the standard normal distribution, by the Box-Muller transform of two uniforms."""
    radius = np.sqrt(-2.0 * np.log1p(-uniform(*counters, "radius")))
    return np.asarray(radius * np.cos(2.0 * np.pi * uniform(*counters, "angle")))


def permutation(size: int, *counters: Counter) -> Integers:
    """A permutation of 0..size-1, int64 [size]: positions sorted by their hash, as a signed number as torch does it."""
    return np.argsort(hash64(*counters, np.arange(size)).view(np.int64), kind="stable").astype(np.int64)
