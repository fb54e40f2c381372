"""The clock counts as documented."""

import dataclasses

import pytest

from polygrain.nn.clock import Clock


@pytest.mark.parametrize(
    ("step", "epoch", "in_epoch", "fraction"),
    [(0, 0, 0, 0.0), (6, 0, 6, 0.3), (7, 1, 0, 0.35), (15, 2, 1, 0.75), (19, 2, 5, 0.95)],
)
def test_position(step: int, epoch: int, in_epoch: int, fraction: float) -> None:
    clock = Clock(seed=3, step=step, steps=20, steps_per_epoch=7)
    assert (clock.epoch, clock.step_in_epoch, clock.fraction) == (epoch, in_epoch, fraction)


def test_a_run_without_steps_has_a_clock() -> None:
    assert Clock(seed=0, step=0, steps=0, steps_per_epoch=5).fraction == 0.0


def test_nobody_moves_the_clock() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Clock(0, 0, 1, 1).step = 1  # type: ignore[misc]
