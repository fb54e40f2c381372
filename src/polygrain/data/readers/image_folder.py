"""Any folder of images by class: {root}/train/{class}/*.jpg, {root}/val or {root}/test likewise, {root}/unlabelled.

The root is a folder under POLYGRAIN_DATA, named by `folder` in the data set's YAML (null: as the data set). `classes`
lists the class folders to take, in the order of their labels; null takes every folder of train, sorted. `expected`
holds what a whole copy has (number of `classes`, of `train` and `test` images), null where nobody counted.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polygrain.data.raw import fetch_first, local_folders
from polygrain.data.shards import EncodedRaw, no_images
from polygrain.provenance.errors import UserError

if TYPE_CHECKING:
    from polygrain.config.typed import Dataset

KEYS = ("folder", "classes", "expected", "licence", "source")
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
TRAIN, UNLABELLED = "train", "unlabelled"
TEST = ("val", "test")  # the first that is there; ImageNet's own test part has no labels


def read(config: "Dataset") -> EncodedRaw:
    """List the files. Raises UserError when the folder is not found or does not hold what the YAML says."""
    missing = [key for key in KEYS if key not in config]
    if missing:
        raise UserError(
            f"params/dataset/{config['name']}.yaml: reader image-folder needs the keys {', '.join(missing)} too;"
            " imagenet-1k.yaml beside it says what they mean"
        )
    name, folder = config["name"], config["folder"] or config["name"]
    root = fetch_first(
        folder,
        partial(_local, folder),
        (),
        check,
        f"Put the images into train/CLASS/ and val/CLASS/ of a folder {folder} and set POLYGRAIN_DATA to its parent.",
    )
    classes = config["classes"] or class_folders(root / TRAIN)
    names, labels, test, unlabelled = listing(root, classes)
    _check_whole(config, root, classes, labels, test)
    return EncodedRaw(
        images=no_images(len(names)),
        labels=labels,
        test=test,
        unlabelled=unlabelled,
        classes=tuple(classes),
        coarse_names=("all",),
        coarse_of_class=(0,) * len(classes),
        hashes={},
        licence=config["licence"] or "not stated",
        source=config["source"] or f"images of {name} by class folder",
        root=root,
        names=names,
    )


def check(root: Path) -> None:
    """Raise UserError unless the folder has class folders to train on."""
    if not (root / TRAIN).is_dir():
        raise UserError(f"{root / TRAIN}: not found")
    if not class_folders(root / TRAIN):
        raise UserError(f"{root / TRAIN}: holds no class folders")


def class_folders(folder: Path) -> list[str]:
    """Names of the folders inside `folder`, sorted; hidden ones are left out."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def listing(root: Path, classes: Sequence[str]) -> tuple[list[str], np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Names of all image files below `root`, their labels, and the positions of the test and unlabelled ones.

    Train comes first, then test, then what is unlabelled, each sorted by class and name. Raises UserError on a class
    without images, and on a test part that is not sorted into class folders.
    """
    names: list[str] = []
    labels: list[int] = []
    parts = {TRAIN: _by_class(root, TRAIN, classes)}
    for part in _test_part(root):
        parts["test"] = _by_class(root, part, classes)
    if (root / UNLABELLED).is_dir():
        parts[UNLABELLED] = [(name, -1) for name in images_below(root, UNLABELLED)]
    positions = {}
    for part, members in parts.items():
        positions[part] = np.arange(len(names), len(names) + len(members), dtype=np.int64)
        names += [name for name, _ in members]
        labels += [label for _, label in members]
    return names, np.array(labels, dtype=np.int64), positions.get("test"), positions.get(UNLABELLED)


def images_below(root: Path, folder: str) -> list[str]:
    """Names, relative to `root`, of the image files at any depth of `folder`, sorted; hidden files are left out."""
    found = []
    for place, _, files in os.walk(root / folder, followlinks=True):
        prefix = Path(place).relative_to(root).as_posix()
        found += [f"{prefix}/{file}" for file in files if file.lower().endswith(SUFFIXES) and not file.startswith(".")]
    return sorted(found)


def _by_class(root: Path, part: str, classes: Sequence[str]) -> list[tuple[str, int]]:
    members = []
    for label, name in enumerate(classes):
        found = images_below(root, f"{part}/{name}")
        if not found:
            raise UserError(
                f"{root / part / name}: no images of class '{name}'; every class needs its folder in {part}/,"
                " or `classes` in the data set's YAML must leave it out"
            )
        members += [(image, label) for image in found]
    return members


def _test_part(root: Path) -> list[str]:
    """The name of the test part, in a list; empty when there is none."""
    return [part for part in TEST if (root / part).is_dir()][:1]


def _check_whole(
    config: "Dataset", root: Path, classes: Sequence[str], labels: np.ndarray, test: np.ndarray | None
) -> None:
    """Raise UserError on a test class that train lacks, and when the folder holds more or fewer than a whole copy."""
    for part in _test_part(root) if config["classes"] is None else []:
        unknown = sorted(set(class_folders(root / part)) - set(classes))
        if unknown:
            raise UserError(f"{root / part / unknown[0]}: a class that {TRAIN}/ has no folder of; add or remove it")
    tests = 0 if test is None else len(test)
    counts = {"classes": len(classes), "train": int((labels >= 0).sum()) - tests, "test": tests}
    for what, expected in (config["expected"] or {}).items():
        if expected is not None and counts[what] != expected:
            raise UserError(
                f"{root}: {counts[what]} {what} where {config['name']} has {expected}; complete the copy, or change"
                f" expected.{what} in params/dataset/{config['name']}.yaml"
            )


def _local(folder: str) -> Path:
    for candidate in local_folders(folder):
        if (candidate / TRAIN).is_dir():
            return candidate
    raise OSError(f"no folder train in {local_folders(folder)[0]}")
