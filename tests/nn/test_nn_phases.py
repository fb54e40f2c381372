"""A stopwatch on a clock that only moves when it is told to: every second is booked once, where it belongs."""

import types
from contextlib import AbstractContextManager

import pytest
import torch
from fake_time import Time

from polygrain.nn import phases
from polygrain.nn.phases import Stopwatch, phase


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(phases, "time", clock)
    return clock


def stopwatch() -> Stopwatch:
    return Stopwatch(torch.device("cpu"))


def test_an_inner_phase_is_taken_out_of_the_outer_one(clock: Time) -> None:
    watch = stopwatch()
    clock.sleep(50)
    with watch.phase("forward"):
        clock.sleep(1)
        with phase("rest"):
            clock.sleep(2)
            with phase("deeper"):
                clock.sleep(4)
            clock.sleep(8)
        clock.sleep(16)
        with phase("rest"):
            clock.sleep(32)
    clock.sleep(50)
    with watch.phase("forward"):
        clock.sleep(64)
    assert watch.seconds == {"forward": 1 + 16 + 64, "rest": 2 + 8 + 32, "deeper": 4}


def test_outside_of_any_phase_of_a_stopwatch_nothing_is_booked(clock: Time) -> None:
    watch = stopwatch()
    with phase("rest"):
        clock.sleep(1)
    with watch.phase("forward"):
        pass
    with phase("rest"):
        clock.sleep(2)
    assert watch.seconds == {"forward": 0}


def test_a_body_that_fails_ends_its_phase(clock: Time) -> None:
    watch = stopwatch()

    def fail(booked: AbstractContextManager[None], seconds: float) -> None:
        with booked:
            clock.sleep(seconds)
            raise KeyError

    with watch.phase("forward"):
        with pytest.raises(KeyError):
            fail(phase("rest"), 1)
        clock.sleep(2)
    with pytest.raises(KeyError):
        fail(watch.phase("backward"), 4)
    with phase("rest"):
        clock.sleep(8)
    assert watch.seconds == {"forward": 2, "rest": 1, "backward": 4}


def test_a_phase_belongs_to_the_stopwatch_that_was_started_last(clock: Time) -> None:
    outer, inner = stopwatch(), stopwatch()
    with outer.phase("a"):
        clock.sleep(1)
        with inner.phase("b"), phase("rest"):
            clock.sleep(2)
        with phase("rest"):
            clock.sleep(4)
    assert inner.seconds == {"b": 0, "rest": 2}
    assert outer.seconds == {"a": 3, "rest": 4}, "the outer one's own phase goes on beside the inner one's"


def test_on_a_device_that_works_behind_the_callers_back_every_border_waits(
    clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels are launched in no time and done when somebody waits: they count for the phase that launched them."""
    queued: list[float] = []

    def synchronize() -> None:
        clock.sleep(sum(queued))
        queued.clear()

    monkeypatch.setattr(phases.torch, "cuda", types.SimpleNamespace(synchronize=synchronize))
    watch = Stopwatch(torch.device("cuda"))
    queued.append(1000)
    with watch.phase("forward"):
        queued.append(1)
        with phase("rest"):
            queued.append(2)
        queued.append(4)
    assert watch.seconds == {"forward": 5, "rest": 2}
    cpu = stopwatch()
    with cpu.phase("forward"):
        queued.append(8)
    assert cpu.seconds == {"forward": 0}
