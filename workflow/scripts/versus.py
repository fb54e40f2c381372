"""polygrain against lightly on this machine: a whole step, the views alone, and SMoG's work besides its networks.

python workflow/scripts/versus.py [--parts a b c] [--rounds N] [--steps N]

Both sides do the same work on the same cores with the same pins, in turns; every measurement is a process of its own,
which warms up first. About ten minutes on two idle cores with the defaults.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, NamedTuple

import pandas as pd
from common import SCRIPTS, check_data, environment, last_line, positive, spread, start
from tqdm import tqdm

from polygrain.config.project import Project
from polygrain.config.stages import stage_of
from polygrain.provenance.errors import UserError

RUN = "runs/cpu/fashion-mnist/simclr/base/seed0"
SIDES = ("polygrain", "lightly")
# SMoG as in lightly's example: groups, width of an embedding, entries remembered; steps between two resets
GROUPS = {"count": 300, "width": 128, "bank": 10_000}
INTERVAL = 300

Job = dict[str, Any]
Setting = tuple[int, int]
"""Torch threads and loader workers."""
ALONE: tuple[list[Setting], ...] = ([(1, 0)], [(1, 0)])


class Rounds(NamedTuple):
    """What one side did: its setting; by round, seconds per phase, and peak MB of its process and a loader worker."""

    setting: Setting
    phases: pd.DataFrame
    memory: pd.DataFrame


def ask(job: Job) -> Job:
    """One measurement in a process of its own. Raises UserError with its last line when it fails."""
    command, variables = [sys.executable, str(SCRIPTS / "versus_sides.py")], environment(Project.here())
    done = subprocess.run(command, input=json.dumps(job), env=variables, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise UserError(f"{job['side']} {job['part']}: exit {done.returncode}: {last_line(done.stderr)}")
    return dict(json.loads(done.stdout))


def compare(job: Job, part: str, settings: Sequence[Sequence[Setting]], rounds: int, steps: int) -> list[Rounds]:
    """Both sides in turns, round by round, each at the fastest of its `settings`."""
    jobs = [{**job, "part": part, "side": side, "steps": steps} for side in SIDES]
    for one, choice in zip(jobs, settings, strict=True):
        one["settings"] = choice if len(choice) == 1 else [ask({**one, "settings": choice})["best"]]
    bar = tqdm(range(rounds), desc=f"{part} on {_count(len(job['cores']), 'core')}", leave=False, disable=None)
    answers = zip(*([ask(one) for one in jobs] for _ in bar), strict=True)
    tables = ([pd.DataFrame([each[key] for each in side]) for key in ("phases", "memory")] for side in answers)
    return [Rounds(one["settings"][0], *both) for one, both in zip(jobs, tables, strict=True)]


def report(title: str, both: Sequence[Rounds], line: Callable[[pd.Series, Setting], str], target: str = "") -> None:
    """The head of a part: each side's figures, and how many times as long lightly takes."""
    print(f"\n{title}")
    for name, one in zip(SIDES, both, strict=True):
        own, worker = one.memory.median()
        loading = f" + {one.setting[1]} x {worker:.0f} MB (partly shared)" if one.setting[1] else ""
        print(f"   {name:<10}{line(one.phases.sum(axis=1), one.setting)}; peak memory {own:.0f} MB{loading}")
    ours, theirs = (one.phases.sum(axis=1) for one in both)
    print(f"   lightly takes {spread(theirs / ours, 2)} times as long{target}", flush=True)


def compare_steps(job: Job, rounds: int, steps: int) -> None:
    """Part a: views, forward, loss, backward and optimiser, each side at its fastest setting."""
    cores, images = len(job["cores"]), steps * job["config"]["pretrain"]["batch"]
    threads = range(1, cores + 1)
    settings = ([(n, 0) for n in threads], [(n, workers) for n in threads for workers in range(3)])
    both = compare(job, "step", settings, rounds, steps)

    def line(seconds: pd.Series, setting: Setting) -> str:
        loading = _count(setting[1], "loader worker") if setting[1] else "views in process"
        rate = f"{images / seconds.median():.0f} images/s"
        return f"{spread(1e3 * seconds / steps, 1)} ms a step, {rate}, {_count(setting[0], 'thread')}, {loading}"

    report(f"a. whole SimCLR step, {_count(cores, 'core')}; rounds of {_count(steps, 'step')}", both, line)
    for name, one in zip(SIDES, both, strict=True):
        shares = (
            one.phases.sum().sort_index(key=lambda phases: phases == "rest", kind="stable") / one.phases.sum().sum()
        )
        print(f"   {name:<10}{', '.join(f'{phase} {share:.0%}' for phase, share in shares.items())}", flush=True)


def compare_views(job: Job, rounds: int, steps: int) -> None:
    """Part b: two views of each image in the training process, on one core."""
    both, images = compare(job, "views", ALONE, rounds, steps), steps * job["config"]["pretrain"]["batch"]
    title = f"b. two views of each image, in process, 1 core; rounds of {images} images"
    report(title, both, lambda seconds, _: f"{spread(images / seconds, 0)} images/s", "; target 5")


def compare_groups(job: Job, rounds: int, steps: int) -> None:
    """Part c: SMoG's groups, per step of an interval between two resets; a round has one reset."""
    both = compare(job, "groups", ALONE, rounds, steps)
    for one in both:
        one.phases[:] = one.phases * 1e3 / [INTERVAL if phase == "reset" else steps for phase in one.phases]
    title = (
        f"c. SMoG besides its networks, 1 core, 1 head, {GROUPS['count']} groups, {GROUPS['bank']:,} x"
        f" {GROUPS['width']} features of a random network remembered; rounds of {_count(steps, 'step')} and a reset,"
        f" which {INTERVAL} steps share"
    )
    report(title, both, lambda each, _: f"{spread(each, 3)} ms a step", "; target 3")
    for phase in both[0].phases:
        ours, theirs = (one.phases[phase] for one in both)
        figures = f"polygrain {ours.median():.3f} ms, lightly {theirs.median():.3f} ms"
        print(f"   {phase:<14}{figures}: {spread(theirs / ours, 2)} times")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def versus(job: Job, parts: Sequence[str], rounds: int, steps: int) -> None:
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
    """Compare as the command line asks. Raises UserError without data or a package."""
    for package in ("lightly", "sklearn"):
        if find_spec(package) is None:
            raise UserError(f"{package} is not installed; install it with `pip install .[bench]`")
    stage = stage_of(project, "pretrain", RUN)
    check_data(project, [stage])
    data = f"{project.root}/data/{stage.config['dataset']}"
    job = {"config": stage.config, "data": data, "groups": GROUPS}
    versus(job, options.parts, options.rounds, options.steps)
    return 0


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(prog="versus.py", description="Speed and memory, side by side with lightly.")
    arguments.add_argument(
        "--parts", nargs="+", choices="abc", default="abc", help="a step; b: views; c: SMoG's groups"
    )
    arguments.add_argument("--rounds", type=positive, default=9)
    arguments.add_argument("--steps", type=positive, default=20, help="steps of each side in a round")
    start(arguments, main)
