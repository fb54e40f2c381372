"""One run rebuilt under kills: pre-training, features and evaluation, each resumed until it is finished."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polygrain.cli.determinism.child import Outcome, Stop, run, trigger
from polygrain.cli.determinism.plan import Point, draw
from polygrain.cli.determinism.scratch import Claims, hashes
from polygrain.config.runs import Run
from polygrain.config.stages import Stage

BAR_STEPS = 8
"""How far, in steps, a progress bar of three digits may be from the truth."""
_SECONDS = {"pretrain": 6.0, "features": 15.0, "evaluate": 15.0}  # of a stage that trains nothing, until one was timed
_LAPS = 50  # times that evaluation is repeated for kills that came too late


@dataclass
class Tally:
    """What happened to one run."""

    run: Run
    steps: int
    reference: str
    kills: Counter[str] = field(default_factory=Counter)
    """By where they struck."""
    resumes: int = 0
    compared: int = 0
    """Final files whose bytes were compared, those that stood there after a kill included."""
    faults: list[str] = field(default_factory=list)
    """Outputs with other bytes than the reference, and half-done runs that could not be continued."""


class Rebuild:
    """Drives one run in the scratch project at `root`. `on_kill` is called after each kill."""

    def __init__(
        self,
        root: Path,
        stages: Sequence[Stage],
        claims: Claims,
        tally: Tally,
        stop: Stop,
        on_kill: Callable[[], object],
    ) -> None:
        self.root, self.stages, self.claims, self.tally = root, stages, claims, tally
        self.stop, self.on_kill = stop, on_kill
        self.folder = root / tally.run.path
        settings: dict[str, Any] = stages[0].config["pretrain"]
        self.batch: int = settings["batch"]
        self.epoch: int = settings["images"] // self.batch
        self.usual = dict(_SECONDS)

    def go(self, kills: int, seed: int) -> None:
        """Kill as planned; what a stage outran is made up for in the last one. Every finished output is compared."""
        points, missed = draw(kills, self.tally.steps, seed, str(self.tally.run.path)), 0
        for stage in self.stages:
            missed += self._finish(stage, points[stage.verb])
        for lap in range(_LAPS):
            if not missed:
                return
            for path in stage.outputs:
                (self.root / path).unlink()
            missed = self._finish(stage, [Point("time", (lap * 0.37 + 0.1) % 1.0)] * missed)

    def _finish(self, stage: Stage, points: Sequence[Point]) -> int:
        """Run a stage to its end, killed at each point; returns how many came too late."""
        for number, point in enumerate(points):
            if not self._attempt(stage, point):
                return len(points) - number
        self._attempt(stage, None)
        return 0

    def _attempt(self, stage: Stage, point: Point | None) -> bool:
        """One process; whether it was killed."""
        reached = None
        if point is not None:
            outputs = [self.root / path for path in stage.outputs]
            usual = self.usual[stage.verb]
            reached = trigger(point, batch=self.batch, usual=usual, folder=self.folder, outputs=outputs)
        delay = point.delay if point is not None else 0.0
        outcome = run(stage.verb, stage.directory, self.root, reached, delay, self.stop)
        self.tally.resumes += "continuing the half-done run" in outcome.text
        if "starting over" in outcome.text:
            self.tally.faults.append(f"{stage.directory}: a state left by a kill could not be continued")
        if outcome.killed:
            self.tally.kills[self._place(stage, outcome)] += 1
            self.on_kill()
        else:
            self.usual[stage.verb] = outcome.seconds
        self._compare(stage, whole=not outcome.killed)
        return outcome.killed

    def _place(self, stage: Stage, outcome: Outcome) -> str:
        """Where a kill struck, from what it left and what the process had shown."""
        if stage.verb != "pretrain":
            return stage.verb
        if (self.folder / f"scratch/.state.pt.{outcome.process}.tmp").exists():
            return "saving"
        if (self.folder / "checkpoint.safetensors").exists() or any(self.folder.glob(f".*.{outcome.process}.tmp")):
            return "publishing"
        if outcome.images is None or self.tally.steps == 0:
            return "start-up"
        into = round(outcome.images / self.batch) % self.epoch
        return "mid-epoch" if BAR_STEPS < into < self.epoch - BAR_STEPS else "about an epoch's end"

    def _compare(self, stage: Stage, *, whole: bool) -> None:
        """Hold what stands under a final name, at any time, against the reference."""
        for path, found in hashes(self.root, [stage]).items():
            self.tally.compared += 1
            if found != self.claims[path]:
                self.tally.faults.append(f"{path}: differs from the reference{'' if whole else ', after a kill'}")
        if whole:
            missing = [str(path) for path in stage.outputs if not (self.root / path).is_file()]
            self.tally.faults += [f"{path}: missing after a whole run" for path in missing]
