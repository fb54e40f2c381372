"""The counter-based hash: golden bits, an independent scalar derivation, laws of the draws."""

import hashlib
import math

import pytest
import torch

from polygrain.nn.random import hash64, normal, permutation, uniform

WORD = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15


def splitmix_finaliser(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def scalar_hash(*counters: int | str) -> int:
    """The same mixing with Python's own integers."""
    state = 0
    for counter in counters:
        if isinstance(counter, str):
            counter = int.from_bytes(hashlib.sha256(counter.encode()).digest()[:8], "little")
        inner = splitmix_finaliser((counter + GAMMA) & WORD)
        state = splitmix_finaliser(((state ^ inner) + GAMMA) & WORD)
    return state


def unsigned(word: torch.Tensor) -> int:
    return int(word) & WORD


def test_finaliser_is_splitmix64() -> None:
    # First outputs of the reference SplitMix64 generator with seed 0.
    stream = [splitmix_finaliser((GAMMA * n) & WORD) for n in (1, 2, 3)]
    assert stream == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize(
    ("counters", "bits"),
    [
        ((0,), 0xA706DD2F4D197E6F),
        ((0, 0), 0xA7F72697A2731486),
        ((1, "order", 2), 0x8AA8456B6309C365),
        ((-1, WORD >> 1), 0x3F76A2E0EECCD567),
        (("crop", 7, 12345, 1), 0x57E632E9EFE60A69),
    ],
)
def test_golden_bits(counters: tuple[int | str, ...], bits: int) -> None:
    assert unsigned(hash64(*counters)) == bits


@pytest.mark.parametrize("shape", [(5,), (2, 3), (1, 2, 2), ()])
def test_vectorised_equals_scalar(shape: tuple[int, ...]) -> None:
    index = torch.randint(-(1 << 62), 1 << 62, shape, generator=torch.Generator().manual_seed(3))
    words = hash64(11, "purpose", index, 4)
    assert words.shape == index.shape
    expected = [scalar_hash(11, "purpose", int(i), 4) for i in index.flatten()]
    assert [unsigned(w) for w in words.flatten()] == expected


def test_tensors_broadcast_and_do_not_see_each_other() -> None:
    rows, columns = torch.arange(3)[:, None], torch.arange(4)[None]
    grid = hash64(0, rows, columns)
    assert grid.shape == (3, 4)
    assert grid[2, 3] == hash64(0, 2, 3)
    assert torch.equal(hash64(0, torch.arange(100))[40:50], hash64(0, torch.arange(40, 50)))
    assert torch.equal(hash64(0, torch.arange(9, dtype=torch.int32)), hash64(0, torch.arange(9)))


def test_every_counter_and_its_place_matters() -> None:
    base = unsigned(hash64(1, 2, 3))
    assert len({base, *(unsigned(hash64(*c)) for c in [(2, 1, 3), (1, 2), (1, 2, 4), (1, 2, 3, 0), (0, 2, 3)])}) == 6


def test_each_input_bit_flips_half_of_the_output_bits() -> None:
    index = torch.arange(2000)
    for bit in (0, 13, 31, 47, 62):
        flipped = hash64(5, index) ^ hash64(5, index ^ (1 << bit))
        ones = sum(unsigned(w).bit_count() for w in flipped) / (64 * len(index))
        assert abs(ones - 0.5) < 0.006  # 4 standard errors of 128,000 fair bits


def test_uniform_law() -> None:
    draws = uniform(0, "law", torch.arange(100_000))
    assert draws.dtype == torch.float64
    assert float(draws.min()) >= 0.0
    assert float(draws.max()) < 1.0
    assert abs(float(draws.mean()) - 0.5) < 4 / math.sqrt(12 * 100_000)
    assert abs(float(draws.var()) - 1 / 12) < 0.001
    counts = torch.histc(draws.float(), bins=50, min=0, max=1)
    assert float(((counts - 2000) ** 2 / 2000).sum()) < 85.4  # 0.1 % point of chi-square with 49 degrees
    pairs = torch.corrcoef(torch.stack([draws[:-1], draws[1:]]))[0, 1]
    assert abs(float(pairs)) < 4 / math.sqrt(100_000)


def test_uniform_is_the_upper_53_bits() -> None:
    assert float(uniform(1, "order", 2)) == (scalar_hash(1, "order", 2) >> 11) * 2.0**-53


def test_normal_law() -> None:
    draws = normal(0, "law", torch.arange(100_000))
    assert torch.isfinite(draws).all()
    assert abs(float(draws.mean())) < 4 / math.sqrt(100_000)
    assert abs(float(draws.var()) - 1) < 4 * math.sqrt(2 / 100_000)
    assert abs(float((draws**4).mean()) - 3) < 0.13
    for quantile, share in ((-1.0, 0.158655), (0.5, 0.691462), (2.0, 0.977250)):
        assert abs(float((draws < quantile).double().mean()) - share) < 0.006


@pytest.mark.parametrize("size", [0, 1, 2, 97, 1000])
def test_permutation_is_one(size: int) -> None:
    order = permutation(size, 4, "order", 1)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(size))


def test_permutation_golden_and_distinct_over_epochs() -> None:
    assert permutation(8, 0, "order", 0).tolist() == [0, 6, 7, 4, 1, 2, 3, 5]
    assert not torch.equal(permutation(100, 0, "order", 0), permutation(100, 0, "order", 1))
    first = torch.tensor([int(permutation(5, seed)[0]) for seed in range(2000)])
    assert float((first.bincount(minlength=5) / 2000 - 0.2).abs().max()) < 0.036  # 4 standard errors


def test_a_draw_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    normal(0, torch.arange(10))
    permutation(10, 1)
    assert torch.equal(before, torch.random.get_rng_state())
