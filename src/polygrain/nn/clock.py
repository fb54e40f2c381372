"""The position of a run in time: all that a method knows of it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """One optimiser step. All schedules are functions of it, so a resumed run needs no other state."""

    seed: int
    step: int
    """Optimiser steps done before this one, from 0."""
    steps: int
    """Optimiser steps of the whole run."""
    steps_per_epoch: int

    @property
    def epoch(self) -> int:
        """Passes over the pre-training set completed before this step."""
        return self.step // self.steps_per_epoch

    @property
    def step_in_epoch(self) -> int:
        """Steps done in the current pass."""
        return self.step % self.steps_per_epoch

    @property
    def fraction(self) -> float:
        """Share of the run done before this step, in [0, 1)."""
        return self.step / max(self.steps, 1)
