"""Projects of their own around the built checkout's data, in which verbs start at once."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from workflow_forks import Forks, Kill
from workflow_photos import add_photos

from polygrain.config.inputs import write_inputs
from polygrain.config.project import Project
from polygrain.config.runs import Run
from polygrain.config.stages import stages_behind
from polygrain.provenance.files import sha256_file
from polygrain.provenance.stage import Stage

WORKERS = (0, 1, 2)
SCALE = """# @package _global_
# smoke with loader workers and two thirds of its budget, judged on its own data set alone.
# Cost: a second or two a run.
defaults:
  - smoke
  - _self_

pretrain:
  workers: {workers}
  encoder_passes: 6144

evaluate:
  transfer: []
  features: {{workers: {workers}}}
  protocols:
    linear: {{values: {{iterations: 3, labels: [all]}}}}
"""


class World:
    """A project with the data of the built checkout, in which verbs start at once."""

    def __init__(self, root: Path, built: Path, *prefix: str) -> None:
        self.project = Project(root)
        for name in ("Snakefile", "requirements.lock", "params", "src", "workflow"):
            copy = shutil.copytree if (built / name).is_dir() else shutil.copy2
            copy(built / name, root / name)
        (root / "data").mkdir()
        for folder in (built / "data").iterdir():
            (root / "data" / folder.name).symlink_to(folder)
        add_photos(root)
        for workers in WORKERS:
            scale = f"smoke-workers{workers}"
            (root / f"params/scale/{scale}.yaml").write_text(SCALE.format(workers=workers))
        self.forks = Forks(root, *prefix)

    def stages(self, run: Run) -> Sequence[Stage]:
        """A run's stages that the table needs, their inputs written and nothing built."""
        shutil.rmtree(self.project.root / run.path, ignore_errors=True)
        behind = stages_behind(self.project, [run.path])
        stages = [stage for stage in behind if stage.task in ("pretrain", "features", "knn", "linear")]
        for stage in stages:
            write_inputs(self.project, stage)
        return stages

    def straight(self, stages: Sequence[Stage]) -> dict[str, str]:
        """Run all stages; SHA-256 of their outputs."""
        for stage in stages:
            assert self.run(stage) == 0, self.forks.said
        return outputs(self.project.root, stages)

    def run(self, stage: Stage, kill: Kill | None = None) -> int:
        before = self.resumed_from(stage)
        status = self.forks.run(stage.verb, "--workflow", str(stage.target), kill=kill)
        if before and not (kill and kill.event == "seconds"):
            assert f"continuing the half-done run at step {before} of " in self.forks.said
        return status

    def resumed_from(self, stage: Stage) -> int:
        """The step at which the next process goes on."""
        state = self.project.root / stage.directory / "scratch/state.pt"
        if stage.verb != "pretrain" or not state.is_file():
            return 0
        return int(torch.load(state, weights_only=True)["step"])


def outputs(root: Path, stages: Sequence[Stage]) -> dict[str, str]:
    """Name -> SHA-256 of the outputs that are there."""
    paths = [(path, str(path.relative_to(stage.directory))) for stage in stages for path in stage.outputs]
    return {name: sha256_file(root / path) for path, name in paths if (root / path).is_file()}
