"""Any folder of images by class: {root}/train/{class}/*.jpg, {root}/val or {root}/test likewise, {root}/unlabelled.

The root is a folder under POLYGRAIN_DATA, named by `folder` in the data set's YAML (null: as the data set). `classes`
lists the class folders to take, in the order of their labels; null takes every folder of train, sorted. `parts` says
which folder is train, test or unlabelled where the names differ. `expected` holds what a whole copy has (number of
`classes`, of `train` and `test` images), null where nobody counted.

Hidden files and folders (`.` or `@` before the name) are left out. Links are followed, but not round in circles.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polygrain.data.files import EncodedRaw, no_images
from polygrain.data.raw import fetch_first, local_folders
from polygrain.data.tally import Left, shown, suffix
from polygrain.provenance.errors import UserError

if TYPE_CHECKING:
    from polygrain.config.typed import Dataset

KEYS = ("folder", "classes", "expected", "licence", "source")
SUFFIXES = (".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
HIDDEN = (".", "@")
TRAIN, TEST, UNLABELLED = "train", "test", "unlabelled"
TEST_NAMES = ("val", "test")  # a labelled folder of another name is the test part only where the YAML says so


@dataclass(frozen=True)
class Listing:
    """The image files of a folder: train first, then test, then unlabelled, each sorted by class and name."""

    names: list[str] = field(default_factory=list)
    """Below the folder, with forward slashes."""
    labels: list[int] = field(default_factory=list)
    positions: dict[str, np.ndarray] = field(default_factory=dict)
    """Of the parts that there are, int64."""
    left: Left = field(default_factory=Counter)
    """How many were left out, by reason and suffix."""

    def add(self, part: str, members: Sequence[tuple[str, int]]) -> None:
        """Append a part's names and labels."""
        self.positions[part] = np.arange(len(self.names), len(self.names) + len(members), dtype=np.int64)
        self.names.extend(name for name, _ in members)
        self.labels.extend(label for _, label in members)


def read(config: "Dataset") -> EncodedRaw:
    """List the files. Raises UserError when the folder is not found or does not hold what the YAML says."""
    where = f"params/dataset/{config['name']}.yaml"
    missing = [key for key in KEYS if key not in config]
    if missing:
        raise UserError(
            f"{where}: reader image-folder needs the keys {', '.join(missing)} too;"
            " imagenet-1k.yaml beside it says what they mean"
        )
    name, given = config["name"], config.get("parts") or {}
    train = given.get(TRAIN) or TRAIN
    root = _root(config, train)
    classes = config["classes"] or class_folders(root / train)
    parts = _parts(root, given, classes, where)
    listed = listing(root, classes, parts)
    _check_whole(config, root, classes, parts, listed)
    return EncodedRaw(
        images=no_images(len(listed.names)),
        labels=np.array(listed.labels, dtype=np.int64),
        test=listed.positions.get(TEST),
        unlabelled=listed.positions.get(UNLABELLED),
        classes=tuple(classes),
        coarse_names=("all",),
        coarse_of_class=(0,) * len(classes),
        hashes={},
        licence=config["licence"] or "not stated",
        source=config["source"] or f"images of {name} by class folder",
        root=root,
        names=listed.names,
        left=listed.left,
        duplicates=config.get("duplicates", "refuse"),
    )


def watched(config: "Dataset", root: Path | None = None) -> tuple[Path, list[str]]:
    """The folder that is read, `root` where that is known, and the names below it of all files that may be packed.

    Raises UserError when the folder is not found, or for a link that leads back to a folder above it.
    """
    given = config.get("parts") or {}
    train = given.get(TRAIN) or TRAIN
    root = root or _root(config, train)
    tests = (given[TEST],) if TEST in given else TEST_NAMES
    classes = config["classes"] or class_folders(root / train)
    places = [f"{part}/{name}" for part in (train, *tests) if part for name in classes]
    if (unlabelled := given.get(UNLABELLED, UNLABELLED)) is not None:
        places.append(unlabelled)
    return root, [name for place in places for name in images_below(root, place, Counter())]


def _root(config: "Dataset", train: str) -> Path:
    folder = config["folder"] or config["name"]
    return fetch_first(
        folder,
        partial(_local, folder, train),
        (),
        partial(check, train=train),
        f"Put the images into train/CLASS/ and val/CLASS/ of a folder {folder} and set POLYGRAIN_DATA to its parent.",
    )


def check(root: Path, train: str) -> None:
    """Raise UserError unless the folder has class folders to train on."""
    if not (root / train).is_dir():
        raise UserError(f"{root / train}: not found")
    if not any(_is(entry.is_dir) and not _hidden(entry) for entry in os.scandir(root / train)):
        raise UserError(f"{root / train}: holds no class folders")


def class_folders(folder: Path) -> list[str]:
    """Names of the folders inside `folder`, sorted; hidden ones are left out. Raises UserError on one not in UTF-8."""
    names = sorted(entry.name for entry in os.scandir(folder) if _is(entry.is_dir) and not _hidden(entry))
    for name in names:
        try:
            os.fsencode(name).decode()
        except UnicodeDecodeError:
            raise UserError(f"{folder / shown(name)}: the folder's name is not UTF-8; rename it") from None
    return names


def listing(root: Path, classes: Sequence[str], parts: Mapping[str, str]) -> Listing:
    """The files of `parts`, which maps train, test and unlabelled to their folders below `root`.

    Raises UserError on a class without images, on a part that is not sorted into class folders, and on a link that
    leads back to a folder above it.
    """
    listed = Listing()
    for part, folder in parts.items():
        if part == UNLABELLED:
            listed.add(part, [(name, -1) for name in images_below(root, folder, listed.left)])
            continue
        members = []
        for label, name in enumerate(classes):
            found = images_below(root, f"{folder}/{name}", listed.left)
            if not found:
                raise UserError(
                    f"{root / folder / name}: no images of class '{name}'; every class needs its folder in {folder}/,"
                    " or `classes` in the data set's YAML must leave it out"
                )
            members += [(image, label) for image in found]
        listed.add(part, members)
        _count_beside(root / folder, classes, "in no class", listed.left)
    _count_beside(root, list(parts.values()), "in no part", listed.left)
    return listed


def images_below(root: Path, folder: str, left: Left) -> list[str]:
    """Names, relative to `root`, of the image files at any depth of `folder`, sorted; the others are counted in `left`.

    Raises UserError on a link that leads back to a folder above it.
    """
    if not (root / folder).is_dir():
        return []
    above = tuple(os.path.realpath(place) for place in (root / folder).parents if place.is_relative_to(root))
    return sorted(_walk(root, folder, above, left))


def _walk(root: Path, folder: str, above: tuple[str, ...], left: Left) -> Iterator[str]:
    real = os.path.realpath(root / folder)
    if any(place == real or place.startswith(f"{real.rstrip('/')}/") for place in above):
        raise UserError(f"{shown(root / folder)}: a link to {shown(real)}, a folder above it; remove the link")
    with os.scandir(root / folder) as entries:
        for entry in entries:
            name = f"{folder}/{entry.name}"
            if (reason := _unread(entry)) is not None:
                left[reason, _kind(entry)] += 1
            elif _is(entry.is_dir):
                yield from _walk(root, name, (*above, real), left)
            else:
                yield name


def _unread(entry: "os.DirEntry[str]") -> str | None:
    """Why an entry is neither an image nor a folder to look into; None when it is one."""
    if _hidden(entry):
        return "hidden"
    if _is(entry.is_dir):
        return None
    if not _is(entry.is_file):
        return "no regular file"  # to read from a pipe would wait for ever
    return None if suffix(entry.name) in SUFFIXES else "not an image by its name"


def _is(what: Callable[[], bool]) -> bool:
    try:
        return what()
    except OSError:  # a link to itself
        return False


def _hidden(entry: "os.DirEntry[str]") -> bool:
    return entry.name.startswith(HIDDEN)


def _kind(entry: "os.DirEntry[str]") -> str:
    return "folders" if _is(entry.is_dir) else suffix(entry.name)


def _count_beside(folder: Path, taken: Sequence[str], reason: str, left: Left) -> None:
    """Count what lies in `folder` beside the folders that are taken."""
    known = set(taken)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name not in known:
                left["hidden" if _hidden(entry) else reason, _kind(entry)] += 1


def _parts(root: Path, given: Mapping[str, str | None], classes: Sequence[str], where: str) -> dict[str, str]:
    """The folder of each part that there is, train first. Raises UserError when it is open which folder is the test."""
    own = UNLABELLED if (root / UNLABELLED).is_dir() else None
    chosen: dict[str, str | None] = {TRAIN: TRAIN, UNLABELLED: own, **given}
    if TEST not in chosen:
        chosen[TEST] = _test_folder(root, {chosen[TRAIN], chosen[UNLABELLED]}, classes, where)
    parts = {part: folder for part in (TRAIN, TEST, UNLABELLED) if (folder := chosen[part]) is not None}
    for part, folder in parts.items():
        if not (root / folder).is_dir():
            raise UserError(f"{root / folder}: not found, but parts.{part} in {where} names it; correct the name")
    return parts


def _test_folder(root: Path, taken: set[str | None], classes: Sequence[str], where: str) -> str | None:
    """The one labelled folder beside train, where its name leaves no doubt; None when there is none."""
    others = [name for name in class_folders(root) if name not in taken]
    labelled = [name for name in others if any((root / name / label).is_dir() for label in classes)]
    if len(labelled) > 1 or not set(labelled) <= set(TEST_NAMES):
        raise UserError(
            f"{root}: beside {TRAIN} there are images by class in {', '.join(labelled)}; say in {where} which folder is"
            f" the test part, as in `parts: {{test: {labelled[-1]}}}`, or `parts: {{test: null}}` for none"
        )
    return next((name for name in (*labelled, *TEST_NAMES) if (root / name).is_dir()), None)


def _check_whole(
    config: "Dataset", root: Path, classes: Sequence[str], parts: Mapping[str, str], listed: Listing
) -> None:
    """Raise UserError on a test class that train lacks, and when the folder holds more or fewer than a whole copy."""
    if TEST in parts and config["classes"] is None:
        unknown = sorted(set(class_folders(root / parts[TEST])) - set(classes))
        if unknown:
            raise UserError(f"{root / parts[TEST] / unknown[0]}: a class that {parts[TRAIN]}/ lacks; add or remove it")
    counts = {"classes": len(classes), **{part: len(listed.positions.get(part, ())) for part in (TRAIN, TEST)}}
    for what, expected in (config["expected"] or {}).items():
        if expected is not None and counts[what] != expected:
            raise UserError(
                f"{root}: {counts[what]} {what} where {config['name']} has {expected}; complete the copy, or change"
                f" expected.{what} in params/dataset/{config['name']}.yaml"
            )


def _local(folder: str, train: str) -> Path:
    for candidate in local_folders(folder):
        if (candidate / train).is_dir():
            return candidate
    raise OSError(f"no folder {train} in {local_folders(folder)[0]}")
