"""Temporary files of processes that were killed while they wrote."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

_NAME = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)\.tmp")


def remove_leftovers(paths: Sequence[Path]) -> list[Path]:
    """Remove the temporary files beside `paths` that no live process writes; returns them."""
    removed = []
    for folder in sorted({path.parent for path in paths}):
        names = {path.name for path in paths if path.parent == folder}
        for leftover in sorted(folder.glob(".*.tmp")):
            match = _NAME.fullmatch(leftover.name)
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
        return True
    return True
