"""Refuse outputs whose inputs changed while the job ran, and remove temporary files of killed jobs.

Build tools compare times: if a configuration is edited while the job runs, the output is newer, and would count as made
from the edited one.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from polygrain.provenance.code import PACKAGE
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import read_json, sha256_file

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)\.tmp")


@contextmanager
def unchanged(inputs: Sequence[Path], outputs: Sequence[Path]) -> Iterator[None]:
    """Run a job's body; when an input has other bytes after it, remove the outputs and raise UserError.

    Inputs are hashed before the body, and after it again where a file's time, size or number changed.
    """
    before = {path: (_stamp(path), sha256_file(path)) for path in inputs}
    yield
    for path, (stamp, content) in before.items():
        if not path.is_file() or (_stamp(path) != stamp and sha256_file(path) != content):
            for output in outputs:
                output.unlink(missing_ok=True)
            raise UserError(
                f"{path}: changed while a job used it; the outputs of the job were removed. Run the same command again"
            )


@contextmanager
def hashed(code: Path, outputs: Sequence[Path]) -> Iterator[None]:
    """Run a job's body; when it loaded a module that `code` (module -> hash) does not list, remove the outputs.

    No import statement shows code that is loaded by name, so the configuration must name it. Raises UserError naming
    the module.
    """
    before = set(sys.modules)
    yield
    known = read_json(code)
    for name in sorted(sys.modules.keys() - before):
        if name.partition(".")[0] == PACKAGE and name not in known:
            for output in outputs:
                output.unlink(missing_ok=True)
            raise UserError(
                f"{name}: loaded by this job, but not listed in {code}, so an edit of it would not be noticed; the"
                " outputs of the job were removed. Import the module, or write the recipe's whole name as one string"
                " in the method's file"
            )


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def remove_leftovers(paths: Sequence[Path]) -> list[Path]:
    """Remove the temporary files of killed processes beside `paths`; returns them."""
    removed = []
    for folder in sorted({path.parent for path in paths}):
        names = {path.name for path in paths if path.parent == folder}
        for leftover in sorted(folder.glob(".*.tmp")):
            match = _TEMPORARY.fullmatch(leftover.name)
            if match and match["name"] in names and not _alive(int(match["process"])):
                leftover.unlink(missing_ok=True)
                removed.append(leftover)
    return removed


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
