"""The numpy draws against their twins in torch."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from polygrain.nn import random, random_numpy

COUNTERS = [
    (),
    (0,),
    (7, "purpose", 3),
    (-1, "", 2**63 - 1),
    (2**64 - 1, "crop"),
    (5, "rows", np.arange(-3, 40)),
    (5, np.arange(6)[:, None], "cells", np.arange(7)),
]


def _torch(counters):
    return [torch.from_numpy(one) if isinstance(one, np.ndarray) else one for one in counters]


@pytest.mark.parametrize("counters", COUNTERS)
def test_equal_counters_give_the_bits_of_torch(counters) -> None:
    expected = random.hash64(*_torch(counters)).numpy()
    np.testing.assert_array_equal(random_numpy.hash64(*counters).view(np.int64), expected)
    np.testing.assert_array_equal(random_numpy.uniform(*counters), random.uniform(*_torch(counters)).numpy())
    expected = random.normal(*_torch(counters)).numpy()
    np.testing.assert_allclose(random_numpy.normal(*counters), expected, rtol=1e-12, atol=1e-15)


def test_permutations_are_those_of_torch() -> None:
    for size in (1, 2, 257):
        expected = random.permutation(size, 3, "order").numpy()
        np.testing.assert_array_equal(random_numpy.permutation(size, 3, "order"), expected)


def test_a_first_draw_is_what_it_was() -> None:
    assert random_numpy.hash64(0, "golden", 1).item() == random.hash64(0, "golden", 1).item() % 2**64
    assert 0.4 < random_numpy.uniform(1, np.arange(10_000)).mean() < 0.6
    assert random_numpy.normal(1, np.arange(10_000)).std() == pytest.approx(1, abs=0.03)


def test_it_starts_without_torch() -> None:
    code = "import sys, polygrain.nn.random_numpy; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
