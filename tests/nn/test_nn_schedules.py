"""Schedules against the formulas and logged values of the papers' specifications."""

import math

import pytest

from polygrain.nn.schedules import LEARNING_RATES, cosine, learning_rate, linear, linear_closed
from polygrain.provenance.errors import UserError


def rates(name: str, steps: int, warmup: int, *, base: float, final: float = 0.0, start: float = 0.0) -> list[float]:
    return [
        learning_rate(name, base=base, final=final, warmup=warmup, step=t, steps=steps, start=start)
        for t in range(steps)
    ]


def test_linear_reaches_its_end_one_past_the_last_step() -> None:
    assert [linear(1.0, 0.0, t, 4) for t in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


def test_linear_closed_uses_both_ends() -> None:
    assert [linear_closed(0.0, 3.0, t, 4) for t in range(6)] == [0.0, 1.0, 2.0, 3.0, 3.0, 3.0]


def test_teacher_temperature_of_mugs() -> None:
    # 0.04 -> 0.07 over 30 epochs, end points included; no warm-up: the end; one epoch: the start in epoch 0 only.
    assert linear_closed(0.04, 0.07, 0, 30) == 0.04
    assert linear_closed(0.04, 0.07, 29, 30) == 0.07
    assert linear_closed(0.04, 0.07, 14, 30) == pytest.approx(0.04 + 0.03 * 14 / 29)
    assert linear_closed(0.04, 0.07, 0, 0) == 0.07
    assert [linear_closed(0.04, 0.07, e, 1) for e in (0, 1)] == [0.04, 0.07]


def test_cosine_starts_halves_and_never_ends() -> None:
    assert cosine(0.996, 1.0, 0, 100) == pytest.approx(0.996, abs=1e-15)
    assert cosine(0.996, 1.0, 50, 100) == pytest.approx(0.998)
    assert cosine(0.996, 1.0, 99, 100) < 1.0
    assert cosine(0.996, 1.0, 100, 100) == 1.0
    # Golden, end + (start - end) (1 + cos(pi i / T)) / 2: a quarter of the way of 0.04 -> 0.4.
    assert cosine(0.04, 0.4, 25, 100) == pytest.approx(0.09272077938642149, rel=1e-14)


def test_wcl_learning_rate() -> None:
    # base t / (10 T) while t < 10 T, then base (1 + cos(pi (t - 10 T) / ((E - 10) T))) / 2; T = 4, E = 100.
    lr = rates("cosine", 400, 40, base=4.8)
    assert lr[0] == 0.0
    assert lr[1] == pytest.approx(0.12)
    assert lr[39] == pytest.approx(4.68)
    assert lr[40] == 4.8
    assert sum(rate == 4.8 for rate in lr) == 1
    assert lr[220] == pytest.approx(2.4)
    assert lr[399] == pytest.approx(4.8 * (1 + math.cos(math.pi * 359 / 360)) / 2)
    assert lr[399] > 0.0


def test_mugs_learning_rate_is_the_logged_one() -> None:
    # The released ViT-S 100-epoch log: mean rate of the first epoch 7.99712e-5 (2,502 steps, peak 1.6e-3).
    mean = (
        math.fsum(
            learning_rate("cosine_closed_warmup", base=1.6e-3, final=1e-6, warmup=25020, step=t, steps=250200)
            for t in range(2502)
        )
        / 2502
    )
    assert float(f"{mean:.5e}") == 7.99712e-5


def test_smog_learning_rate() -> None:
    # start + (base - start) t / (W - 1), then final + (base - final) (1 + cos(pi (t - W) / (S - W))) / 2.
    lr = rates("cosine_closed_warmup", 100, 10, base=4.8, final=0.0048, start=0.01)
    assert lr[0] == 0.01
    assert lr[5] == pytest.approx(0.01 + 4.79 * 5 / 9)
    assert lr[9] == lr[10] == 4.8
    assert lr[55] == pytest.approx((4.8 + 0.0048) / 2)
    assert lr[99] > 0.0048
    assert rates("cosine_closed_warmup", 3, 1, base=1.0)[:2] == [0.0, 1.0]


def test_mncl_learning_rate() -> None:
    # With t = 1..T: 0.1 for t <= 2, then 0.05 (1 + cos(pi (t - 2) / (T - 2))); exactly 0 in the last step.
    lr = rates("cosine_to_final", 50, 0, base=0.1, start=0.1)
    assert lr == rates("cosine_to_final", 50, 2, base=0.1, start=0.1)
    expected = [0.1 if t <= 2 else 0.05 * (1 + math.cos(math.pi * (t - 2) / 48)) for t in range(1, 51)]
    assert lr == pytest.approx(expected, abs=1e-16)
    assert lr[0] == lr[1] == 0.1
    assert lr[-1] == 0.0


def test_constant_and_linear() -> None:
    assert rates("constant", 6, 4, base=1.0, final=9.0) == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates("linear", 6, 2, base=1.0, final=0.2, start=0.5) == pytest.approx([0.5, 0.75, 1.0, 0.8, 0.6, 0.4])


@pytest.mark.parametrize("name", sorted(LEARNING_RATES))
def test_edges(name: str) -> None:
    assert all(math.isfinite(rate) for warmup in range(6) for rate in rates(name, 5, warmup, base=1.0, start=0.1))
    if name != "cosine_to_final":
        assert rates(name, 5, 0, base=1.0)[0] == 1.0
    assert math.isfinite(rates(name, 1, 0, base=1.0)[0])


def test_bad_requests() -> None:
    good = {"base": 1.0, "final": 0.0, "warmup": 0, "step": 0, "steps": 4}
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        learning_rate("cosin", **good)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="do not fit"):
        learning_rate("cosine", **{**good, "warmup": 5})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="outside"):
        learning_rate("cosine", **{**good, "step": 4})  # type: ignore[arg-type]
