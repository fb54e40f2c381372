"""CIFAR-10 (Krizhevsky 2009): 60,000 colour images of 32 px, ten classes, 10,000 for test.

Read from the python version, packed or unpacked: pickles of Python 2, each a mapping with rows of 3,072 bytes (the red
plane, then green, then blue, each row by row) and a list of labels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polygrain.data.archives import Archive, Hashed, load_pickle
from polygrain.data.raw import Raw
from polygrain.provenance.errors import UserError

# MD5 of the archive is its author's; those of the members are torchvision's
ARCHIVE = Archive(
    name="cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    folder="cifar-10-batches-py",
    members={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
)
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
CLASSES = 10
SHAPE = (3, 32, 32)
# superclasses of our own
COARSE = ("animal", "vehicle")
COARSE_OF_CLASS = (1, 1, 0, 0, 0, 0, 0, 0, 1, 1)


def read() -> Raw:
    """Fetch, verify and decode. Raises UserError that lists the sources when none answers."""
    contents, hashes = unpickled(ARCHIVE, ARCHIVE.fetch("cifar-10"))
    parts = (*TRAIN, "test_batch")
    images = np.concatenate([pixels(name, contents[name]) for name in parts])
    labels = np.concatenate([numbers(name, contents[name], "labels") for name in parts])
    train = len(images) - len(contents["test_batch"]["data"])
    return Raw(
        images=images,
        labels=labels,
        test=np.arange(train, len(images)),
        classes=names("batches.meta", contents["batches.meta"], "label_names", CLASSES),
        coarse_names=COARSE,
        coarse_of_class=COARSE_OF_CLASS,
        hashes=hashes,
        licence="not stated by its authors, who ask to cite Krizhevsky 2009",
        source="CIFAR-10, python version (Krizhevsky 2009), 50,000 + 10,000 images",
    )


def unpickled(archive: Archive, place: Path) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
    """The mapping that each member holds, and each member's SHA-256. Raises UserError on anything else."""
    contents: dict[str, Mapping[str, Any]] = {}

    def take(name: str, content: Hashed) -> None:
        contents[name] = load_pickle(name, content.read())
        if not isinstance(contents[name], dict):
            raise UserError(f"{name}: holds a {type(contents[name]).__name__} where a mapping was expected")

    return contents, archive.visit(place, take)


def pixels(name: str, batch: Mapping[str, Any]) -> np.ndarray:
    """The images of a batch, uint8 [N, 3, 32, 32]. Raises UserError when its rows are not of 3,072 bytes."""
    data = batch.get("data")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (int(np.prod(SHAPE)),):
        raise UserError(f"{name}: 'data' is no array with rows of {int(np.prod(SHAPE))} bytes; delete the file")
    return data.reshape(-1, *SHAPE)


def numbers(name: str, batch: Mapping[str, Any], key: str) -> np.ndarray:
    """The labels of a batch, int64 [N]. Raises UserError when there is not one whole number per image."""
    labels = batch.get(key)
    if not isinstance(labels, list) or len(labels) != len(batch["data"]) or {type(label) for label in labels} != {int}:
        raise UserError(f"{name}: '{key}' is no list with a number for each of the images; delete the file")
    return np.array(labels, dtype=np.int64)


def names(name: str, meta: Mapping[str, Any], key: str, count: int) -> tuple[str, ...]:
    """Names of classes. Raises UserError when there are not `count` different ones."""
    found: Sequence[Any] = meta.get(key, ())
    if len({str(one) for one in found}) != count or len(found) != count:
        raise UserError(f"{name}: '{key}' names {len(found)} classes where {count} different ones were expected")
    return tuple(str(one) for one in found)
