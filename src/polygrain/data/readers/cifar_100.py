"""CIFAR-100 (Krizhevsky 2009): 60,000 colour images of 32 px, 100 classes in 20 superclasses, 10,000 for test.

The format is that of CIFAR-10's python version, with a fine and a coarse label per image: fine labels are the classes,
coarse labels the superclasses that the authors give.
"""

import numpy as np

from polygrain.data.archives import Archive
from polygrain.data.raw import Raw
from polygrain.data.readers.cifar_10 import names, numbers, pixels, unpickled
from polygrain.provenance.errors import UserError

# MD5 of the archive is its author's; those of the members are torchvision's
ARCHIVE = Archive(
    name="cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    folder="cifar-100-python",
    members={
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
)
CLASSES, COARSE_CLASSES = 100, 20


def read() -> Raw:
    """Fetch, verify and decode. Raises UserError that lists the sources when none answers."""
    contents, hashes = unpickled(ARCHIVE, ARCHIVE.fetch("cifar-100"))
    images, fine, coarse = (
        np.concatenate(parts)
        for parts in (
            [pixels(name, contents[name]) for name in ("train", "test")],
            [numbers(name, contents[name], "fine_labels") for name in ("train", "test")],
            [numbers(name, contents[name], "coarse_labels") for name in ("train", "test")],
        )
    )
    return Raw(
        images=images,
        labels=fine,
        test=np.arange(len(contents["train"]["data"]), len(images)),
        classes=names("meta", contents["meta"], "fine_label_names", CLASSES),
        coarse_names=names("meta", contents["meta"], "coarse_label_names", COARSE_CLASSES),
        coarse_of_class=superclasses(fine, coarse),
        hashes=hashes,
        licence="not stated by its authors, who ask to cite Krizhevsky 2009",
        source="CIFAR-100, python version (Krizhevsky 2009), 50,000 + 10,000 images",
    )


def superclasses(fine: np.ndarray, coarse: np.ndarray) -> tuple[int, ...]:
    """The superclass of each class. Raises UserError unless every class has exactly one of those that are named."""
    pairs = np.unique(np.stack([fine, coarse], axis=1), axis=0)
    if pairs[:, 0].tolist() != list(range(CLASSES)) or set(pairs[:, 1].tolist()) != set(range(COARSE_CLASSES)):
        raise UserError(
            f"cifar-100: {CLASSES} fine labels with one of {COARSE_CLASSES} coarse labels each were expected,"
            " the files hold others; delete them"
        )
    return tuple(pairs[:, 1].tolist())
