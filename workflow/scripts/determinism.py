"""Rebuild recorded runs under random SIGKILLs and compare every byte with what dvc.lock claims.

python workflow/scripts/determinism.py [RUN ...] [--kills N] [--seed N] [--jobs N]

Where dvc.lock has no claim on a run with this code, these params and these data, the reference is made once without a
kill. Works in build/determinism alone and clears it when nothing differs. Exit status 1 when a byte differs.
"""

import argparse
import os
import pty
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from common import check_data, environment, last_line, positive, start
from tqdm import tqdm

from polygrain.attest.children import side_by_side
from polygrain.attest.states import copy_checkout
from polygrain.config.compose import choices
from polygrain.config.inputs import write_inputs
from polygrain.config.project import Project
from polygrain.config.stages import stages_behind
from polygrain.provenance.checklock import find_problems
from polygrain.provenance.errors import UserError
from polygrain.provenance.hashes import md5_file
from polygrain.provenance.lock import LOCK, read_lock
from polygrain.provenance.stage import Stage
from polygrain.train.guard import locked

FOLDER = Path("build/determinism")
PLACES = {
    "start-up": "while it started, before the first step",
    "mid-epoch": "inside an epoch",
    "about an epoch's end": "within a few steps of an epoch's end",
    "saving": "while the resume state was written",
    "publishing": "while checkpoint and metrics got their final names",
}
START, USUAL = 6.0, 15.0  # seconds: about what a process needs before its first step, and a stage until one was timed
BAR_STEPS = 8  # how far, in steps, a progress bar of three digits may be from the truth
BAR = re.compile(r"\|\s*([\d.]+)([kM]?)/[\d.]+[kM]?\s*\[")


class Point(NamedTuple):
    """One kill, `delay` seconds after an event.

    `start`: `value` seconds passed, or the first step begins. `time`: `value` of the stage's usual duration passed.
    `step`: that training step. `save`: the first resume state behind that step is being written. `publish`: the
    checkpoint is being written. `output`: the stage's first final name appears.
    """

    place: str
    value: float = 0.0
    delay: float = 0.0


def draw(kills: int, steps: int, stages: Sequence[str], seed: str) -> Mapping[str, list[Point]]:
    """The kills of one run by stage, in the order in which they happen.

    Most strike the training, the first stage, uniformly over its steps; a tenth each while it starts and while it
    saves, one while it publishes, a fifth in the later stages. Of a run that takes no step, two thirds strike there.
    """
    generator, later = random.Random(seed), stages[1:]

    def some(number: int, place: str, end: float, delay: float = 0.0) -> list[Point]:
        return [Point(place, generator.uniform(0, end), generator.uniform(0, delay)) for _ in range(number)]

    share, last = kills // 10 if steps else kills // 3, int(kills > 4)
    training = some(0 if steps else kills - 2 * share, "time", 1)
    if steps:
        training += some(kills - 4 * share - last, "step", steps, 0.3) + some(share, "save", 0.9 * steps)
        training.sort(key=lambda point: point.value)
        for point in some(share, "start", START):
            training.insert(generator.randint(0, len(training)), point)
        training += some(last, "publish", 0, 0.2)
    # the last one when the first final name appears: a kill that comes too late ends the stage
    sizes = [2 * share // len(later) + (place < 2 * share % len(later)) for place in range(len(later))]
    points = (some(size - 1, "time", 1) + some(min(size, 1), "output", 0, 0.05) for size in sizes)
    outputs = dict(zip(later, points, strict=True))
    return {stages[0]: training, **outputs}


@dataclass
class Watched:
    """A verb that ran on a terminal, where its progress bar moves every half second and tells how far it is."""

    process: "subprocess.Popen[bytes]"
    seconds: float = 0.0
    images: float | None = None
    text: str = ""
    killed: bool = False


def watch(stage: Stage, root: Path, reached: Callable[[Watched], bool], delay: float, stop: Event) -> Watched:
    """Run a stage and kill it `delay` seconds after `reached` becomes true, or let it end.

    Raises UserError with its last line when it fails by itself, KeyboardInterrupt when `stop` is set.
    """
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 120))
    command = [sys.executable, "-m", "polygrain.cli.main", stage.verb, "--workflow", str(stage.target)]
    pins = environment(Project(root))
    process = subprocess.Popen(command, cwd=root, env=pins, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave)
    os.close(slave)
    seen, began, due = Watched(process), time.monotonic(), float("inf")
    try:
        while seen.seconds < due:
            if stop.is_set():
                raise KeyboardInterrupt
            if select.select([master], [], [], 0.005)[0]:
                seen.text += os.read(master, 65536).decode(errors="replace")
                if found := BAR.findall(seen.text[-2000:]):
                    seen.images = float(found[-1][0]) * {"": 1.0, "k": 1e3, "M": 1e6}[found[-1][1]]
            seen.seconds = time.monotonic() - began
            due = seen.seconds + delay if due == float("inf") and reached(seen) else due
    except OSError:  # what reading from a terminal gives whose other side is closed
        process.wait()
    finally:
        process.kill()
        seen.killed = process.wait() == -signal.SIGKILL and due < float("inf")
        os.close(master)
    if process.returncode and not seen.killed:
        raise UserError(
            f"{stage.directory}: {stage.verb} ended with status {process.returncode}: {last_line(seen.text)}"
        )
    return seen


@dataclass
class Rebuild:
    """One run of the scratch project at `root`, and what happened to it."""

    root: Path
    run: str
    stages: Sequence[Stage]
    reason: str = ""  # why dvc.lock is not the reference
    claims: Mapping[Path, str] = field(default_factory=dict)  # output -> MD5 that it must have
    kills: Counter[str] = field(default_factory=Counter)  # by where they struck
    resumes: int = 0
    compared: int = 0  # final files whose bytes were compared, those that stood there after a kill included
    faults: list[str] = field(default_factory=list)
    usual: dict[str, float] = field(default_factory=dict)  # seconds by stage

    def go(self, whole: "Rebuild", kills: int, seed: int, bar: "tqdm[Any]", stop: Event) -> None:
        """Kill as planned; late kills are repeated in the last stage. `whole`: the run as made without a kill."""
        if not self.claims:
            bar.write(f"{self.run}: {self.reason}; made once without a kill, as reference")
            for stage in self.stages:
                whole.attempt(stage, None, stop)
            self.claims = {path: md5_file(whole.root / path) for stage in self.stages for path in stage.outputs}
        names, steps = [stage.name for stage in self.stages], self.stages[0].config["steps"]
        points, late = draw(kills, steps, names, f"{seed} {self.run}"), 0
        for stage in self.stages:
            late += self._finish(stage, points[stage.name], bar, stop)
        for lap in range(50 if late else 0):
            for path in stage.outputs if late else ():
                (self.root / path).unlink()
            late = late and self._finish(stage, [Point("time", (lap * 0.37 + 0.1) % 1.0)] * late, bar, stop)

    def _finish(self, stage: Stage, points: Sequence[Point], bar: "tqdm[Any]", stop: Event) -> int:
        """Run a stage to its end, killed at each point; returns how many came too late."""
        done = 0
        while self.attempt(stage, points[done] if done < len(points) else None, stop):
            done += 1
            bar.update()
        return len(points) - done

    def attempt(self, stage: Stage, point: Point | None, stop: Event) -> bool:
        """One process; whether it was killed. Holds what stands under a final name afterwards against the reference."""
        seen = watch(stage, self.root, partial(self._reached, stage, point), point.delay if point else 0.0, stop)
        self.resumes += "continuing the half-done run" in seen.text
        if "starting over" in seen.text:
            self.faults.append(f"{stage.directory}: a state left by a kill could not be continued")
        if seen.killed:
            self.kills[self._place(stage, seen)] += 1
        else:
            self.usual[stage.name] = seen.seconds
        for path in stage.outputs:
            self.compared += (there := (self.root / path).is_file())
            if there and self.claims and md5_file(self.root / path) != self.claims[path]:
                self.faults.append(f"{path}: differs from the reference{', after a kill' if seen.killed else ''}")
            elif not there and not seen.killed:
                self.faults.append(f"{path}: missing after a whole run")
        return seen.killed

    def _reached(self, stage: Stage, point: Point | None, seen: Watched) -> bool:
        if point is None:
            return False
        images, folder = seen.images, self.root / stage.directory
        at_step = images is not None and images / self.stages[0].config["pretrain"]["batch"] >= point.value
        return {
            "start": images is not None or seen.seconds >= point.value,
            "time": seen.seconds >= point.value * self.usual.get(stage.name, USUAL),
            "step": at_step,
            "save": at_step and (folder / f"scratch/.state.pt.{seen.process.pid}.tmp").exists(),
            "publish": (folder / f".checkpoint.safetensors.{seen.process.pid}.tmp").exists(),
            "output": any((self.root / path).exists() for path in stage.outputs),
        }[point.place]

    def _place(self, stage: Stage, seen: Watched) -> str:
        """Where a kill struck, from what it left and what the process had shown."""
        folder, own = self.root / stage.directory, f"{seen.process.pid}.tmp"
        if stage.verb != "pretrain":
            return stage.task
        if (folder / f"scratch/.state.pt.{own}").exists():
            return "saving"
        if (folder / "checkpoint.safetensors").exists() or any(folder.glob(f".*.{own}")):
            return "publishing"
        if seen.images is None or stage.config["steps"] == 0:
            return "start-up"
        settings = stage.config["pretrain"]
        epoch = settings["images"] // settings["batch"]
        into = round(seen.images / settings["batch"]) % epoch
        return "mid-epoch" if BAR_STEPS < into < epoch - BAR_STEPS else "about an epoch's end"


def scratch_project(project: Project, root: Path, runs: Sequence[str]) -> Iterator[Rebuild]:
    """Copy what decides the runs' bits to `root`, so that an edit meanwhile touches nothing; data are linked."""
    scratch = copy_checkout(project, root)
    shutil.copy2(project.root / LOCK, root)
    for run in runs:
        stages = [stage for stage in stages_behind(scratch, [run]) if stage.verb != "prepare"]
        check_data(scratch, stages)
        for stage in stages:
            write_inputs(scratch, stage)
        yield Rebuild(root, run, stages, *recorded(root, stages))


def recorded(root: Path, stages: Sequence[Stage]) -> tuple[str, Mapping[Path, str]]:
    """What dvc.lock claims of a run; or the reason why it has no claim on this code, these params and these data."""
    names = {stage.name for stage in stages}
    for problem in find_problems(stages, root, {}):
        if problem.stage in names:
            return problem.line.partition(": ")[2].rpartition("; ")[0], {}
    lock = read_lock(root)
    claims = {path: md5 for stage in stages for path in stage.outputs if (md5 := lock.md5(path))}
    return ("", claims) if all(map(lock.find, stages)) else (f"not in {LOCK}", {})


def table(rebuilds: Sequence[Rebuild], seed: int) -> str:
    """The account in Markdown: a line per run and in all, and where the kills struck."""
    places = sum((one.kills for one in rebuilds), Counter[str]())
    rows = [[each.kills["mid-epoch"], each.resumes, each.compared, len(each.faults)] for each in rebuilds]
    rows = [[one.stages[0].config["steps"], one.kills.total(), *row] for one, row in zip(rebuilds, rows, strict=True)]
    rows.append([sum(column) for column in zip(*rows, strict=True)])
    ends = [(one.run, one.reason or "dvc.lock") for one in rebuilds] + [("**in all**", "")]
    heads = "| run | steps | kills | mid-epoch | resumes | files compared | mismatches | reference |"
    lines = [heads, f"| :-- |{' --: |' * len(rows[0])} :-- |"]
    for (name, reference), row in zip(ends, rows, strict=True):
        lines.append(f"| {name} | {' | '.join(f'{number:,}' for number in row)} | {reference} |")
    struck = "; ".join(f"{places[each]} {PLACES.get(each, f'in {each}')}" for each in PLACES | places if places[each])
    return "\n".join([*lines, "", f"{places.total()} kill points from seed {seed}: {struck}."])


def main(project: Project, options: argparse.Namespace) -> int:
    """Print a table of what was killed and compared; 1 when a byte differs. Raises UserError on a bad run."""
    every, folder = choices(project.params, "method"), project.root / FOLDER
    runs = options.runs or [f"runs/cpu/fashion-mnist/{name}/base/seed0" for name in every]
    if options.kills < len(runs):
        raise UserError(f"{options.kills} kills for {len(runs)} runs; give each one at least")
    kills = [options.kills // len(runs) + (place < options.kills % len(runs)) for place in range(len(runs))]
    with locked(folder), tqdm(total=options.kills, unit="kill", desc="determinism") as bar:
        for left in ("killed", "reference"):
            shutil.rmtree(folder / left, ignore_errors=True)
        rebuilds, wholes = (list(scratch_project(project, folder / name, runs)) for name in ("killed", "reference"))
        stop, each = Event(), zip(rebuilds, wholes, kills, strict=True)
        tasks = [partial(one.go, whole, share, options.seed, bar, stop) for one, whole, share in each]
        side_by_side(tasks, options.jobs, stop.set)
    print(table(rebuilds, options.seed))
    faults = [fault for one in rebuilds for fault in one.faults]
    print("\n".join([*faults, f"what was built is left in {FOLDER}"]) if faults else "no byte differs")
    if not faults:
        shutil.rmtree(folder)
    return 1 if faults else 0


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(prog="determinism.py", description="Rebuild runs under kills, compare bytes.")
    arguments.add_argument("runs", nargs="*", metavar="run", help="default: each method's base run at cpu scale")
    arguments.add_argument("--kills", type=positive, default=207, help="over all runs")
    arguments.add_argument("--seed", type=int, default=0, help="decides where the kills strike")
    arguments.add_argument("--jobs", type=positive, default=1, help="runs side by side")
    start(arguments, main)
