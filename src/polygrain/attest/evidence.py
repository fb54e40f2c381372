"""Run the old and the new code for one recorded run, and compare the results."""

import json
import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polygrain.attest import executed, stretch
from polygrain.attest.changed import Place
from polygrain.attest.children import Children
from polygrain.attest.pieces import Region, holds
from polygrain.config.inputs import write_inputs
from polygrain.config.project import Project
from polygrain.provenance.environment import COUNTED
from polygrain.provenance.hashes import md5_file
from polygrain.provenance.scratch import Ended
from polygrain.provenance.stage import Stage


@dataclass
class Observed:
    """What ran and was imported in one or several processes of the new code, and the objections."""

    positions: dict[str, set[Region]] = field(default_factory=dict)
    """Path below the folder of the sources -> where the instructions that ran stand."""
    modules: set[str] = field(default_factory=set)
    """First words of the imported modules."""
    objections: list[str] = field(default_factory=list)
    steps: int = 0
    """Steps of the run that were taken."""
    whole: bool = False
    """Whether that was the recorded run from start to end."""

    def ran(self, place: Place) -> bool:
        """Whether any instruction of a place ran."""
        return any(holds(place.region, position) for position in self.positions.get(place.path, ()))

    @property
    def packages(self) -> set[str]:
        """The packages that count among what was imported."""
        return {COUNTED[name][0] for name in self.modules if name in COUNTED}


class Laboratory:
    """Runs the old and the new code, and watches the lines of `places` in the new one."""

    def __init__(self, old: Path, new: Project, places: Iterable[Place], children: Children) -> None:
        self.old, self.new, self.children = old, new, children
        lines: dict[str, set[int]] = {}
        for place in places:
            path = str((new.source / place.path).resolve())
            lines.setdefault(path, set()).update(range(place.region[0], place.region[2] + 1))
        self._files = {path: sorted(found) for path, found in lines.items()}

    def twin(self, stage: Stage) -> Observed:
        """Make the smoke twin with either code, from start to end, and compare its outputs."""
        seen = Observed()
        write_inputs(self.new, stage)
        if (self.old / stage.config_path).read_bytes() != (self.new.root / stage.config_path).read_bytes():
            seen.objections.append(f"{stage.directory}: its configuration changed, so nothing can be compared")
            return seen
        command = ("polygrain.cli.main", "pretrain", "--workflow", str(stage.directory))
        before = self.children.python(self.old, "-m", *command)
        if before.status:
            seen.objections.append(f"{stage.directory}: the old code fails: {before.last}")
            return seen
        after = self._traced(seen, *command)
        if after.status:
            seen.objections.append(f"{stage.directory}: the new code fails: {after.last}")
            return seen
        for path in stage.outputs:
            if md5_file(self.old / path) != md5_file(self.new.root / path):
                seen.objections.append(f"{path}: the new code makes other bytes than the old code")
        return seen

    def first_steps(self, stage: Stage, least: int, metrics: bytes, outputs: Mapping[str, str]) -> Observed:
        """Take the recorded run's first steps, `least` or more, and compare with its recorded metrics.

        The process ends halfway and another one continues. If the run ends within these steps, its outputs are
        compared.
        """
        seen = Observed()
        write_inputs(self.new, stage)
        last = last_step(stage.config, least)
        seen.steps, seen.whole = min(last + 1, stage.config["steps"]), last + 1 >= stage.config["steps"]
        lines = self.new.root / stage.directory / "scratch" / "first-steps.jsonl"
        for step in (max(seen.steps // 2, 1), last + 1):
            ended = self._traced(seen, "polygrain.attest.stretch", str(stage.directory), str(step), str(lines))
            if ended.status not in (0, stretch.STOPPED):
                seen.objections.append(f"{stage.directory}: the new code fails: {ended.last}")
                return seen
            if ended.status == 0:
                break
        if seen.whole:
            for path, md5 in outputs.items():
                if md5_file(self.new.root / path) != md5:
                    seen.objections.append(f"{path}: the new code makes other bytes than the recorded ones")
        elif not lines.read_bytes() or not metrics.startswith(lines.read_bytes()):
            step = _first_difference(lines.read_bytes(), metrics)
            seen.objections.append(f"{stage.outputs[1]}: from step {step} on the new code gives other values")
        return seen

    def _traced(self, seen: Observed, module: str, *arguments: str) -> Ended:
        """Run a module of the new code under the tracer."""
        with tempfile.TemporaryDirectory(prefix="polygrain-attest-") as folder:
            task, result = Path(folder, "task.json"), Path(folder, "result.json")
            task.write_text(json.dumps({"files": self._files, "result": str(result)}), encoding="utf-8")
            ended = self.children.python(self.new.root, executed.__file__, str(task), module, *arguments)
            if result.is_file():
                said = json.loads(result.read_text(encoding="utf-8"))
                source = self.new.source.resolve()
                for path, positions in said["positions"].items():
                    name = Path(path).relative_to(source).as_posix()
                    seen.positions.setdefault(name, set()).update(map(tuple, positions))
                seen.modules |= set(said["modules"])
        return ended


def last_step(config: Mapping[str, Any], least: int) -> int:
    """The first logged step at or after `least` that lies behind an epoch's end; it shows what all before it did."""
    settings = config["pretrain"]
    epoch: int = (settings["images"] or 0) // settings["batch"]
    every: int = settings["log_every"]
    return math.ceil(max(least, epoch + 1) / every) * every


def _first_difference(found: bytes, recorded: bytes) -> int:
    """The step of the first line that differs."""
    then = recorded.splitlines()
    for number, line in enumerate(found.splitlines()):
        if number >= len(then) or line != then[number]:
            return int(json.loads(line)["step"])
    return 0
