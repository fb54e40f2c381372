"""From a reader's images to the packed format: splits, nested label subsets, statistics, manifest."""

import importlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polygrain.data.packed import MANIFEST
from polygrain.data.raw import Raw
from polygrain.nn.random import hash64
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import canonical_json, sha256_file, write_bytes, write_text

LABEL_SUBSETS = {"1%": 100, "10%": 10}


def prepare(config: dict[str, Any], out: Path) -> None:
    """Read data set `config["name"]` through `config["reader"]` and pack it into `out`, the manifest last.

    `validation` images are held out of the training split, and `test` images too where the authors give no test
    split (0 where they do). Raises UserError when no source answers, when validation is larger than what it leaves
    for train, or when a split would lack a class.
    """
    reader = importlib.import_module(f"polygrain.data.readers.{config['reader'].replace('-', '_')}")
    raw: Raw = reader.read()
    _check_sizes(raw, config)
    splits = split(raw, config)
    _check(config["name"], raw, splits)
    write_bytes(out / "images.npy", _bytes(np.save, raw.images))
    write_bytes(out / "labels.npy", _bytes(np.save, raw.labels))
    write_bytes(out / "splits.npz", _bytes(np.savez, **splits))
    write_text(out / MANIFEST, canonical_json(manifest(config["name"], raw, splits, out)))


def split(raw: Raw, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Positions of train, validation and test, each in a class-balanced order drawn from the data set's seed."""
    everything = np.arange(len(raw.labels))
    pool = everything if raw.test is None else np.setdiff1d(everything, raw.test)
    order = balanced_order(pool, raw.labels, config["seed"], "train")
    if raw.test is None:
        test, order = order[: config["test"]], order[config["test"] :]
    else:
        test = balanced_order(raw.test, raw.labels, config["seed"], "test")
    validation, train = order[: config["validation"]], order[config["validation"] :]
    return {"train": train, "validation": validation, "test": test}


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


def manifest(name: str, raw: Raw, splits: dict[str, np.ndarray], out: Path) -> dict[str, Any]:
    """What the packed files are; holds no time, path or source that could differ between two builds."""
    pixels = raw.images[np.sort(splits["train"])].transpose(1, 0, 2, 3).reshape(raw.images.shape[1], -1)
    counts = np.stack([np.bincount(channel, minlength=256) for channel in pixels])
    levels, total = np.arange(256) / 255.0, counts.sum(axis=1)
    mean = counts @ levels / total
    variance = counts @ levels**2 / total - mean**2
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in (out / "images.npy", out / "labels.npy", out / "splits.npz")
    }
    classes = len(raw.classes)
    return {
        "format": 1,
        "name": name,
        "classes": list(raw.classes),
        "coarse": {"names": list(raw.coarse_names), "of_class": list(raw.coarse_of_class)},
        "shape": list(raw.images.shape[1:]),
        "mean": mean.tolist(),
        "std": np.sqrt(variance).tolist(),
        "splits": {split: len(positions) for split, positions in splits.items()},
        "label_subsets": {
            share: max(classes, len(splits["train"]) // parts // classes * classes)
            for share, parts in LABEL_SUBSETS.items()
        },
        "files": files,
        "raw": raw.hashes,
        "licence": raw.licence,
        "source": raw.source,
    }


def _check_sizes(raw: Raw, config: dict[str, Any]) -> None:
    """Raise UserError on sizes that the data set cannot give."""
    where = f"params/dataset/{config['name']}.yaml"
    if raw.test is not None and config["test"]:
        raise UserError(
            f"{config['name']}: test is {config['test']}, but the authors give a test split of {len(raw.test)};"
            f" set test: 0 in {where}"
        )
    train = len(raw.labels) - (config["test"] if raw.test is None else len(raw.test)) - config["validation"]
    if train < config["validation"]:
        raise UserError(
            f"{config['name']}: {config['validation']} validation images leave {max(train, 0)} to train on;"
            f" lower validation or test in {where}"
        )


def _check(name: str, raw: Raw, splits: dict[str, np.ndarray]) -> None:
    """Raise UserError on what no later stage could mend."""
    if len(raw.images) != len(raw.labels):
        raise UserError(
            f"{name}: {len(raw.images)} images but {len(raw.labels)} labels; the raw files do not belong together"
        )
    for split, positions in splits.items():
        missing = sorted(set(range(len(raw.classes))) - set(raw.labels[positions].tolist()))
        if missing:
            raise UserError(
                f"{name}: the {split} split has no image of class '{raw.classes[missing[0]]}';"
                f" change validation or test in params/dataset/{name}.yaml"
            )


def _bytes(save: Any, *arrays: np.ndarray, **named: np.ndarray) -> bytes:
    """An array file in memory. numpy stamps a constant time on archive members, so equal arrays give equal bytes."""
    buffer = io.BytesIO()
    save(buffer, *arrays, **named)
    return buffer.getvalue()
