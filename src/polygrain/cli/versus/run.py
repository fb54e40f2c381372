"""polygrain against lightly on this machine: a whole step, the views alone, and SMoG's work besides its networks.

Both sides do the same work on the same cores with the same pins, alternately, each in a process of its own. About five
minutes on two idle cores with the defaults.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from tqdm import tqdm

from polygrain.cli.versus.summary import per_step, shares, spread, times_as_long
from polygrain.cli.versus.worker import Side, side
from polygrain.config.project import Project
from polygrain.config.stages import stage_of
from polygrain.provenance.errors import UserError

RUN = "runs/cpu/fashion-mnist/simclr/base/seed0"
SIDES = ("polygrain", "lightly")
PARTS = "abc"
# SMoG as in lightly's example: groups, width of an embedding, entries remembered, steps between two resets
GROUPS = {"count": 300, "width": 128, "bank": 10_000}
INTERVAL = 300
WARM_UP = 4
# steps of a try, and how often every setting is tried
TRY, TRIES = 8, 2

Job = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """How many torch threads and loader workers a side uses."""

    threads: int
    workers: int

    def __str__(self) -> str:
        loading = _count(self.workers, "loader worker") if self.workers else "views in process"
        return f"{_count(self.threads, 'thread')}, {loading}"


class Progress:
    """Lines for a person on standard output, a bar on standard error: two lines a minute where nobody watches it."""

    def __init__(self, rounds: int) -> None:
        self._watched = sys.stderr.isatty()
        self._bar = tqdm(total=rounds, unit="round", mininterval=0.5 if self._watched else 30.0, leave=False)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def tell(self, doing: str) -> None:
        """Say what is being done now, in front of the bar."""
        self._bar.set_description(doing, refresh=self._watched)

    def update(self) -> None:
        """One round more is done."""
        self._bar.update()

    def say(self, line: str) -> None:
        """Print a line of the result."""
        with self._bar.external_write_mode(file=sys.stdout) if self._watched else nullcontext():
            print(line, flush=True)


@dataclass(frozen=True)
class Rounds:
    """What one side did: seconds per phase of each round, its setting, the memory that it needed."""

    setting: Setting
    phases: list[dict[str, float]]
    memory: str

    def totals(self) -> list[float]:
        """Seconds of each round."""
        return [sum(phases.values()) for phases in self.phases]


def versus(project: Project, *, parts: str = PARTS, rounds: int = 9, steps: int = 20, job: Job | None = None) -> None:
    """Print the parts of the comparison that are named: a (whole step), b (views), c (SMoG's groups).

    `steps` of each side make a round; part c takes 15 times as many, whole intervals by default. `job` replaces run and
    data by others. Raises UserError when lightly or the data are missing, and on an argument that makes no sense.
    """
    if not parts or set(parts) - set(PARTS):
        raise UserError(f"versus: --parts takes letters of '{PARTS}', not '{parts}'")
    if rounds < 1 or steps < 1:
        raise UserError("versus: --rounds and --steps must be at least 1")
    if find_spec("lightly") is None:
        raise UserError("versus: lightly is not installed; install it with `pip install .[bench]`")
    job = job or _job(project)
    cores = sorted(os.sched_getaffinity(0))
    print(
        f"polygrain against lightly {version('lightly')}, torch {version('torch')}, equal pins, equal cores, batch"
        f" {job['config']['pretrain']['batch']}; medians and quartiles of {rounds} rounds in turns",
        flush=True,
    )
    whole = [count for count in (1, 2) if count <= len(cores)] if "a" in parts else []
    with Progress((len(whole) + len(set(parts) - {"a"})) * (rounds + 1)) as progress:
        for count in whole:
            compare_steps({**job, "cores": cores[:count]}, rounds, steps, progress)
        if "a" in parts and len(cores) < 2:
            progress.say("\na. whole step on 2 cores: left out, this process may use only one")
        if "b" in parts:
            compare_views({**job, "cores": cores[:1]}, rounds, steps, progress)
        if "c" in parts:
            compare_groups({**job, "cores": cores[:1]}, rounds, 15 * steps, progress)


def _job(project: Project) -> Job:
    stage = stage_of(project, "pretrain", RUN)
    data = project.root / "data" / stage.config["dataset"]
    if not (data / "manifest.json").is_file():
        place = data.relative_to(project.root)
        raise UserError(f"{place}: not there yet; build it with `snakemake --cores all {place}/manifest.json`")
    return {"config": stage.config, "data": str(data), "groups": GROUPS}


def compare_steps(job: Job, rounds: int, steps: int, progress: Progress) -> None:
    """Part a: views, forward, loss, backward and optimiser, each side at its fastest setting."""
    cores = len(job["cores"])
    threads = range(1, cores + 1)
    settings = ([Setting(n, 0) for n in threads], [Setting(n, workers) for n in threads for workers in range(3)])
    ours, theirs = _measure({**job, "part": "step"}, settings, rounds, steps, progress)
    batch = job["config"]["pretrain"]["batch"]
    progress.say(f"\na. whole SimCLR step, {_count(cores, 'core')}; rounds of {_count(steps, 'step')}")
    for name, measured in zip(SIDES, (ours, theirs), strict=True):
        step = spread([seconds / steps * 1e3 for seconds in measured.totals()])
        progress.say(
            f"   {name:<10}{step.text(1)} ms a step, {batch / step.median * 1e3:.0f} images/s,"
            f" {measured.setting}; peak memory {measured.memory}"
        )
    progress.say(_ratio(ours.totals(), theirs.totals()))
    for name, measured in zip(SIDES, (ours, theirs), strict=True):
        progress.say(f"   {name:<10}{shares(measured.phases)}")


def compare_views(job: Job, rounds: int, steps: int, progress: Progress) -> None:
    """Part b: two views of each image in the training process, on one core."""
    both = _measure({**job, "part": "views"}, ([Setting(1, 0)],) * 2, rounds, steps, progress)
    images = steps * job["config"]["pretrain"]["batch"]
    progress.say(f"\nb. two views of each image, in process, 1 core; rounds of {images} images")
    for name, measured in zip(SIDES, both, strict=True):
        rate = spread([images / seconds for seconds in measured.totals()])
        progress.say(f"   {name:<10}{rate.text(0)} images/s; peak memory {measured.memory}")
    progress.say(_ratio(both[0].totals(), both[1].totals(), target=5))
    progress.say(
        "   polygrain: whole batches as matrix products; lightly: its SimCLR transform on one PIL image after the other"
    )


def compare_groups(job: Job, rounds: int, steps: int, progress: Progress) -> None:
    """Part c: assignment, group update and reset of SMoG, per step of an interval between two resets."""
    reset = find_spec("sklearn") is not None
    groups = {**job["groups"], "reset": reset}
    both = _measure({**job, "part": "groups", "groups": groups}, ([Setting(1, 0)],) * 2, rounds, steps, progress)
    progress.say(
        f"\nc. SMoG besides its networks, 1 core, 1 head, {groups['count']} groups, {groups['bank']:,} x"
        f" {groups['width']} features of a random network remembered; rounds of {_count(steps, 'step')}"
        + (f" and a reset, which {INTERVAL} steps share" if reset else "")
    )
    if not reset:
        progress.say(
            "   without the reset: lightly's example finds its groups with scikit-learn, which is not installed"
            " (`pip install scikit-learn`)"
        )
    parts = [[per_step(phases, steps, INTERVAL) for phases in measured.phases] for measured in both]
    totals = [[sum(phases.values()) for phases in side_rounds] for side_rounds in parts]
    for name, measured, side_totals in zip(SIDES, both, totals, strict=True):
        step = spread([seconds * 1e3 for seconds in side_totals])
        progress.say(f"   {name:<10}{step.text(3)} ms a step; peak memory {measured.memory}")
    progress.say(_ratio(totals[0], totals[1], target=3 if reset else None))
    for phase in parts[0][0]:
        ours, theirs = ([phases[phase] for phases in side_rounds] for side_rounds in parts)
        milliseconds = [f"{spread(values).median * 1e3:.3f}" for values in (ours, theirs)]
        times = times_as_long(ours, theirs).text(2)
        progress.say(f"   {phase:<14}polygrain {milliseconds[0]} ms, lightly {milliseconds[1]} ms: {times} times")
    progress.say(
        "   polygrain: unit vectors, sums over groups in one pass, writes the batch's rows of its memory;"
        " reset: 10 rounds of spherical k-means from random entries\n"
        "   lightly: a loop over the groups hit, raw vectors, copies its whole memory at every step;"
        " reset: KMeans until it settles, k-means++ start"
    )


def _measure(
    job: Job, settings: Sequence[Sequence[Setting]], rounds: int, steps: int, progress: Progress
) -> tuple[Rounds, Rounds]:
    """Both sides in turns, round by round, each at the fastest of its `settings`."""
    label = f"{job['part']} on {_count(len(job['cores']), 'core')}"
    progress.tell(f"{label}, starting")
    with side({**job, "side": SIDES[0]}) as ours, side({**job, "side": SIDES[1]}) as theirs:
        both, chosen, phases = (ours, theirs), list[Setting](), (list[dict[str, float]](), list[dict[str, float]]())
        for one, choice in zip(both, settings, strict=True):
            progress.tell(f"{label}, finding the best setting" if len(choice) > 1 else f"{label}, warming up")
            chosen.append(_fastest(one, choice))
            _warm(one, chosen[-1])
        progress.update()
        for number in range(rounds):
            progress.tell(f"{label}, round {number + 1} of {rounds}")
            for one, done in zip(both, phases, strict=True):
                done.append(one.ask({"do": "run", "steps": steps})["phases"])
            progress.update()
        memory = [_memory(one, setting) for one, setting in zip(both, chosen, strict=True)]
    return Rounds(chosen[0], phases[0], memory[0]), Rounds(chosen[1], phases[1], memory[1])


def _fastest(one: Side, settings: Sequence[Setting]) -> Setting:
    """The setting with the shortest of its tries; they are tried in turns, as a machine's speed drifts."""
    if len(settings) == 1:
        return settings[0]
    best = dict.fromkeys(settings, float("inf"))
    for _ in range(TRIES):
        for setting in settings:
            _warm(one, setting)
            seconds = sum(one.ask({"do": "run", "steps": TRY})["phases"].values())
            best[setting] = min(best[setting], seconds)
    return min(best, key=lambda setting: best[setting])


def _warm(one: Side, setting: Setting) -> None:
    one.ask({"do": "prepare", "threads": setting.threads, "workers": setting.workers})
    one.ask({"do": "run", "steps": WARM_UP})


def _memory(one: Side, setting: Setting) -> str:
    """Peak resident memory; a loader worker's includes pages that it shares with its parent."""
    peak = one.ask({"do": "close"})
    children = f" + {setting.workers} x {peak['child']:.0f} MB (partly shared)" if setting.workers else ""
    return f"{peak['memory']:.0f} MB{children}"


def _ratio(ours: Sequence[float], theirs: Sequence[float], target: int | None = None) -> str:
    ratio = times_as_long(ours, theirs).text(2)
    return f"   lightly takes {ratio} times as long" + (f"; target {target}" if target else "")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
