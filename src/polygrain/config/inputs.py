"""The files that decide staleness, written when the job graph is built and only when their bytes change.

A rule that wrote them would make everything below it run again; and Snakemake's own code and parameter triggers miss
edits of restored files. So each stage has its resolved configuration, its code hashes and its environment as ordinary
input files.
"""

import fcntl
import os
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from polygrain.config.compose import Config, one_look, stamp
from polygrain.config.listing import is_listed, write_listing
from polygrain.config.project import Project
from polygrain.provenance.code import Module, modules_of
from polygrain.provenance.environment import environment, packages_of
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import canonical_json, write_text
from polygrain.provenance.stage import Stage

_written: set[Path] = set()


def code_of(project: Project, stage: Stage) -> dict[str, str]:
    """Module -> hash for the import closure of a stage."""
    return {name: module.sha256 for name, module in _closure(project, stage).items()}


def environment_of(project: Project, stage: Stage) -> dict[str, Any]:
    """The pins, and the locked versions of the packages that the import closure of a stage imports."""
    return environment(project.lock, packages_of(_closure(project, stage).values()))


def _closure(project: Project, stage: Stage) -> dict[str, Module]:
    """The modules of a stage, remembered while no file of src/ changes."""
    return _modules(stage.entries, project.source, stamp(project.source, ".py"))


@cache
def _modules(entries: tuple[str, ...], source: Path, stamp: int) -> dict[str, Module]:
    return modules_of(entries, source)


def _yaml(config: Config) -> str:
    """As `yaml.safe_dump` writes it, by libyaml: five times as fast, and the same bytes."""
    return yaml.dump(config, Dumper=yaml.CSafeDumper, sort_keys=True, allow_unicode=True, width=120)


def input_texts(project: Project, stage: Stage) -> dict[Path, str]:
    """What the staleness files of a stage must contain: path -> text."""
    with one_look():
        code, packages = code_of(project, stage), environment_of(project, stage)
    return {
        stage.config_path: _yaml(stage.config),
        stage.code_path: canonical_json(code),
        stage.environment_path: canonical_json(packages),
    }


def write_inputs(project: Project, stage: Stage) -> list[str]:
    """Bring the staleness files of a stage up to date and return their paths.

    Existing outputs get an older time than these files, even if the clock was set back. Raises UserError when they
    would change while a process trains this run.
    """
    texts = input_texts(project, stage)
    for path, text in texts.items():
        file = project.root / path
        if not (file.is_file() and file.read_bytes() == text.encode()):
            _refuse_while_running(project.root, stage.directory, path)
            write_text(file, text)
            _written.add(file)
    paths = list(texts)
    if is_listed(stage):
        paths.append(stage.listing_path)
        _written.update(filter(None, [write_listing(project.root, stage)]))
    written = [project.root / path for path in paths if project.root / path in _written]
    if written:
        _date_back([project.root / path for path in stage.outputs], min(file.stat().st_mtime_ns for file in written))
    return [str(path) for path in paths]


def _refuse_while_running(root: Path, directory: Path, path: Path) -> None:
    """Else a run in training would not fit its changed input at its end, and would be removed."""
    lock = root / directory / "scratch" / "lock"
    if not (root / path).is_file() or not lock.is_file():
        return
    with lock.open(encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{path}: would change, but process {stream.read().strip() or 'unknown'} is training {directory} from"
                " it; wait for it or stop it, or undo the change"
            ) from None


def _date_back(outputs: list[Path], moment: int) -> None:
    """Set outputs with a time in the future, as after the clock was set back, to a second before `moment`, ns.

    Snakemake compares times: such an output would count as newer than any edit for some time.
    """
    for output in outputs:
        if os.path.lexists(output) and output.lstat().st_mtime_ns >= moment:
            os.utime(output, ns=(moment - 10**9, moment - 10**9), follow_symlinks=False)
