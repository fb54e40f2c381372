"""The files that decide staleness, written when the job graph is built and only when their bytes change.

A rule that wrote them would make everything below it run again; and Snakemake's own code and parameter triggers miss
edits of restored files. So each stage has its resolved configuration, its code hashes and the environment as ordinary
input files.
"""

from functools import cache
from pathlib import Path

import yaml

from polygrain.config.project import Project
from polygrain.config.stages import VERBS, Stage
from polygrain.provenance.code import code_hashes
from polygrain.provenance.environment import NUMBERS, PACKAGES, environment
from polygrain.provenance.files import canonical_json, write_if_changed


@cache
def _environment(lock: Path, packages: tuple[str, ...]) -> str:
    return canonical_json(environment(lock, packages))


def input_texts(project: Project, stage: Stage) -> dict[Path, str]:
    """What the staleness files of a stage must contain: path -> text."""
    hashes = code_hashes(stage.entries, project.source)
    return {
        stage.config_path: yaml.safe_dump(stage.config, sort_keys=True, allow_unicode=True, width=120),
        stage.code_path: canonical_json(hashes),
        stage.environment_path: _environment(project.lock, NUMBERS if stage.verb in VERBS else PACKAGES),
    }


def write_inputs(project: Project, stage: Stage) -> list[str]:
    """Bring the staleness files of a stage up to date and return their paths."""
    texts = input_texts(project, stage)
    for path, text in texts.items():
        write_if_changed(project.root / path, text)
    return [str(path) for path in texts]
