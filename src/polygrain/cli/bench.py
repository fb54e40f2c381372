"""Measurements that a person asks for: the phases of a training step, and the start-up time of the verbs."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from polygrain.config.project import Project
from polygrain.config.stages import stage_of
from polygrain.provenance.errors import UserError

USEFUL = ("forward", "backward", "optimiser")


def bench(project: Project, run: str, steps: int) -> None:
    """Print each phase's share of a step, over `steps` steps after five to warm up, and the verbs' start-up times."""
    from polygrain.provenance.pins import pin_torch
    from polygrain.train.run import Training
    from polygrain.train.state import Identity

    stage = stage_of(project, "pretrain", run)
    data = Path("data", stage.config["dataset"])
    if not (data / "manifest.json").is_file():
        raise UserError(f"{data}: not there yet; build it with `snakemake --cores all {data}/manifest.json`")
    if stage.config["steps"] < steps + 5:
        raise UserError(f"{run}: has only {stage.config['steps']} steps; ask for fewer with --steps")
    pin_torch()
    with tempfile.TemporaryDirectory() as scratch:
        training = Training(stage.config, data, Path(scratch, "state.pt"), Identity("", "", "", ""), resume=False)
        for _ in range(5):
            training.take_step()
        training.watch.seconds.clear()
        start = time.perf_counter()
        for _ in range(steps):
            training.take_step()
        wall = time.perf_counter() - start
    images = steps * training.data.batch_size
    print(f"{run}: {steps} steps, {wall / steps * 1e3:.1f} ms a step, {images / wall:.0f} images/s, one thread")
    for phase, seconds in sorted(training.watch.seconds.items(), key=lambda item: -item[1]):
        print(f"  {phase:<10}{seconds / steps * 1e3:>8.2f} ms {seconds / wall:>7.1%}")
    useful = sum(training.watch.seconds[phase] for phase in USEFUL)
    print(f"  {' + '.join(USEFUL)}: {useful / wall:.1%} of a step")
    _start_up()


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
