"""What the same bits cost: a step with all pins against steps that lack one kind of them, method by method.

The settings act while libraries load, so every measurement is a process of its own; those of a round take turns, and a
ratio compares two of the same round. Seconds are CPU time of the single thread, which other work disturbs less.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from polygrain.cli.bench.run import check_run, every_method
from polygrain.config.project import Project
from polygrain.provenance.errors import UserError
from polygrain.provenance.pins import PINS

INSTRUCTION_SET = (
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "NPY_DISABLE_CPU_FEATURES",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
)
ALL_PINS = "all pins"


@dataclass(frozen=True)
class Side:
    """A way to take the steps: pins that are left out, and whether kernels are torch's deterministic ones."""

    without: tuple[str, ...] = ()
    kernels: str = "deterministic"

    def variables(self, source: str) -> dict[str, str]:
        """The environment of its processes."""
        pins = {name: value for name, value in PINS.items() if name not in self.without}
        others = {name: value for name, value in os.environ.items() if name not in PINS}
        return {**others, **pins, "PYTHONPATH": source}


SIDES = {
    ALL_PINS: Side(),
    "free instruction set": Side(INSTRUCTION_SET),
    "free MKL branch": Side(("MKL_CBWR",)),
    "default kernels": Side(kernels="default"),
}


def determinism(project: Project, runs: Sequence[str], *, steps: int, rounds: int) -> None:
    """Print for each run (default: every method at cpu scale) how many times as long a step takes with all pins.

    Raises UserError for a run without data or with too few steps, and when a process fails.
    """
    if rounds < 2:
        raise UserError(f"{rounds} round: ask for at least 2 with --rounds, quartiles need them")
    chosen = list(runs or every_method(project))
    for run in chosen:
        check_run(project, run, steps)
    print(f"CPU time of a step with {ALL_PINS}, and over that of one with ...: median (quartiles) of {rounds} rounds")
    print(f"{'':<46}{'a step':>10}" + "".join(f"{name:>26}" for name in SIDES if name != ALL_PINS))
    with tqdm(total=len(chosen) * rounds * len(SIDES), desc="determinism", unit="process", leave=False) as bar:
        for run in chosen:
            found: dict[str, list[float]] = {name: [] for name in SIDES}
            for number in range(rounds):
                for name in in_turn(list(SIDES), number):
                    found[name].append(measure(project, SIDES[name], run, steps))
                    bar.update()
            tqdm.write(line(run, found))


def in_turn(names: Sequence[str], number: int) -> list[str]:
    """The order of a round: every side comes first, and every other round runs backwards, so that drifts cancel."""
    turned = [*names[number % len(names) :], *names[: number % len(names)]]
    return turned[::-1] if number % 2 else turned


def measure(project: Project, side: Side, run: str, steps: int) -> float:
    """Median CPU seconds of a step in a new process."""
    command = [sys.executable, "-m", "polygrain.cli.bench.side", run, str(steps), side.kernels]
    variables = side.variables(str(project.source))
    done = subprocess.run(command, cwd=project.root, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{run}: a measured process failed: {done.stderr.strip().rpartition(chr(10))[2]}")
    seconds: list[float] = json.loads(done.stdout)
    return statistics.median(seconds)


def line(run: str, found: Mapping[str, Sequence[float]]) -> str:
    """One run's ratios."""
    text = f"{run:<46}{statistics.median(found[ALL_PINS]) * 1e3:>7.0f} ms"
    for name in found:
        if name != ALL_PINS:
            ratios = [pinned / free for pinned, free in zip(found[ALL_PINS], found[name], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
            text += f"{f'{middle:.2f} ({low:.2f} to {high:.2f})':>26}"
    return text
