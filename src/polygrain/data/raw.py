"""What every reader returns, and how a file is fetched from the first source that answers."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polygrain.provenance.errors import UserError

FOLDER_VARIABLE = "POLYGRAIN_DATA"
CACHE_VARIABLE = "POLYGRAIN_CACHE"


@dataclass(frozen=True)
class Raw:
    """A data set as its authors ship it, decoded and verified."""

    images: np.ndarray
    """uint8 [N, C, H, W]."""
    labels: np.ndarray
    """int64 [N], 0 .. number of classes - 1."""
    test: np.ndarray | None
    """Positions of the authors' test split, or None when they give none."""
    classes: tuple[str, ...]
    coarse_names: tuple[str, ...]
    coarse_of_class: tuple[int, ...]
    """Superclass of each class."""
    hashes: dict[str, str]
    """SHA-256 of each raw file's decompressed content."""
    licence: str
    source: str
    """One line on where the data set comes from, whichever copy was read."""


@dataclass(frozen=True)
class Source:
    """One place that may hold the raw files: `fetch` returns the folder that does, or raises with the reason."""

    name: str
    fetch: Callable[[Path], Path]


def fetch_first(dataset: str, sources: Sequence[Source], check: Callable[[Path], None], remedy: str) -> Path:
    """The folder of the first source that answers with the right content.

    `check` raises UserError on a folder whose files are not the pinned ones. Raises UserError that lists every source
    with its reason, and the remedy, when none answers.
    """
    cache = cache_folder() / dataset
    reasons = []
    for source in sources:
        try:
            folder = source.fetch(cache)
            check(folder)
            return folder
        except (OSError, UserError, ValueError) as error:
            reasons.append(f"{source.name}: {' '.join(str(error).split())}")
    raise UserError(f"{dataset}: no source answered. Tried {'; '.join(reasons)}. {remedy}")


def cache_folder() -> Path:
    """Where fetched raw files are kept: POLYGRAIN_CACHE, else polygrain in the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polygrain"


def local_folders(dataset: str) -> list[Path]:
    """Candidate folders under POLYGRAIN_DATA. Raises OSError when it is not set or does not exist."""
    named = os.environ.get(FOLDER_VARIABLE)
    if not named:
        raise OSError(f"{FOLDER_VARIABLE} is not set")
    folder = Path(named)
    if not folder.is_dir():
        raise OSError(f"{FOLDER_VARIABLE}={named} is not a folder")
    return [folder / dataset, folder]
