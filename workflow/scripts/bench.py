"""What a training step costs and on what it is spent, method by method, and what a job costs to start.

python workflow/scripts/bench.py [RUN ...] [--steps N]                             shares of a step
python workflow/scripts/bench.py [RUN ...] --determinism [--steps N] [--rounds N]  what the same bits cost
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from bench_meter import Meter, backward_share, metered, training
from common import INSTRUCTION_SET, check_data, environment, last_line, positive, spread, start
from torch.utils.benchmark import Timer
from tqdm import tqdm

from polygrain.config.compose import choices
from polygrain.config.project import Project
from polygrain.config.stages import stage_of, stages_behind
from polygrain.provenance.errors import UserError
from polygrain.provenance.pins import pin_process, pin_torch
from polygrain.train.run import Training

PARTS = {
    "views": "views",
    "encoder": "encoder, forward and backward of every copy",
    "heads": "heads and loss products, forward and backward",
    "optimiser": "optimiser",
    "rest": "overhead outside network and loss",
}
TARGET = 0.15  # the overhead should stay below this share of a step, at cpu scale
COUNTED, PROFILED = 2, 3  # of the steps that warm up
WARM_UP = COUNTED + PROFILED
ALL_PINS = "all pins"
# pins that are left out, and whether kernels are torch's deterministic ones
SIDES: dict[str, tuple[Sequence[str], str]] = {
    ALL_PINS: ((), "deterministic"),
    "free instruction set": (INSTRUCTION_SET, "deterministic"),
    "free MKL branch": (("MKL_CBWR",), "deterministic"),
    "default kernels": ((), "default"),
}
HOOK_STEPS = 2000  # start_epoch and before_step are repeated for so many steps of a run at most


class Cost(NamedTuple):
    """Seconds of a mean step by component; encoder passes per image of a step, and those before the first one.

    A component is a key of PARTS, or one of the rest's, named after it: `rest: before_step`.
    """

    components: pd.Series
    passes: float
    start_passes: float

    def parts(self) -> pd.Series:
        """Seconds by key of PARTS; all together they are the step."""
        return self.components.groupby(lambda name: name.split(":")[0]).sum().reindex(list(PARTS), fill_value=0.0)


def checked(project: Project, run: str, steps: int) -> Mapping[str, Any]:
    """The configuration of a run's training. Raises UserError without data, or with fewer steps than are asked for."""
    stage = stage_of(project, "pretrain", run)
    check_data(project, [stage])
    config = stage.config
    if config["steps"] < steps + WARM_UP:
        raise UserError(f"{run}: has only {config['steps']} steps, {WARM_UP} to warm up; ask for fewer with --steps")
    return config


def measure(config: Mapping[str, Any], steps: int) -> Cost:
    """Take `steps` steps after some to warm up, then the hooks alone of as many steps as the run has.

    So work that is done every few epochs counts by its share of the run, however few steps are timed.
    """
    run = training(config, Path("data", config["dataset"]))
    meter = run.watch = Meter(torch.device(config["pretrain"]["device"]))
    view = torch.zeros(2, run.data.channels, config["input_size"], config["input_size"], device=run.device)
    with metered(run.method, view, meter):
        for _ in range(COUNTED):
            run.take_step()
        passes, meter.counting = meter.passes["steps"] / COUNTED, False
        share, once = backward_share(run.take_step, PROFILED), meter.of("once")
        meter.seconds.clear()
        with meter.phase("rest: loop"):
            for _ in range(steps):
                run.take_step()
        meter.passes["hooks"] = 0
        hooked = min(config["steps"], max(HOOK_STEPS, WARM_UP + steps)) - WARM_UP
        for run.step in range(WARM_UP + steps, WARM_UP + hooked):
            _call_hooks(run)
    books = ((meter.of("steps"), steps), (meter.of("hooks"), hooked), (once, config["steps"]))
    shared = pd.concat([pd.Series(seconds, dtype=float) / times for seconds, times in books]).groupby(level=0).sum()
    shared["heads"] = shared.pop("forward") + (1 - share) * shared["backward"]
    shared["encoder"] += share * shared.pop("backward")
    images = run.data.batch_size
    passes = (passes + meter.passes["hooks"] / max(1, hooked - steps)) / images
    return Cost(shared, passes, meter.passes["once"] / (run.data.steps_per_epoch * images))


def _call_hooks(run: Training) -> None:
    """What opens a step, without the step; the meter books it."""
    if run.clock.step_in_epoch == 0 and hasattr(run.method, "start_epoch"):
        run.method.start_epoch(run.clock, run.data)
    if hasattr(run.method, "before_step"):
        run.method.before_step(run.clock)


def describe(run: str, config: Mapping[str, Any], cost: Cost, steps: int) -> str:
    """A run's cost in lines."""
    images, declared = config["pretrain"]["batch"], config["method"]
    counted = f"{declared['encoder_passes']:g} declared, {cost.passes:.4g} counted"
    if declared["start_passes"] or cost.start_passes:
        counted += f"; before the first step {declared['start_passes']:g} declared, {cost.start_passes:.4g} counted"
    parts, step = cost.parts(), cost.components.sum()
    rate = f"{step * 1e3:.1f} ms a step, {images / step:.0f} images/s"
    lines = [f"{run}: {rate} ({steps} steps of {images} images)", f"  encoder passes of an image: {counted}"]
    for part, meaning in PARTS.items():
        lines.append(f"  {meaning:<52}{parts[part] * 1e3:>9.2f} ms {parts[part] / step:>7.1%}")
        inner = cost.components[cost.components.index.str.startswith(f"{part}:")].sort_values(ascending=False)
        lines += [f"    {str(name).split(': ')[1]:<50}{value * 1e3:>9.2f} ms" for name, value in inner.items()]
    return "\n".join(lines)


def overview(costs: Mapping[str, Cost]) -> str:
    """One line per run."""
    parts = pd.DataFrame({run: cost.parts() for run, cost in costs.items()}).T
    table = parts.div(parts.sum(axis=1), axis=0).rename(columns={"rest": "overhead"}).map("{:.1%}".format)
    table.insert(0, "ms a step", (parts.sum(axis=1) * 1e3).map("{:.1f}".format))
    return f"shares of a step (overhead: under {TARGET:.0%} is the aim)\n{table.to_string()}"


def start_up(project: Project, repeats: int = 5) -> None:
    """Print the seconds until a job's first line of work, by the modules that its stage names, as whole processes."""
    stages = stages_behind(project, ["reports/table1.pdf"])
    kinds: dict[str, tuple[str, ...]] = {"show, plan (configuration only)": ("polygrain.cli.describe",)}
    kinds |= {stage.task if stage.verb == "evaluate" else stage.verb: stage.entries for stage in stages}
    print(f"start-up, median of {repeats} processes:")
    for name, modules in kinds.items():
        start_one = partial(subprocess.run, [sys.executable, "-c", f"import {', '.join(modules)}"], check=True)
        seconds = timeit.repeat(start_one, number=1, repeat=repeats)
        print(f"  {name:<34}{statistics.median(seconds):.2f} s")


def compare(project: Project, runs: Sequence[str], steps: int, rounds: int) -> None:
    """Print for each run how many times as long a step takes with all pins.

    The settings act while libraries load, so every measurement is a process of its own; those of a round take turns,
    and a ratio compares two of the same round. Seconds are CPU time, which other work disturbs less.
    """
    for run in runs:
        checked(project, run, steps)
    print(f"CPU time of a step with {ALL_PINS}, and over that of one with ...: median (quartiles) of {rounds} rounds")
    print(f"{'':<46}{'a step':>10}" + "".join(f"{name:>26}" for name in SIDES if name != ALL_PINS))
    with tqdm(total=len(runs) * rounds, desc="determinism", unit="round", leave=False) as bar:
        for run in runs:
            found = []
            for number in range(rounds):
                found.append({name: seconds_of(project, name, run, steps) for name in in_turn(list(SIDES), number)})
                bar.update()
            tqdm.write(line(run, pd.DataFrame(found)))


def in_turn(names: Sequence[str], number: int) -> list[str]:
    """The order of a round: every side comes first, and every other round runs backwards, so that drifts cancel."""
    turned = [*names[number % len(names) :], *names[: number % len(names)]]
    return turned[::-1] if number % 2 else turned


def seconds_of(project: Project, side: str, run: str, steps: int) -> float:
    """CPU seconds of a step in a new process."""
    without, kernels = SIDES[side]
    code, variables = f"import bench; bench.measured({run!r}, {steps}, {kernels!r})", environment(project, without)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=project.root, env=variables, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise UserError(f"{run}: a measured process failed: {last_line(done.stderr)}")
    return float(done.stdout)


def line(run: str, found: pd.DataFrame) -> str:
    """One run's ratios, from the seconds of each side by round."""
    ratios = "".join(f"{spread(found[ALL_PINS] / found[name], 2):>26}" for name in SIDES if name != ALL_PINS)
    return f"{run:<46}{found[ALL_PINS].median() * 1e3:>7.0f} ms{ratios}"


def measured(run: str, steps: int, kernels: str) -> None:
    """The new process: print the CPU seconds of a step. Nothing is pinned here but torch."""
    pin_torch()
    torch.use_deterministic_algorithms(kernels == "deterministic")
    config = stage_of(Project.here(), "pretrain", run).config
    one = training(config, Path("data", config["dataset"]))
    for _ in range(WARM_UP):
        one.take_step()
    print(Timer("one.take_step()", globals={"one": one}, timer=time.process_time).timeit(steps).mean)


def main(project: Project, options: argparse.Namespace) -> int:
    """Measure what the command line asks for: where a mean step's time goes and start-up times, or what bits cost."""
    every = (f"runs/cpu/fashion-mnist/{method}/base/seed0" for method in choices(project.params, "method"))
    runs = options.runs or [run for run in every if stage_of(project, "pretrain", run).config["steps"]]
    if options.determinism:
        compare(project, runs, options.steps, options.rounds)
        return 0
    os.environ["KINETO_LOG_LEVEL"] = "6"  # the profiler would report on GPUs that are not there
    pin_torch()
    costs = {}
    for run in runs:
        config = checked(project, run, options.steps)
        costs[run] = measure(config, options.steps)
        print(describe(run, config, costs[run], options.steps), flush=True)
    print(overview(costs))
    start_up(project)
    return 0


if __name__ == "__main__":
    pin_process(sys.argv)
    arguments = argparse.ArgumentParser(prog="bench.py", description="What a training step costs, and on what.")
    arguments.add_argument("runs", nargs="*", help="default: every method at cpu scale")
    arguments.add_argument("--steps", type=positive, default=60)
    arguments.add_argument("--determinism", action="store_true", help="instead: what the same bits cost")
    arguments.add_argument("--rounds", type=positive, default=5, help="of --determinism")
    start(arguments, main)
