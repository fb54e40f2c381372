"""STL-10 (Coates, Lee and Ng 2011): colour images of 96 px, ten classes; 5,000 train, 8,000 test, 100,000 unlabelled.

Read from the binary version, packed or unpacked: bytes without a header, 27,648 an image, channel by channel, each
column by column; labels 1 to 10. The authors' ten folds are not used: label subsets are prefixes of our own order.
"""

from typing import Any

import numpy as np
from tqdm import tqdm

from polygrain.data.archives import Archive, Hashed, pause
from polygrain.data.raw import Raw
from polygrain.provenance.errors import UserError

# the authors publish no hashes: these are torchvision's
ARCHIVE = Archive(
    name="stl10_binary.tar.gz",
    md5="91f7769df0f17e558f3565bffb0c7dfb",
    url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
    folder="stl10_binary",
    members={
        "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
        "train_y.bin": "5a34089d4802c674881badbb80307741",
        "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
        "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
        "unlabeled_X.bin": "5242ba1fed5e4be9e1e742405eb56ca4",
        "class_names.txt": None,
    },
)
CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
# superclasses of our own
COARSE = ("animal", "vehicle")
COARSE_OF_CLASS = (1, 0, 1, 0, 0, 0, 0, 0, 1, 1)
COUNTS = {"train": 5_000, "test": 8_000, "unlabeled": 100_000}
SHAPE = (3, 96, 96)
BLOCK = 500  # images decoded at once


def read() -> Raw:
    """Fetch, verify and decode. Raises UserError that lists the sources when none answers."""
    place = ARCHIVE.fetch("stl-10")
    images = np.empty((sum(COUNTS.values()), *SHAPE), dtype=np.uint8)
    labels = np.full(len(images), -1, dtype=np.int64)
    with tqdm(desc="stl-10", total=len(images), unit="img", unit_scale=True, mininterval=pause()) as bar:

        def take(name: str, content: Hashed) -> None:
            if name == "class_names.txt":
                check_names(name, content.read())
            elif name.endswith("_y.bin"):
                labels[span(name)] = parse_labels(name, content.read())
            else:
                fill(name, content, images[span(name)], bar)

        hashes = ARCHIVE.visit(place, take)
    positions = np.arange(len(images))
    return Raw(
        images=images,
        labels=labels,
        test=positions[span("test_X.bin")],
        classes=CLASSES,
        coarse_names=COARSE,
        coarse_of_class=COARSE_OF_CLASS,
        hashes=hashes,
        licence="not stated by its authors, who ask to cite Coates, Lee and Ng 2011; the images come from ImageNet",
        source="STL-10, binary version (Coates, Lee and Ng 2011), 5,000 + 8,000 images and 100,000 unlabelled",
        unlabelled=positions[span("unlabeled_X.bin")],
    )


def span(name: str) -> slice:
    """Where the images of a file go: train first, then test, then the unlabelled ones."""
    part = name.partition("_")[0]
    start = sum(COUNTS[before] for before in list(COUNTS)[: list(COUNTS).index(part)])
    return slice(start, start + COUNTS[part])


def fill(name: str, content: Hashed, images: np.ndarray, bar: Any) -> None:
    """Decode a file of images into `images`, uint8 [N, 3, 96, 96]. Raises UserError when it holds more or fewer."""
    size = images[0].nbytes
    for start in range(0, len(images), BLOCK):
        block = images[start : start + BLOCK]
        data = content.read(block.nbytes)
        if len(data) != block.nbytes:
            raise UserError(f"{name}: ends after {start + len(data) // size} of {len(images)} images; delete the file")
        # columns are stored one after the other: the last axis of the file runs down, the one before it to the right
        block[:] = np.frombuffer(data, np.uint8).reshape(block.shape).swapaxes(2, 3)
        bar.update(len(block))
    if content.read(1):
        raise UserError(f"{name}: holds more than {len(images)} images; delete the file")


def parse_labels(name: str, data: bytes) -> np.ndarray:
    """Labels 0 to 9, int64 [N]. Raises UserError unless the file holds one from 1 to 10 per image."""
    labels, expected = np.frombuffer(data, np.uint8), COUNTS[name.partition("_")[0]]
    if len(labels) != expected or labels.min() < 1 or labels.max() > len(CLASSES):
        raise UserError(
            f"{name}: {expected} labels from 1 to {len(CLASSES)} were expected, the file holds {len(labels)}"
            f" from {labels.min(initial=255)} to {labels.max(initial=0)}; delete it"
        )
    return labels.astype(np.int64) - 1


def check_names(name: str, data: bytes) -> None:
    """Raise UserError unless the file names the ten classes in the order of their labels."""
    found = tuple(data.decode("latin1").split())
    if found != CLASSES:
        raise UserError(f"{name}: names {len(found)} classes, not the {len(CLASSES)} of STL-10 in order; delete it")
