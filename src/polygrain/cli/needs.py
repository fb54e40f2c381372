"""What a build needs of the machine and the user, checked before it starts."""

import getpass
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from polygrain.data.raw import CACHE_VARIABLE, cache_folder
from polygrain.provenance.errors import UserError

# Table 1 with its data, half-done states and the objects of `record`: 2.5 GB.
_SPACE = 3 * 10**9


def missing(root: Path) -> list[str]:
    """What a build in `root` lacks, a line with its remedy each."""
    return [*_person(), *_folders(root)]


def _person() -> Iterator[str]:
    """Without these Snakemake and DVC end in a traceback, as in a container with a numeric user."""
    try:
        Path.home()
    except RuntimeError:
        yield "this user has no home folder; run: export HOME=FOLDER, one that you may write"
    try:
        getpass.getuser()
    except (KeyError, OSError):
        yield "this user has no name; run: export USER=NAME, any name"


def _folders(root: Path) -> Iterator[str]:
    if not os.access(root, os.W_OK):
        yield f"{root}: you may not write here; work in a clone of your own"
    free = shutil.disk_usage(root).free
    if free < _SPACE:
        yield f"{root}: {free / 1e9:.1f} GB are free, table 1 needs {_SPACE / 1e9:.0f}; free space, or work elsewhere"
    try:
        cache = cache_folder()
    except UserError:
        return  # no home folder: said before
    there = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    if not os.access(there, os.W_OK) or not there.is_dir():
        yield f"{there}: you may not write here, where raw data are kept; run: export {CACHE_VARIABLE}=FOLDER"
