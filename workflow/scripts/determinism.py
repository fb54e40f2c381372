"""Rebuild recorded runs under random SIGKILLs and compare every byte with what dvc.lock claims.

python workflow/scripts/determinism.py [RUN ...] [--kills N] [--seed N] [--jobs N]

Where dvc.lock has no claim on a run with this code, these params and these data, the run is made once without a kill
and is the reference. Works in build/determinism alone and clears it when nothing differs. Exit status 1 when a byte
differs.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from common import check_data, each, environment, last_line, side_by_side, stages_of_run, start, words_of
from tqdm import tqdm

from polygrain.cli.claims import job_of
from polygrain.config.compose import choices
from polygrain.config.inputs import write_inputs
from polygrain.config.project import Project
from polygrain.provenance.checklock import find_problems
from polygrain.provenance.dvcfiles import LOCK, md5_file, read_lock
from polygrain.provenance.errors import UserError
from polygrain.provenance.stage import Stage
from polygrain.train.guard import locked

FOLDER = Path("build/determinism")
COPIED = ("Snakefile", "requirements.lock", "params", "src", "workflow", "dvc.lock", "dvc.yaml")
PLACES = {
    "start-up": "while it started, before the first step",
    "mid-epoch": "inside an epoch",
    "about an epoch's end": "within a few steps of an epoch's end",
    "saving": "while the resume state was written",
    "publishing": "while checkpoint and metrics got their final names",
    "features": "in features",
    "evaluate": "in evaluation",
}
HEADS = ("run", "steps", "kills", "mid-epoch", "resumes", "files compared", "mismatches", "reference")
START_SECONDS = 6.0  # about what a process needs before its first step
USUAL = 15.0  # seconds of a stage until one was timed
BAR_STEPS = 8  # how far, in steps, a progress bar of three digits may be from the truth
LAPS = 50  # times that the last stage is repeated for kills that came too late
BAR = re.compile(r"\|\s*([\d.]+)([kM]?)/[\d.]+[kM]?\s*\[")


@dataclass(frozen=True)
class Point:
    """One kill, `delay` seconds after an event.

    `start`: `value` seconds have passed, or the first step begins. `time`: `value` of the stage's usual duration has
    passed. `step`: that training step. `save`: the first resume state behind that step is being written. `publish`: the
    checkpoint is being written. `output`: the stage's first final name appears.
    """

    place: str
    value: float = 0.0
    delay: float = 0.0


def draw(kills: int, steps: int, stages: Sequence[str], seed: int, run: str) -> Mapping[str, list[Point]]:
    """The kills of one run by stage, in the order in which they happen; the first stage trains.

    A run that trains is mostly killed there, uniformly over its steps; a tenth each while it starts, while it saves its
    state and in each later stage, one while it publishes. One that takes no step is killed evenly in its stages.
    """
    generator, later = random.Random(f"{seed} {run}"), stages[1:]

    def some(number: int, place: str, end: float, delay: float = 0.0) -> list[Point]:
        return [Point(place, generator.uniform(0, end), generator.uniform(0, delay)) for _ in range(number)]

    share, last = kills // 10 if steps else kills // len(stages), int(kills > 4)
    if steps:
        training = some(kills - (2 + len(later)) * share - last, "step", steps, 0.3) + some(share, "save", 0.9 * steps)
        training.sort(key=lambda point: point.value)
        for point in some(share, "start", START_SECONDS):
            training.insert(generator.randint(0, len(training)), point)
        training += some(last, "publish", 0, 0.2)
    else:
        training = some(kills - len(later) * share, "time", 1)
    # the last one when the first final name appears: a kill that comes too late ends the stage
    outputs = {stage: some(share - 1, "time", 1) + some(min(share, 1), "output", 0, 0.05) for stage in later}
    return {stages[0]: training, **outputs}


class Watched:
    """A verb running on a terminal: its progress bar moves every half second and tells how far it is."""

    def __init__(self, arguments: Sequence[str], root: Path) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, 120))
        self.began, self.seconds, self.text, self.killed = time.monotonic(), 0.0, "", False
        self.images: float | None = None
        # the pins are there from the start: half as long until the first step
        self.process = subprocess.Popen(
            [sys.executable, "-m", "polygrain.cli.main", *arguments],
            cwd=root,
            env=environment(root / "src"),
            stdin=subprocess.DEVNULL,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)

    def runs(self) -> bool:
        """Take in what it said, for some milliseconds, and see whether it still runs."""
        if select.select([self.master], [], [], 0.005)[0]:
            try:
                self.text += os.read(self.master, 65536).decode(errors="replace")
            except OSError:  # what reading from a terminal gives whose other side is closed
                self.process.wait()
            if found := BAR.findall(self.text[-2000:]):
                self.images = float(found[-1][0]) * {"": 1.0, "k": 1e3, "M": 1e6}[found[-1][1]]
        self.seconds = time.monotonic() - self.began
        return self.process.poll() is None

    def until(self, reached: Callable[["Watched"], bool], delay: float, stopped: Callable[[], bool]) -> None:
        """Kill it `delay` seconds after `reached` becomes true, or let it end; `killed` says which.

        Raises UserError with its last line when it fails by itself, KeyboardInterrupt when `stopped` says so.
        """
        due = float("inf")
        try:
            while self.runs() and self.seconds < due:
                if stopped():
                    raise KeyboardInterrupt
                due = self.seconds + delay if due == float("inf") and reached(self) else due
        finally:
            self.process.kill()
            status = self.process.wait()
            os.close(self.master)
        self.killed = status == -signal.SIGKILL and due < float("inf")
        if status and not self.killed:
            raise UserError(f"a verb ended with status {status}: {last_line(self.text)}")


@dataclass
class Rebuild:
    """One run of the scratch project at `root`, and what happened to it."""

    root: Path
    run: str
    stages: Sequence[Stage]
    stopped: Callable[[], bool]
    reason: str = ""  # why dvc.lock is not the reference
    claims: Mapping[Path, str] = field(default_factory=dict)  # output -> MD5 that it must have
    kills: Counter[str] = field(default_factory=Counter)  # by where they struck
    resumes: int = 0
    compared: int = 0  # final files whose bytes were compared, those that stood there after a kill included
    faults: list[str] = field(default_factory=list)
    usual: dict[str, float] = field(default_factory=dict)  # seconds by stage

    def go(self, kills: int, seed: int, on_kill: Callable[[], object]) -> None:
        """Kill as planned; late kills are repeated in the last stage. Every finished output is compared."""
        points = draw(kills, self.stages[0].config["steps"], [stage.name for stage in self.stages], seed, self.run)
        late = 0
        for stage in self.stages:
            late += self._finish(stage, points[stage.name], on_kill)
        for lap in range(LAPS if late else 0):
            for path in stage.outputs if late else ():
                (self.root / path).unlink()
            late = late and self._finish(stage, [Point("time", (lap * 0.37 + 0.1) % 1.0)] * late, on_kill)

    def _finish(self, stage: Stage, points: Sequence[Point], on_kill: Callable[[], object]) -> int:
        """Run a stage to its end, killed at each point; returns how many came too late."""
        for number, point in enumerate(points):
            if not self.attempt(stage, point):
                return len(points) - number
            on_kill()
        self.attempt(stage, None)
        return 0

    def attempt(self, stage: Stage, point: Point | None) -> bool:
        """One process; whether it was killed. Holds what stands under a final name afterwards against the reference."""
        watched = Watched(words_of(stage), self.root)
        watched.until(partial(self._reached, stage, point), point.delay if point else 0.0, self.stopped)
        self.resumes += "continuing the half-done run" in watched.text
        if "starting over" in watched.text:
            self.faults.append(f"{stage.directory}: a state left by a kill could not be continued")
        if watched.killed:
            self.kills[self._place(stage, watched)] += 1
        else:
            self.usual[stage.name] = watched.seconds
        for path in stage.outputs:
            self.compared += (there := (self.root / path).is_file())
            if there and self.claims and md5_file(self.root / path) != self.claims[path]:
                self.faults.append(f"{path}: differs from the reference{', after a kill' if watched.killed else ''}")
            elif not there and not watched.killed:
                self.faults.append(f"{path}: missing after a whole run")
        return watched.killed

    def _reached(self, stage: Stage, point: Point | None, watched: Watched) -> bool:
        if point is None:
            return False
        images, folder = watched.images, self.root / stage.directory
        at_step = images is not None and images / self.stages[0].config["pretrain"]["batch"] >= point.value
        match point.place:
            case "start":
                return watched.seconds >= point.value or images is not None
            case "time":
                return watched.seconds >= point.value * self.usual.get(stage.name, USUAL)
            case "step":
                return at_step
            case "save":
                return at_step and (folder / f"scratch/.state.pt.{watched.process.pid}.tmp").exists()
            case "publish":
                return (folder / f".checkpoint.safetensors.{watched.process.pid}.tmp").exists()
            case _:
                return any((self.root / path).exists() for path in stage.outputs)

    def _place(self, stage: Stage, watched: Watched) -> str:
        """Where a kill struck, from what it left and what the process had shown."""
        folder, own = self.root / stage.directory, f"{watched.process.pid}.tmp"
        if stage.verb != "pretrain":
            return stage.verb
        if (folder / f"scratch/.state.pt.{own}").exists():
            return "saving"
        if (folder / "checkpoint.safetensors").exists() or any(folder.glob(f".*.{own}")):
            return "publishing"
        if watched.images is None or stage.config["steps"] == 0:
            return "start-up"
        settings = stage.config["pretrain"]
        epoch = settings["images"] // settings["batch"]
        into = round(watched.images / settings["batch"]) % epoch
        return "mid-epoch" if BAR_STEPS < into < epoch - BAR_STEPS else "about an epoch's end"

    def numbers(self) -> list[int]:
        """Its figures, in the order of HEADS."""
        kills, steps = self.kills, self.stages[0].config["steps"]
        return [steps, kills.total(), kills["mid-epoch"], self.resumes, self.compared, len(self.faults)]


def scratch_project(project: Project, root: Path) -> Project:
    """Copy what decides a run's bits to `root`, so that an edit meanwhile touches nothing, and link the data."""
    root.mkdir()
    for source in (project.root / name for name in COPIED if (project.root / name).exists()):
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, root / source.name)
    (root / "data").symlink_to(project.root / "data")
    return Project(root)


def stages_in(scratch: Project, run: str) -> Sequence[Stage]:
    """The stages of a run with their inputs written into the scratch project. Raises UserError without the data."""
    stages = stages_of_run(scratch, run)
    for stage in stages:
        write_inputs(scratch, stage)
    check_data(scratch, stages)
    return stages


def recorded(scratch: Project, stages: Sequence[Stage]) -> tuple[Mapping[Path, str], str]:
    """What dvc.lock claims of a run, or nothing and the reason: no claim on this code, these params and these data."""
    lock, jobs = read_lock(scratch.root), [job_of(stage) for stage in stages]
    for problem in find_problems(jobs, scratch.root, {}):
        if problem.stage in {job.name for job in jobs}:
            return {}, problem.line.partition(": ")[2].rpartition("; ")[0]
    if not {job.name for job in jobs} <= set(lock):
        return {}, f"not in {LOCK}"
    return {path: lock[job.name].outputs[path.as_posix()] for job in jobs for path in job.outputs}, ""


def rebuilt(project: Project, runs: Sequence[str], options: argparse.Namespace) -> list[Rebuild]:
    """Do all runs in scratch projects, several side by side. A fault or an interrupt ends them all."""
    killed, whole = (scratch_project(project, project.root / FOLDER / name) for name in ("killed", "reference"))
    with side_by_side(options.jobs) as (threads, stop), tqdm(total=options.kills, unit="kill") as bar:

        def go(one: Rebuild, kills: int) -> None:
            one.claims, one.reason = recorded(killed, one.stages)
            if not one.claims:
                bar.write(f"{one.run}: {one.reason}; made once without a kill, as reference")
                reference = Rebuild(whole.root, one.run, stages_in(whole, one.run), one.stopped)
                for stage in reference.stages:
                    reference.attempt(stage, None)
                outputs = [path for stage in one.stages for path in stage.outputs]
                one.claims = {path: md5_file(whole.root / path) for path in outputs}
            one.go(kills, options.seed, bar.update)

        rebuilds = [Rebuild(killed.root, run, stages_in(killed, run), stop.is_set) for run in runs]
        shares = [options.kills // len(runs) + (place < options.kills % len(runs)) for place in range(len(runs))]
        for _ in each(threads, {one.run: partial(go, one, kills) for one, kills in zip(rebuilds, shares, strict=True)}):
            pass
    return rebuilds


def table(rebuilds: Sequence[Rebuild], seed: int) -> str:
    """The account in Markdown: a line per run and in all, and where the kills struck."""
    places, rows = sum((one.kills for one in rebuilds), Counter[str]()), [one.numbers() for one in rebuilds]
    struck = "; ".join(f"{places[place]} {words}" for place, words in PLACES.items() if places[place])
    lines = [f"| {' | '.join(HEADS)} |", f"| :-- |{' --: |' * (len(HEADS) - 2)} :-- |"]
    names, ends = [one.run for one in rebuilds], [one.reason or "dvc.lock" for one in rebuilds]
    sums = [sum(column) for column in zip(*rows, strict=True)]
    for name, numbers, end in zip([*names, "**in all**"], [*rows, sums], [*ends, ""], strict=True):
        lines.append(f"| {name} | {' | '.join(f'{number:,}' for number in numbers)} | {end} |")
    return "\n".join([*lines, "", f"{places.total()} kill points from seed {seed}: {struck}."])


def main(project: Project, options: argparse.Namespace) -> int:
    """Print a table of what was killed and compared; 1 when a byte differs. Raises UserError on a bad run."""
    names = choices(project.params, "method")
    runs = options.runs or [f"runs/cpu/fashion-mnist/{name}/base/seed0" for name in names]
    if options.jobs < 1 or options.kills < len(runs):
        raise UserError(f"{options.kills} kills, {options.jobs} jobs; give each of {len(runs)} runs a kill, and a job")
    with locked(project.root / FOLDER):
        for left in ("killed", "reference"):
            shutil.rmtree(project.root / FOLDER / left, ignore_errors=True)
        rebuilds = rebuilt(project, runs, options)
        print(table(rebuilds, options.seed))
        faults = [fault for one in rebuilds for fault in one.faults]
        if not faults:
            shutil.rmtree(project.root / FOLDER)
            return 0
    print("\n".join([*faults, f"what was built is left in {FOLDER}"]))
    return 1


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(prog="determinism.py", description="Rebuild runs under kills, compare bytes.")
    arguments.add_argument("runs", nargs="*", metavar="run", help="default: each method's base run at cpu scale")
    arguments.add_argument("--kills", type=int, default=207, help="over all runs")
    arguments.add_argument("--seed", type=int, default=0, help="decides where the kills strike")
    arguments.add_argument("--jobs", type=int, default=1, help="runs side by side")
    start(arguments, main)
