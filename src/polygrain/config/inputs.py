"""The files that decide staleness, written when the job graph is built and only when their bytes change.

A rule that wrote them would make everything below it run again; and Snakemake's own code and parameter triggers miss
edits of restored files. So each stage has its resolved configuration, its code hashes and the environment as ordinary
input files.
"""

import fcntl
import os
from functools import cache
from pathlib import Path

import yaml

from polygrain.config.project import Project
from polygrain.config.stages import VERBS, Stage
from polygrain.provenance.code import code_hashes
from polygrain.provenance.environment import NUMBERS, PACKAGES, environment
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import canonical_json, write_text

_written: set[Path] = set()


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
    """Bring the staleness files of a stage up to date and return their paths.

    Outputs that stand there from older ones are made older than these, whatever the clock says. Raises UserError when
    they would change under a process that trains this run.
    """
    texts = input_texts(project, stage)
    for path, text in texts.items():
        file = project.root / path
        if not (file.is_file() and file.read_bytes() == text.encode()):
            _refuse_while_running(project.root, stage.directory, path)
            write_text(file, text)
            _written.add(file)
    written = [project.root / path for path in texts if project.root / path in _written]
    if written:
        _date_back([project.root / path for path in stage.outputs], min(file.stat().st_mtime_ns for file in written))
    return [str(path) for path in texts]


def _refuse_while_running(root: Path, directory: Path, path: Path) -> None:
    """A run that is being trained would end beside a file that it was not made from, and be thrown away."""
    lock = root / directory / "scratch" / "lock"
    if not (root / path).is_file() or not lock.is_file():
        return
    with lock.open() as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{path}: would change, but process {stream.read().strip() or 'unknown'} is training {directory} from"
                " it; wait for it or stop it, or undo the change"
            ) from None


def _date_back(outputs: list[Path], moment: int) -> None:
    """Set outputs from the future, as they are after the clock was put back, to a second before `moment`, ns.

    Snakemake compares times: such an output would pass for newer than any edit until the clock has caught up.
    """
    for output in outputs:
        if os.path.lexists(output) and output.lstat().st_mtime_ns >= moment:
            os.utime(output, ns=(moment - 10**9, moment - 10**9), follow_symlinks=False)
