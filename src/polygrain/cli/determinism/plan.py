"""Where a rebuild is killed: drawn once from a seed, before anything runs."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

START_SECONDS = 6.0  # about what a process needs before its first step

Place = Literal["start", "time", "step", "save", "publish", "output"]


@dataclass(frozen=True)
class Point:
    """One kill.

    `start`: after `value` seconds, or when the first step begins. `time`: `value` is a share of the stage's usual
    duration. `step`: `value` is a training step. `save`: while the first resume state behind step `value` is written.
    `publish`: while the checkpoint is written and just after. `output`: when the stage's first final name appears.
    `delay` seconds pass between the event and the kill.
    """

    place: Place
    value: float = 0.0
    delay: float = 0.0


def shares(total: int, runs: int) -> list[int]:
    """`total` kills spread over the runs as evenly as possible."""
    return [total // runs + (place < total % runs) for place in range(runs)]


def draw(kills: int, steps: int, seed: int, run: str) -> Mapping[str, list[Point]]:
    """The kills of one run by stage, in the order in which they happen.

    A run that trains is mostly killed there, uniformly over its steps; a tenth each while it starts and while it saves
    its state, a tenth each in features and evaluation, one kill while it publishes. One that takes no step is killed
    evenly in its three stages.
    """
    generator = random.Random(f"{seed} {run}")
    if steps == 0:
        later = kills // 3
        points = [_late(generator) for _ in range(kills - 2 * later)]
        return {"pretrain": points, **{name: _in_stage(generator, later) for name in ("features", "evaluate")}}
    tenth, last = kills // 10, int(kills > 4)
    training = [
        *(
            Point("step", generator.uniform(0, steps), generator.uniform(0, 0.3))
            for _ in range(kills - 4 * tenth - last)
        ),
        *(Point("save", generator.uniform(0, 0.9 * steps), generator.uniform(0, 0.1)) for _ in range(tenth)),
    ]
    training.sort(key=lambda point: point.value)
    for _ in range(tenth):
        training.insert(generator.randint(0, len(training)), Point("start", generator.uniform(0, START_SECONDS)))
    training += [Point("publish", delay=generator.uniform(0, 0.2)) for _ in range(last)]
    return {"pretrain": training, **{name: _in_stage(generator, tenth) for name in ("features", "evaluate")}}


def _in_stage(generator: random.Random, kills: int) -> list[Point]:
    """The last one when the first final name appears: a kill that comes too late ends the stage."""
    return [_late(generator) if number < kills - 1 else _output(generator) for number in range(kills)]


def _late(generator: random.Random) -> Point:
    return Point("time", generator.uniform(0, 1))


def _output(generator: random.Random) -> Point:
    return Point("output", delay=generator.uniform(0, 0.05))
