"""Random whole numbers as pure functions of named counters; see `polygrain.nn.random`."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from polygrain.nn.random import Counter, hash64

Integers = npt.NDArray[np.int64]
_BITS = 31


class Draws:
    """A random word for each of some purposes, drawn together because one call of the hash costs 0.3 ms."""

    def __init__(self, words: Mapping[str, int]) -> None:
        self._words = words

    def below(self, limit: int, purpose: str) -> int:
        """A whole number from 0 to `limit` - 1; always the same one for a purpose and a limit."""
        return self._words[purpose] * limit >> _BITS

    def between(self, least: int, most: int, purpose: str) -> int:
        """A whole number from `least` to `most`, both included."""
        return least + self.below(most - least + 1, purpose)


def draws(count: int, purposes: Sequence[str], *key: Counter) -> list[Draws]:
    """`Draws` for the slots 0..count-1. A purpose is known to the hash by its place in `purposes`."""
    words = _words(*key, torch.arange(count)[:, None], torch.arange(len(purposes)))
    return [Draws(dict(zip(purposes, row, strict=True))) for row in words.tolist()]


def below(limit: int, *key: Counter) -> Integers:
    """Whole numbers from 0 to `limit` - 1, int64, in the shape that the tensors of `key` broadcast to.

    limit: below 2^31. The upper 31 bits of a hash times the limit, over 2^31.
    """
    return np.asarray(_words(*key) * limit >> _BITS)


def shuffled(size: int, *key: Counter) -> list[int]:
    """A permutation of 0..size-1."""
    order: list[int] = torch.argsort(hash64(*key, torch.arange(size)), stable=True).tolist()
    return order


def _words(*key: Counter) -> Integers:
    words: Integers = ((hash64(*key) >> (64 - _BITS)) & ((1 << _BITS) - 1)).numpy()
    return words
