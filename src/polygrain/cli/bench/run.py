"""What a step of a run costs and on what it is spent, method by method; and the start-up time of the verbs."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polygrain.config.budget import steps as steps_of
from polygrain.config.compose import choices
from polygrain.config.project import Project
from polygrain.config.runs import Run
from polygrain.config.stages import Stage, configuration, stage_of
from polygrain.provenance.errors import UserError

if TYPE_CHECKING:
    from polygrain.train.run import Training

PARTS = {
    "views": "views",
    "encoder": "encoder, forward and backward of every copy",
    "heads": "heads and loss products, forward and backward",
    "optimiser": "optimiser",
    "rest": "the rest: neither network nor loss",
}
# a method's own work should stay below this share of its step, at cpu scale
TARGET = 0.15
WARM_UP = 5
# start_epoch and before_step are repeated for so many steps of a run at most
HOOK_STEPS = 2000


@dataclass(frozen=True)
class Cost:
    """Seconds of a mean step by component; encoder passes per image of a step, and those before the first one.

    A component is a key of PARTS, or one of the rest's, named after it: `rest: before_step`.
    """

    components: dict[str, float]
    passes: float
    start_passes: float

    @property
    def step(self) -> float:
        """Seconds of a mean step."""
        return sum(self.components.values())

    def share(self, part: str) -> float:
        """What part of a step goes to a key of PARTS."""
        return sum(value for name, value in self.components.items() if name.split(":")[0] == part) / self.step


def bench(project: Project, runs: Sequence[str], steps: int) -> None:
    """Print for each run (default: every method at cpu scale) where a mean step's time goes, then the start-up times.

    Raises UserError for a run without data, or with fewer steps than are asked for.
    """
    from polygrain.provenance.pins import pin_torch

    pin_torch()
    costs = {}
    for run in runs or list(every_method(project)):
        stage, data = check_run(project, run, steps)
        costs[run] = measure(stage.config, data, steps)
        print(describe(run, stage.config, costs[run], steps), flush=True)
    if len(costs) > 1:
        print(overview(costs))
    _start_up()


def check_run(project: Project, run: str, steps: int) -> tuple[Stage, Path]:
    """A run's training and its data. Raises UserError without data, or with fewer steps than are asked for."""
    stage = stage_of(project, "pretrain", run)
    data = Path("data", stage.config["dataset"])
    if not (data / "manifest.json").is_file():
        raise UserError(f"{data}: not there yet; build it with `snakemake --cores all {data}/manifest.json`")
    if steps < 1 or stage.config["steps"] < steps + WARM_UP:
        few = f"has only {stage.config['steps']} steps, {WARM_UP} of them to warm up"
        raise UserError(f"{run}: {few}; ask for at least 1, or for fewer, with --steps")
    return stage, data


def measure(config: dict[str, Any], data: Path, steps: int) -> Cost:
    """Take `steps` steps after some to warm up, then the hooks alone of as many steps as the run has.

    So work that is done every few epochs counts by its share of the run, however few steps are timed.
    """
    import torch

    from polygrain.cli.bench.meter import MEASURING, Meter, metered
    from polygrain.train.run import Training
    from polygrain.train.state import Identity

    with tempfile.TemporaryDirectory() as scratch:
        training = Training(config, data, Path(scratch, "state.pt"), Identity("", "", "", ""), resume=False)
    meter = training.watch = Meter(torch.device(config["pretrain"]["device"]), config["input_size"])
    with metered(training.method, meter):
        for _ in range(WARM_UP):
            training.take_step()
        meter.restart()
        with meter.phase("rest: loop"):
            for _ in range(steps):
                training.take_step()
        hooked = min(config["steps"], max(HOOK_STEPS, WARM_UP + steps))
        for training.step in range(WARM_UP + steps, hooked):
            _call_hooks(training)
    hooked -= WARM_UP
    components: dict[str, float] = {}
    for book, share in ((meter.steps, steps), (meter.hooks, hooked), (meter.once, config["steps"])):
        for phase, seconds in book.seconds.items():
            if phase != MEASURING:
                name = "heads" if phase in ("forward", "backward") else phase
                components[name] = components.get(name, 0.0) + seconds / share
    images, epoch = training.data.batch_size, training.data.steps_per_epoch
    passes = (meter.steps.passes / steps + meter.hooks.passes / hooked) / images
    return Cost(components, passes, meter.once.passes / (epoch * images))


def _call_hooks(training: "Training") -> None:
    """What opens a step, without the step; the meter books it."""
    clock, method = training.clock, training.method
    if clock.step_in_epoch == 0 and hasattr(method, "start_epoch"):
        method.start_epoch(clock, training.data)
    if hasattr(method, "before_step"):
        method.before_step(clock)


def describe(run: str, config: dict[str, Any], cost: Cost, steps: int) -> str:
    """A run's cost in lines."""
    images, declared = config["pretrain"]["batch"], config["method"]
    counted = f"{declared['encoder_passes']:g} declared, {cost.passes:.4g} counted"
    if declared["start_passes"] or cost.start_passes:
        counted += f"; before the first step {declared['start_passes']:g} declared, {cost.start_passes:.4g} counted"
    lines = [
        f"{run}: {cost.step * 1e3:.1f} ms a step, {images / cost.step:.0f} images/s ({steps} steps of {images} images)",
        f"  encoder passes of an image: {counted}",
    ]
    for part, meaning in PARTS.items():
        lines.append(_line(f"  {meaning}", cost.share(part) * cost.step, cost.share(part)))
        inner = [(value, name) for name, value in cost.components.items() if name.startswith(f"{part}:")]
        lines += [_line(f"    {name.split(': ')[1]}", value, None) for value, name in sorted(inner, reverse=True)]
    return "\n".join(lines)


def overview(costs: Mapping[str, Cost]) -> str:
    """One line per run."""
    head = "".join(f"{part:>11}" for part in ("ms a step", *PARTS))
    lines = [f"shares of a step (the rest: under {TARGET:.0%} is the aim)", f"{'':<54}{head}"]
    for run, cost in costs.items():
        shares = "".join(f"{cost.share(part):>11.1%}" for part in PARTS)
        lines.append(f"{run:<54}{cost.step * 1e3:>11.1f}{shares}")
    return "\n".join(lines)


def _line(name: str, seconds: float, share: float | None) -> str:
    return f"{name:<54}{seconds * 1e3:>9.2f} ms" + ("" if share is None else f" {share:>7.1%}")


def every_method(project: Project) -> Iterator[str]:
    """The runs at cpu scale of the methods that take steps."""
    for method in choices(project.params, "method"):
        run = Run("cpu", "fashion-mnist", method, "base", 0)
        if steps_of(configuration(project, run)):
            yield str(run.path)


def _start_up(repeats: int = 5) -> None:
    """Seconds until a verb's first line of work, by what it imports, timed as whole processes."""
    kinds = {
        "show, plan (configuration only)": "import polygrain.cli.describe",
        "prepare": "import polygrain.data.prepare",
        "pretrain": "import polygrain.train.run",
        "features": "import polygrain.evaluate.features",
        "evaluate": "import polygrain.evaluate.run, polygrain.evaluate.knn, polygrain.evaluate.linear",
        "table": "import polygrain.report.build",
    }
    print(f"start-up, median of {repeats} processes:")
    for name, code in kinds.items():
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            seconds.append(time.perf_counter() - start)
        print(f"  {name:<34}{statistics.median(seconds):.2f} s")
