"""Schedules: pure functions of the step (0 .. `steps` - 1), so that a resumed run needs no schedule state.

`linear` and `cosine` reach the end value at step `steps`, so never use it; `linear_closed` at `steps` - 1.
"""

import math
from collections.abc import Callable

from polygrain.provenance.errors import UserError, nearest


def linear(start: float, end: float, step: int, steps: int) -> float:
    """Straight line with `start` at step 0 and `end` at step `steps` and later."""
    if step >= steps:
        return end
    return start + (end - start) * step / steps


def linear_closed(start: float, end: float, step: int, steps: int) -> float:
    """Straight line from `start` at step 0 to `end` at step `steps` - 1 and later; `steps` 0 is `end` (Mugs, 4.1)."""
    if step >= steps or (step == steps - 1 and steps > 1):
        return end
    return start + (end - start) * step / max(steps - 1, 1)


def cosine(start: float, end: float, step: int, steps: int) -> float:
    """Half a cosine wave with `start` at step 0 and `end` at step `steps` and later."""
    if step >= steps:
        return end
    return end + (start - end) * (1.0 + math.cos(math.pi * step / steps)) / 2.0


def _constant(start: float, base: float, final: float, warmup: int, step: int, steps: int) -> float:
    """Warm-up `start + (base - start) t / warmup`; then base, first at t = warmup. `final` is not used."""
    return linear(start, base, step, warmup)


def _linear(start: float, base: float, final: float, warmup: int, step: int, steps: int) -> float:
    """Warm-up as in `constant`; then a straight line from base at t = warmup towards final at t = steps."""
    if step < warmup:
        return linear(start, base, step, warmup)
    return linear(base, final, step - warmup, steps - warmup)


def _cosine(start: float, base: float, final: float, warmup: int, step: int, steps: int) -> float:
    """WCL: warm-up as in `constant`; then half a cosine, base at t = warmup, towards final at t = steps (not used)."""
    if step < warmup:
        return linear(start, base, step, warmup)
    return cosine(base, final, step - warmup, steps - warmup)


def _cosine_closed_warmup(start: float, base: float, final: float, warmup: int, step: int, steps: int) -> float:
    """MGC, Mugs, SMoG: warm-up `start + (base - start) t / (warmup - 1)`; then from t = warmup on as `cosine`."""
    if step < warmup:
        return linear_closed(start, base, step, warmup)
    return cosine(base, final, step - warmup, steps - warmup)


def _cosine_to_final(start: float, base: float, final: float, warmup: int, step: int, steps: int) -> float:
    """MNCL: warm-up as in `cosine_closed_warmup`, at least 2 steps; then half a cosine that ends with `final`."""
    warmup = max(warmup, 2)
    if step < warmup:
        return linear_closed(start, base, step, warmup)
    return cosine(base, final, step + 1 - warmup, steps - warmup)


Law = Callable[[float, float, float, int, int, int], float]

LEARNING_RATES: dict[str, Law] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_closed_warmup": _cosine_closed_warmup,
    "cosine_to_final": _cosine_to_final,
}


def learning_rate(
    name: str, *, base: float, final: float, warmup: int, step: int, steps: int, start: float = 0.0
) -> float:
    """Compute the learning rate of one optimiser step under schedule `name`, a key of `LEARNING_RATES`.

    base: highest rate, at the end of the warm-up. final: rate at the end of the run (`constant` ignores it). warmup:
    its steps, 0 for none. start: rate at its step 0. step: steps done. steps: of the run. Raises UserError for an
    unknown schedule or a warm-up longer than the run, ValueError for a step outside the run.
    """
    if name not in LEARNING_RATES:
        raise UserError(f"optimizer.schedule.name: no schedule {name!r}{nearest(name, LEARNING_RATES)}")
    if not 0 <= warmup <= steps:
        raise UserError(f"optimizer.schedule.warmup: {warmup} steps do not fit a run of {steps}; shorten it")
    if not 0 <= step < steps:
        raise ValueError(f"step {step} is outside 0..{steps - 1}")
    return LEARNING_RATES[name](start, base, final, warmup, step, steps)
