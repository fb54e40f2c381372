"""Imagenette 2 (Howard 2019): ten easily told classes of ImageNet, 9,469 images to train on and 3,925 for test.

`folder` in the data set's YAML chooses the edition: imagenette2-160 and imagenette2-320 (shorter side, px), imagenette2
(original sizes). The lists of noisy labels that come with it are ignored.
"""

import os
import tarfile
import tempfile
import zlib
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polygrain.data.archives import download, md5_file
from polygrain.data.files import EncodedRaw, no_images
from polygrain.data.raw import Source, cache_folder, fetch_first, local_folder
from polygrain.data.readers.image_folder import images_below, listing
from polygrain.provenance.errors import UserError, nearest

if TYPE_CHECKING:
    from polygrain.config.typed import Dataset

DATASET = "imagenette"
# torchvision's MD5 of each archive
ARCHIVES = {
    "imagenette2": "fe2fc210e6bb7c5664d602c3cd71e612",
    "imagenette2-320": "3df6f0d01a2c9592104656642f5e78a3",
    "imagenette2-160": "e793b78cc4c9e9a4ccc0c1155377a412",
}
SITE = "https://s3.amazonaws.com/fast-ai-imageclas/"
COUNTS = {"train": 9_469, "val": 3_925}
WORDNET = (
    "n01440764", "n02102040", "n02979186", "n03000684", "n03028079",
    "n03394916", "n03417042", "n03425413", "n03445777", "n03888257",
)  # fmt: skip
CLASSES = (
    "tench", "English springer", "cassette player", "chain saw", "church",
    "French horn", "garbage truck", "gas pump", "golf ball", "parachute",
)  # fmt: skip
# superclasses of our own
COARSE = ("animal", "machine", "other")
COARSE_OF_CLASS = (0, 0, 1, 1, 2, 2, 1, 1, 2, 2)


def read(config: "Dataset") -> EncodedRaw:
    """Fetch, verify and list the files. Raises UserError that lists the sources when none answers."""
    edition = config["folder"]
    if edition not in ARCHIVES:
        raise UserError(f"{DATASET}: no edition '{edition}'{nearest(str(edition), ARCHIVES)}")
    place = fetch_first(
        DATASET,
        partial(_local, edition),
        (Source("its authors' site", partial(_download, edition)),),
        partial(check, edition),
        f"Set POLYGRAIN_DATA to a folder that holds {edition} or {edition}.tgz, or give this machine a network.",
    )
    root = place / edition if (place / edition).is_dir() else unpacked(place / f"{edition}.tgz", edition)
    listed = listing(root, WORDNET, {"train": "train", "test": "val"})
    return EncodedRaw(
        images=no_images(len(listed.names)),
        labels=np.array(listed.labels, dtype=np.int64),
        test=listed.positions["test"],
        classes=CLASSES,
        coarse_names=COARSE,
        coarse_of_class=COARSE_OF_CLASS,
        hashes={},
        licence="Apache-2.0 for the selection; the images are ImageNet's, for non-commercial research",
        source=f"Imagenette 2 (fast.ai, Howard 2019), edition {edition}, 9,469 + 3,925 images",
        root=root,
        names=listed.names,
        left=listed.left,
    )


def check(edition: str, place: Path) -> None:
    """Compare the archive's MD5, or count the images of the unpacked folder. Raises UserError naming what differs."""
    folder, archive = place / edition, place / f"{edition}.tgz"
    if folder.is_dir():
        for part, expected in COUNTS.items():
            found = len(images_below(folder, part, Counter()))
            if found != expected:
                raise UserError(f"{folder / part}: {found} images where {expected} are expected; delete the folder")
    elif not archive.is_file():
        raise UserError(f"{archive}: not found, nor the folder {edition}")
    elif md5_file(archive) != ARCHIVES[edition]:
        raise UserError(f"{archive}: not the authors' file (MD5 differs); delete it")


def unpacked(archive: Path, edition: str) -> Path:
    """The archive's folder in the cache, unpacked if it is not there yet. Raises UserError on a damaged archive.

    The folder appears under its name when it is whole, and members that point outside of it are refused.
    """
    target = cache_folder() / DATASET / edition
    if target.is_dir():
        check(edition, target.parent)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=target.parent) as scratch:
        try:
            with tarfile.open(archive, "r|gz") as members:
                members.extractall(scratch, filter="data")
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise UserError(
                f"{archive}: cannot be unpacked into {target.parent} ({error}); make room, or delete it if damaged"
            ) from None
        check(edition, Path(scratch))
        os.replace(Path(scratch, edition), target)
    return target


def _local(edition: str) -> Path:
    def holds(place: Path) -> bool:
        return (place / edition).is_dir() or (place / f"{edition}.tgz").is_file()

    return local_folder(DATASET, holds, f"{edition} and no {edition}.tgz")


def _download(edition: str, scratch: Path) -> Path:
    download(f"{SITE}{edition}.tgz", scratch / f"{edition}.tgz")
    return scratch
