"""What every reader returns, and how a file is fetched from the first source that answers."""

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
    """int64 [N], 0 .. number of classes - 1; -1 where unlabelled."""
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
    unlabelled: np.ndarray | None = None
    """Positions of images that come without a label, in none of the other splits; None when there are none."""


@dataclass(frozen=True)
class Source:
    """One place to fetch raw files from.

    `fetch` is given an empty folder to work in; it returns the folder inside that holds the raw files, or raises
    OSError with the reason.
    """

    name: str
    fetch: Callable[[Path], Path]


def fetch_first(
    dataset: str,
    local: Callable[[], Path],
    sources: Sequence[Source],
    check: Callable[[Path], None],
    remedy: str,
) -> Path:
    """The folder of the first place with the right content: the local folder, then the cache, then each source.

    `check` raises UserError on a folder whose files are not the pinned ones. Raises UserError that lists every place
    with its reason, and the remedy, when none answers.
    """
    cache = cache_folder() / dataset
    places: list[tuple[str, Callable[[], Path]]] = [("local folder", local), ("cache", partial(_existing, cache))]
    places += [(source.name, partial(_fetched, source, cache, check)) for source in sources]
    reasons = []
    for name, place in places:
        try:
            folder = place()
            check(folder)
            return folder
        except (OSError, UserError) as error:
            reasons.append(f"{name}: {' '.join(str(error).split())}")
    raise UserError(f"{dataset}: no source answered. Tried {'; '.join(reasons)}. {remedy}")


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise OSError("nothing there yet")
    return folder


def _fetched(source: Source, cache: Path, check: Callable[[Path], None]) -> Path:
    """The cache after a fetch into it.

    Only whole, checked files move there: what a killed or misled download leaves behind must not be read again.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
        folder = source.fetch(Path(scratch))
        check(folder)
        for path in folder.iterdir():
            if path.is_file():
                path.replace(cache / path.name)
    return cache


def local_folder(dataset: str, holds: Callable[[Path], bool], what: str) -> Path:
    """The first local folder that holds `what`. Raises OSError when none does."""
    for folder in local_folders(dataset):
        if holds(folder):
            return folder
    raise OSError(f"no {what} in {local_folders(dataset)[-1]}")


def cache_folder() -> Path:
    """Where fetched raw files are kept: POLYGRAIN_CACHE, else polygrain in the user's cache folder.

    Raises UserError for a user without a home folder.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    try:
        return Path(chosen or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "polygrain"))
    except RuntimeError:
        raise UserError(f"no home folder to keep raw data in; run: export {CACHE_VARIABLE}=FOLDER") from None


def local_folders(dataset: str) -> list[Path]:
    """Candidate folders under POLYGRAIN_DATA. Raises OSError when it is not set or does not exist."""
    named = os.environ.get(FOLDER_VARIABLE)
    if not named:
        raise OSError(f"{FOLDER_VARIABLE} is not set")
    folder = Path(named)
    if not folder.is_dir():
        raise OSError(f"{FOLDER_VARIABLE}={named} is not a folder")
    return [folder / dataset, folder]
