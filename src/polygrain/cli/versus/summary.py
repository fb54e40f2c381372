"""Arithmetic of a comparison: per round, how many times as long one side took as the other, and its spread."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of one number over the rounds."""

    median: float
    low: float
    high: float

    def text(self, digits: int) -> str:
        """The median with the quartiles behind it."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
    """Median, first and third quartile, interpolated; a single value is all three."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def times_as_long(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """How many times as long as `ours` took `theirs`, round by round: above 1 where ours is the faster one."""
    return spread([slow / fast for fast, slow in zip(ours, theirs, strict=True)])


def per_step(phases: Mapping[str, float], steps: int, interval: int) -> dict[str, float]:
    """Seconds a step per phase of one round of `steps` steps; `reset` happened once and is shared by `interval`."""
    return {name: seconds / (interval if name == "reset" else steps) for name, seconds in phases.items()}


def shares(rounds: Sequence[Mapping[str, float]]) -> str:
    """Each phase's part of the whole over all rounds, in the order in which the phases came."""
    totals = {name: sum(phases[name] for phases in rounds) for name in rounds[0]}
    whole = sum(totals.values())
    return ", ".join(f"{name} {total / whole:.0%}" for name, total in totals.items())
