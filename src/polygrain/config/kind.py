"""What all stages of one verb have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from polygrain.config.compose import one_look, stamp
from polygrain.config.project import Project
from polygrain.provenance.stage import Stage


@dataclass(frozen=True)
class Kind:
    """A kind of stage: where it stands, which configuration decides it, what follows from that."""

    place: Callable[[Path], tuple[Path, str]]
    """Target -> directory and task. Raises UserError for a target of another kind."""
    choose: Callable[[Project, Path, str], Stage]
    """The stage with its configuration from params/ and its declared cost."""
    shape: Callable[[Path, str, dict[str, Any]], Stage]
    """The stage that a configuration decides: entries, inputs and outputs."""
    files: tuple[str, ...] = ()
    """The outputs below the directory where they are the same for all stages of the kind."""

    def stage(self, project: Project, directory: Path, task: str) -> Stage:
        """The result of `choose`, cached while params/ does not change."""
        with one_look():
            return _remembered(self, project, directory, task, stamp(project.params))


@cache
def _remembered(kind: Kind, project: Project, directory: Path, task: str, stamp: int) -> Stage:
    return kind.choose(project, directory, task)
