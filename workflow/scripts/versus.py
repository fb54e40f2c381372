"""polygrain against lightly on this machine: a whole step, the views alone, and SMoG's work besides its networks.

python workflow/scripts/versus.py [--parts abc] [--rounds N] [--steps N]

Both sides do the same work on the same cores with the same pins, in turns; every measurement is a process of its own,
which warms up first. About ten minutes on two idle cores with the defaults.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from common import SCRIPTS, check_data, environment, last_line, spread, stages_of_run, start
from tqdm import tqdm

from polygrain.config.project import Project
from polygrain.provenance.errors import UserError

RUN = "runs/cpu/fashion-mnist/simclr/base/seed0"
SIDES = ("polygrain", "lightly")
# SMoG as in lightly's example: groups, width of an embedding, entries remembered; steps between two resets
GROUPS = {"count": 300, "width": 128, "bank": 10_000}
INTERVAL = 300

Job = dict[str, Any]
Setting = tuple[int, int]
"""Torch threads and loader workers."""


class Rounds(NamedTuple):
    """What one side did: its setting, seconds per phase of each round, the memory that it needed."""

    setting: Setting
    phases: list[dict[str, float]]
    memory: list[list[float]]
    """Peak resident MB of its process and of the largest loader worker, whose pages are partly its parent's."""


def ask(job: Job) -> dict[str, Any]:
    """One measurement in a process of its own. Raises UserError with its last line when it fails."""
    command, variables = [sys.executable, str(SCRIPTS / "versus_sides.py")], environment(Path(job["source"]))
    done = subprocess.run(command, input=json.dumps(job), env=variables, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{job['side']} {job['part']}: {last_line(done.stderr)}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def compare(job: Job, part: str, settings: Sequence[Sequence[Setting]], rounds: int, steps: int) -> list[Rounds]:
    """Both sides in turns, round by round, each at the fastest of its `settings`."""
    jobs, measured = [{**job, "part": part, "side": side, "steps": steps} for side in SIDES], list[Rounds]()
    for one, choice in zip(jobs, settings, strict=True):
        one["settings"] = choice if len(choice) == 1 else [ask({**one, "settings": choice})["best"]]
        measured.append(Rounds(one["settings"][0], [], []))
    for _ in tqdm(range(rounds), desc=f"{part} on {_count(len(job['cores']), 'core')}", leave=False, disable=None):
        for one, done in zip(jobs, measured, strict=True):
            answer = ask(one)
            done.phases.append(answer["phases"])
            done.memory.append(answer["memory"])
    return measured


def compare_steps(job: Job, rounds: int, steps: int) -> None:
    """Part a: views, forward, loss, backward and optimiser, each side at its fastest setting."""
    cores, batch = len(job["cores"]), job["config"]["pretrain"]["batch"]
    threads = range(1, cores + 1)
    settings = ([(n, 0) for n in threads], [(n, workers) for n in threads for workers in range(3)])
    both = compare(job, "step", settings, rounds, steps)

    def line(one: Rounds) -> str:
        seconds, (threads, workers) = _totals(one.phases), one.setting
        loading = _count(workers, "loader worker") if workers else "views in process"
        rate = spread([batch * steps / each for each in seconds], 0).partition(" ")[0]
        step = spread([each / steps * 1e3 for each in seconds], 1)
        return f"{step} ms a step, {rate} images/s, {_count(threads, 'thread')}, {loading}"

    _report(f"a. whole SimCLR step, {_count(cores, 'core')}; rounds of {_count(steps, 'step')}", both, line)
    for name, one in zip(SIDES, both, strict=True):
        print(f"   {name:<10}{shares(one.phases)}", flush=True)


def shares(rounds: Sequence[Mapping[str, float]]) -> str:
    """Each phase's part of the whole over all rounds, in the order in which the phases came."""
    sums = {name: sum(phases[name] for phases in rounds) for name in rounds[0]}
    return ", ".join(f"{name} {total / sum(sums.values()):.0%}" for name, total in sums.items())


def compare_views(job: Job, rounds: int, steps: int) -> None:
    """Part b: two views of each image in the training process, on one core."""
    both, images = compare(job, "views", ([(1, 0)],) * 2, rounds, steps), steps * job["config"]["pretrain"]["batch"]

    def line(one: Rounds) -> str:
        return f"{spread([images / seconds for seconds in _totals(one.phases)], 0)} images/s"

    _report(f"b. two views of each image, in process, 1 core; rounds of {images} images", both, line, target=5)


def compare_groups(job: Job, rounds: int, steps: int) -> None:
    """Part c: assignment, group update and reset of SMoG, per step of an interval between two resets."""
    groups = {**job["groups"], "reset": find_spec("sklearn") is not None}
    both = compare({**job, "groups": groups}, "groups", ([(1, 0)],) * 2, rounds, steps)
    both = [one._replace(phases=[_per_step(phases, steps) for phases in one.phases]) for one in both]
    title = (
        f"c. SMoG besides its networks, 1 core, 1 head, {groups['count']} groups, {groups['bank']:,} x"
        f" {groups['width']} features of a random network remembered; rounds of {_count(steps, 'step')}"
    )
    missing = "; no reset, for which lightly's example needs scikit-learn: `pip install scikit-learn`"
    title += f" and a reset, which {INTERVAL} steps share" if groups["reset"] else missing
    _report(
        title, both, lambda one: f"{spread(_totals(one.phases), 3)} ms a step", target=3 if groups["reset"] else None
    )
    for phase in both[0].phases[0]:
        ours, theirs = ([phases[phase] for phases in one.phases] for one in both)
        figures = f"polygrain {statistics.median(ours):.3f} ms, lightly {statistics.median(theirs):.3f} ms"
        print(f"   {phase:<14}{figures}: {_times(ours, theirs)} times")


def _per_step(phases: Mapping[str, float], steps: int) -> dict[str, float]:
    """Milliseconds a step; the reset happened once in the round, and an interval's steps share it."""
    return {name: 1e3 * seconds / (INTERVAL if name == "reset" else steps) for name, seconds in phases.items()}


def _report(title: str, both: Sequence[Rounds], line: Callable[[Rounds], str], target: int | None = None) -> None:
    """The head of a part: each side's figures, and how many times as long lightly takes."""
    print(f"\n{title}")
    for name, one in zip(SIDES, both, strict=True):
        own, worker = (statistics.median(megabytes) for megabytes in zip(*one.memory, strict=True))
        loading = f" + {one.setting[1]} x {worker:.0f} MB (partly shared)" if one.setting[1] else ""
        print(f"   {name:<10}{line(one)}; peak memory {own:.0f} MB{loading}")
    times = _times(*(_totals(one.phases) for one in both))
    print(f"   lightly takes {times} times as long" + (f"; target {target}" if target else ""), flush=True)


def _totals(rounds: Sequence[Mapping[str, float]]) -> list[float]:
    return [sum(phases.values()) for phases in rounds]


def _times(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """How many times as long theirs took, round by round: above 1 where ours is the faster one."""
    return spread([slow / fast for fast, slow in zip(ours, theirs, strict=True)], 2)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def versus(job: Job, parts: str, rounds: int, steps: int) -> None:
    """Print the parts of the comparison that are named: a (whole step), b (views), c (SMoG's groups).

    `steps` of each side make a round; part c takes 15 times as many, whole intervals by default.
    """
    cores = sorted(os.sched_getaffinity(0))
    print(
        f"polygrain against lightly {version('lightly')}, torch {version('torch')}, equal pins, equal cores, batch"
        f" {job['config']['pretrain']['batch']}; medians and quartiles of {rounds} rounds in turns",
        flush=True,
    )
    for count in (1, 2) if "a" in parts else ():
        if count <= len(cores):
            compare_steps({**job, "cores": cores[:count]}, rounds, steps)
        else:
            print(f"\na. whole step on {count} cores: left out, this process may use only {len(cores)}")
    if "b" in parts:
        compare_views({**job, "cores": cores[:1]}, rounds, steps)
    if "c" in parts:
        compare_groups({**job, "cores": cores[:1]}, rounds, 15 * steps)


def main(project: Project, options: argparse.Namespace) -> int:
    """Compare as the command line asks. Raises UserError without lightly or data, and on arguments without sense."""
    if not options.parts or set(options.parts) - set("abc"):
        raise UserError(f"--parts takes letters of 'abc', not '{options.parts}'")
    if options.rounds < 1 or options.steps < 1:
        raise UserError("--rounds and --steps must be at least 1")
    if find_spec("lightly") is None:
        raise UserError("lightly is not installed; install it with `pip install .[bench]`")
    stages = stages_of_run(project, RUN)[:1]
    check_data(project, stages)
    config, source = dict(stages[0].config), str(project.source)
    job = {"config": config, "data": f"{project.root}/data/{config['dataset']}", "groups": GROUPS, "source": source}
    versus(job, options.parts, options.rounds, options.steps)
    return 0


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(prog="versus.py", description="Speed and memory, side by side with lightly.")
    arguments.add_argument("--parts", default="abc", help="a: a whole step; b: views alone; c: SMoG's groups")
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--steps", type=int, default=20, help="steps of each side in a round")
    start(arguments, main)
