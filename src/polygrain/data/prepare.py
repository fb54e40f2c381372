"""From a reader's images to the packed format: splits, statistics, manifest."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from polygrain.data.packed import ARRAYS, MANIFEST
from polygrain.data.raw import Raw
from polygrain.nn.random import hash64
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import atomic_path, canonical_json, sha256_file, write_bytes, write_text
from polygrain.provenance.npz import npz_bytes

if TYPE_CHECKING:  # types and what a stage says of itself decide no output: they stay out of the code hash
    from polygrain.config.typed import Dataset
    from polygrain.provenance.stage import Stage

MeanStd = tuple[Sequence[float], Sequence[float]]

UNLABELLED = "unlabelled"
STATISTICS_BLOCK = 1024  # images counted at once: the pixels of a large data set would not fit twice


def run(stage: "Stage") -> None:
    """Do the prepare stage. Raises UserError as `prepare` does."""
    prepare(cast("Dataset", stage.config), stage.directory)


def prepare(config: "Dataset", out: Path) -> None:
    """Read data set `config["name"]` through `config["reader"]` and pack it into `out`, the manifest last.

    `validation` images are held out of the training split, and `test` images too where the authors give no test
    split (0 where they do). Raises UserError when no source answers, when validation is larger than what it leaves
    for train, or when a split would lack a class.
    """
    raw: Raw = load_reader(config["reader"]).read()
    check_sizes(raw, config)
    splits = split(raw, config)
    check_splits(config["name"], raw, splits)
    write_array(out / "images.npy", raw.images)
    write_array(out / "labels.npy", raw.labels)
    write_bytes(out / "splits.npz", npz_bytes(splits))
    mean_std = statistics(raw.images, splits["train"])
    files = [out / name for name in ARRAYS]
    write_text(out / MANIFEST, canonical_json(manifest(config["name"], raw, splits, mean_std, files)))


def load_reader(name: str) -> Any:
    """The module that reads a data set, by its name in params/dataset."""
    return importlib.import_module(f"polygrain.data.readers.{name.replace('-', '_')}")


def split(raw: Raw, config: "Dataset") -> dict[str, np.ndarray]:
    """Positions of train, validation and test, each in a class-balanced order drawn from the data set's seed.

    Where some images are unlabelled, they are a fourth split in hash order and in none of the others.
    """
    given = [part for part in (raw.test, raw.unlabelled) if part is not None]
    pool = np.setdiff1d(np.arange(len(raw.labels)), np.concatenate(given) if given else [])
    order = balanced_order(pool, raw.labels, config["seed"], "train")
    if raw.test is None:
        test, order = order[: config["test"]], order[config["test"] :]
    else:
        test = balanced_order(raw.test, raw.labels, config["seed"], "test")
    validation, train = order[: config["validation"]], order[config["validation"] :]
    splits = {"train": train, "validation": validation, "test": test}
    if raw.unlabelled is not None:
        splits[UNLABELLED] = balanced_order(raw.unlabelled, raw.labels, config["seed"], UNLABELLED)
    return splits


def balanced_order(positions: np.ndarray, labels: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """`positions` permuted within each class by hash and dealt out class by class, int64.

    Every prefix is as class-balanced as it can be, so subsets of growing size are nested.
    """
    draws = hash64(seed, f"split {purpose}", torch.from_numpy(positions)).numpy()
    by_class = np.lexsort((draws, labels[positions]))
    shuffled, classes = positions[by_class], labels[positions][by_class]
    starts = np.searchsorted(classes, classes)
    rank = np.arange(len(shuffled)) - starts
    return shuffled[np.lexsort((classes, rank))].astype(np.int64)


def manifest(
    name: str, raw: Raw, splits: dict[str, np.ndarray], mean_std: MeanStd, files: Sequence[Path]
) -> dict[str, Any]:
    """What the packed files are; holds no time, path or source that could differ between two builds."""
    return {
        "format": 1,
        "name": name,
        "classes": list(raw.classes),
        "coarse": {"names": list(raw.coarse_names), "of_class": list(raw.coarse_of_class)},
        "shape": list(raw.images.shape[1:]),
        "mean": list(mean_std[0]),
        "std": list(mean_std[1]),
        "splits": {split: len(positions) for split, positions in splits.items()},
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in files},
        "raw": raw.hashes,
        "licence": raw.licence,
        "source": raw.source,
    }


def statistics(images: np.ndarray, train: np.ndarray) -> MeanStd:
    """Mean and standard deviation per channel of the training pixels scaled to 0..1.

    Levels are counted, so the order of images cannot matter. Unlabelled images do not count.
    """
    counts = np.zeros((images.shape[1], 256), dtype=np.int64)
    rows = np.sort(train)
    for start in range(0, len(rows), STATISTICS_BLOCK):
        counts += levels(images[rows[start : start + STATISTICS_BLOCK]].swapaxes(0, 1))
    return moments(counts)


def levels(channels: np.ndarray) -> np.ndarray:
    """How often each value occurs in each channel, int64 [C, 256]."""
    return np.stack([np.bincount(channel.ravel(), minlength=256) for channel in channels])


def moments(counts: np.ndarray) -> MeanStd:
    """Mean and standard deviation per channel of pixels scaled to 0..1, from how often each level occurs [C, 256]."""
    scaled, total = np.arange(256) / 255.0, counts.sum(axis=1)
    mean = counts @ scaled / total
    return mean.tolist(), np.sqrt(counts @ scaled**2 / total - mean**2).tolist()


def check_sizes(raw: Raw, config: "Dataset") -> None:
    """Raise UserError on sizes that the data set cannot give."""
    where = f"params/dataset/{config['name']}.yaml"
    if raw.test is not None and config["test"]:
        raise UserError(
            f"{config['name']}: test is {config['test']}, but the authors give a test split of {len(raw.test)};"
            f" set test: 0 in {where}"
        )
    labelled = len(raw.labels) - (0 if raw.unlabelled is None else len(raw.unlabelled))
    train = labelled - (config["test"] if raw.test is None else len(raw.test)) - config["validation"]
    if train < config["validation"]:
        raise UserError(
            f"{config['name']}: {config['validation']} validation images leave {max(train, 0)} to train on;"
            f" lower validation or test in {where}"
        )


def check_splits(name: str, raw: Raw, splits: dict[str, np.ndarray]) -> None:
    """Raise UserError on what no later stage could mend."""
    if len(raw.images) != len(raw.labels):
        raise UserError(
            f"{name}: {len(raw.images)} images but {len(raw.labels)} labels; the raw files do not belong together"
        )
    for split, positions in splits.items():
        expected = {-1} if split == UNLABELLED else set(range(len(raw.classes)))
        found = set(raw.labels[positions].tolist())
        if found - expected:
            labels = "-1" if split == UNLABELLED else f"0 to {len(raw.classes) - 1}"
            raise UserError(
                f"{name}: the {split} split has label {min(found - expected)} where {labels} was expected;"
                " the raw files do not belong together"
            )
        if split != UNLABELLED and expected - found:
            raise UserError(
                f"{name}: the {split} split has no image of class '{raw.classes[min(expected - found)]}';"
                f" change validation or test in params/dataset/{name}.yaml"
            )


def write_array(path: Path, array: np.ndarray) -> None:
    """Stream an array to disk as .npy.

    The file is opened for update: into one opened for writing only numpy writes through C, and the error of a full disk
    then loses its number.
    """
    with atomic_path(path) as temporary, temporary.open("w+b") as stream:
        np.save(stream, array)
