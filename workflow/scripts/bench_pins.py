"""What the same bits cost: a step with all pins against steps that lack one kind of them, method by method.

The settings act while libraries load, so every measurement is a process of its own; those of a round take turns, and a
ratio compares two of the same round. Seconds are CPU time of the single thread, which other work disturbs less.
"""

import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from time import process_time

from bench import WARM_UP, checked, training
from common import INSTRUCTION_SET, environment, last_line, spread, stages_of_run
from tqdm import tqdm

from polygrain.config.project import Project
from polygrain.provenance.errors import UserError
from polygrain.provenance.pins import pin_torch

ALL_PINS = "all pins"
# pins that are left out, and whether kernels are torch's deterministic ones
SIDES: dict[str, tuple[Sequence[str], str]] = {
    ALL_PINS: ((), "deterministic"),
    "free instruction set": (INSTRUCTION_SET, "deterministic"),
    "free MKL branch": (("MKL_CBWR",), "deterministic"),
    "default kernels": ((), "default"),
}


def compare(project: Project, runs: Sequence[str], steps: int, rounds: int) -> None:
    """Print for each run how many times as long a step takes with all pins.

    Raises UserError for a run without data or with too few steps, and when a process fails.
    """
    if rounds < 2:
        raise UserError(f"{rounds} round: ask for at least 2 with --rounds, quartiles need them")
    for run in runs:
        checked(project, run, steps)
    print(f"CPU time of a step with {ALL_PINS}, and over that of one with ...: median (quartiles) of {rounds} rounds")
    print(f"{'':<46}{'a step':>10}" + "".join(f"{name:>26}" for name in SIDES if name != ALL_PINS))
    with tqdm(total=len(runs) * rounds * len(SIDES), desc="determinism", unit="process", leave=False) as bar:
        for run in runs:
            found: dict[str, list[float]] = {name: [] for name in SIDES}
            for number in range(rounds):
                for name in in_turn(list(SIDES), number):
                    found[name].append(measure(project, name, run, steps))
                    bar.update()
            tqdm.write(line(run, found))


def in_turn(names: Sequence[str], number: int) -> list[str]:
    """The order of a round: every side comes first, and every other round runs backwards, so that drifts cancel."""
    turned = [*names[number % len(names) :], *names[: number % len(names)]]
    return turned[::-1] if number % 2 else turned


def measure(project: Project, side: str, run: str, steps: int) -> float:
    """CPU seconds of a step in a new process."""
    without, kernels = SIDES[side]
    command, variables = [sys.executable, __file__, run, str(steps), kernels], environment(project.source, without)
    done = subprocess.run(command, cwd=project.root, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{run}: a measured process failed: {last_line(done.stderr)}")
    return float(done.stdout)


def line(run: str, found: Mapping[str, Sequence[float]]) -> str:
    """One run's ratios."""
    text = f"{run:<46}{statistics.median(found[ALL_PINS]) * 1e3:>7.0f} ms"
    for name in (name for name in found if name != ALL_PINS):
        text += f"{spread([pinned / free for pinned, free in zip(found[ALL_PINS], found[name], strict=True)], 2):>26}"
    return text


def measured(run: str, steps: int, kernels: str) -> None:
    """The new process: print the CPU seconds of a step. Nothing is pinned here but torch."""
    import torch
    from torch.utils.benchmark import Timer

    pin_torch()
    torch.use_deterministic_algorithms(kernels == "deterministic")
    one = training(stages_of_run(Project.here(), run)[0].config)
    for _ in range(WARM_UP):
        one.take_step()
    print(Timer("one.take_step()", globals={"one": one}, timer=process_time).timeit(steps).mean)


if __name__ == "__main__":
    measured(sys.argv[1], int(sys.argv[2]), sys.argv[3])
