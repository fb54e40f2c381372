"""Tiny ImageNet (Stanford CS231n): colour images of 64 px, 200 classes of ImageNet; 100,000 train, 10,000 for test.

Read from the zip or the folder it unpacks to. The authors' test images carry no labels: their validation images are our
test split. Grey files are decoded to three equal channels. No hashes of single files are published, so of the folder
only names, counts and sizes are checked. The manifest says what was read.
"""

import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from polygrain.data.archives import Archive, pause
from polygrain.data.raw import Raw
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import sha256_bytes

LISTS = ("wnids.txt", "words.txt", "val/val_annotations.txt")
# the authors publish no hash: this MD5 is the one on which loaders of this zip agree
ARCHIVE = Archive(
    name="tiny-imagenet-200.zip",
    md5="90528d7ca1a48142e341f4ef8d21d0de",
    url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    folder="tiny-imagenet-200",
    members=dict.fromkeys(LISTS),
)
CLASSES = 200
PER_CLASS = {"train": 500, "val": 50}
SIDE = 64

Read = Callable[[str], bytes]


def read() -> Raw:
    """Fetch, verify and decode. Raises UserError that lists the sources when none answers."""
    with opened(ARCHIVE.fetch("tiny-imagenet")) as (there, content):
        lists = {name: content(name).decode() for name in LISTS}
        wnids = class_ids(lists["wnids.txt"])
        train = train_items(there, wnids)
        test = test_items(there, wnids, lists["val/val_annotations.txt"])
        images = np.empty((len(train) + len(test), 3, SIDE, SIDE), dtype=np.uint8)
        hashes = {name: sha256_bytes(text.encode()) for name, text in lists.items()}
        with tqdm(desc="tiny-imagenet", total=len(images), unit="img", mininterval=pause()) as bar:
            hashes["train"] = decode(train, content, images[: len(train)], bar)
            hashes["val"] = decode(test, content, images[len(train) :], bar)
    return Raw(
        images=images,
        labels=np.array([label for _, label in (*train, *test)], dtype=np.int64),
        test=np.arange(len(train), len(images)),
        classes=class_names(wnids, lists["words.txt"]),
        coarse_names=("all",),
        coarse_of_class=(0,) * len(wnids),
        hashes=hashes,
        licence="not stated in the archive; the images are ImageNet's, lent for non-commercial research and education",
        source="Tiny ImageNet, Stanford CS231n, 100,000 + 10,000 images (the authors' validation images are our test)",
    )


@contextmanager
def opened(place: Path) -> Iterator[tuple[list[str], Read]]:
    """Names of all files below the top folder, sorted, and a function that reads one; from the zip or the folder.

    Raises UserError when the zip is damaged or a list is missing.
    """
    if ARCHIVE.packed(place):
        path, prefix = place / ARCHIVE.name, f"{ARCHIVE.folder}/"
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name.removeprefix(prefix) for name in archive.namelist() if name.startswith(prefix)]
                yield complete(path, names), lambda name: archive.read(prefix + name)
        except (zipfile.BadZipFile, EOFError, OSError, zlib.error) as error:
            raise UserError(f"{path}: cannot be read ({error}); delete it") from None
    else:
        root = place / ARCHIVE.folder
        names = [Path(base, file).relative_to(root).as_posix() for base, _, files in os.walk(root) for file in files]
        yield complete(root, names), lambda name: (root / name).read_bytes()


def complete(where: Path, names: list[str]) -> list[str]:
    """The names, sorted. Raises UserError when one of the lists is not among them."""
    for name in LISTS:
        if name not in names:
            raise UserError(f"{where}: holds no file {name}; delete it")
    return sorted(names)


def class_ids(text: str) -> dict[str, int]:
    """Class of each WordNet id, in the order of the list. Raises UserError unless there are 200 different ones."""
    ids = text.split()
    if len(ids) != CLASSES or len(set(ids)) != CLASSES:
        raise UserError(f"wnids.txt: {len(set(ids))} classes in {len(ids)} lines where {CLASSES} were expected")
    return {wnid: label for label, wnid in enumerate(ids)}


def class_names(wnids: dict[str, int], text: str) -> tuple[str, ...]:
    """The first name that words.txt gives each class; the id itself where it gives none."""
    words = dict(line.split("\t", 1) for line in text.splitlines() if "\t" in line)
    return tuple(words.get(wnid, wnid).split(",")[0] for wnid in wnids)


def train_items(there: list[str], wnids: dict[str, int]) -> list[tuple[str, int]]:
    """Name and label of each training image, class by class. Raises UserError when a class has not its 500 images."""
    by_class: dict[str, list[str]] = {wnid: [] for wnid in wnids}
    for name in there:
        match name.split("/"):
            case ["train", wnid, "images", file] if file.endswith(".JPEG") and wnid in by_class:
                by_class[wnid].append(name)
    return balanced("train", [(name, wnids[wnid]) for wnid, names in by_class.items() for name in names], wnids)


def test_items(there: list[str], wnids: dict[str, int], annotations: str) -> list[tuple[str, int]]:
    """Name and label of each validation image, as listed. Raises UserError when one is missing or of no known class."""
    known, items = set(there), []
    for line in annotations.splitlines():
        file, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in wnids or f"val/images/{file}" not in known:
            raise UserError(f"val/val_annotations.txt: image '{file}' is missing or its class '{wnid}' unknown")
        items.append((f"val/images/{file}", wnids[wnid]))
    return balanced("val", items, wnids)


def balanced(part: str, items: list[tuple[str, int]], wnids: dict[str, int]) -> list[tuple[str, int]]:
    """The items. Raises UserError when a class has more or fewer than the authors gave it."""
    counts = np.bincount([label for _, label in items], minlength=len(wnids))
    for wnid, count in zip(wnids, counts.tolist(), strict=True):
        if count != PER_CLASS[part]:
            raise UserError(
                f"{ARCHIVE.folder}/{part}: {count} images of class {wnid} where {PER_CLASS[part]} were expected;"
                f" unpack {ARCHIVE.name} again"
            )
    return items


def decode(items: list[tuple[str, int]], content: Read, images: np.ndarray, bar: "tqdm[Any]") -> str:
    """Decode into `images`, uint8 [N, 3, 64, 64]; returns the SHA-256 over every file's name and own SHA-256."""
    digest = hashlib.sha256()
    for row, (name, _) in enumerate(items):
        data = content(name)
        digest.update(f"{name} {sha256_bytes(data)}\n".encode())
        images[row] = picture(name, data).transpose(2, 0, 1)
        bar.update()
    return digest.hexdigest()


def picture(name: str, data: bytes) -> np.ndarray:
    """One image, uint8 [64, 64, 3]. Raises UserError when it is damaged, no JPEG or of another size."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            if image.size != (SIDE, SIDE):
                raise UserError(f"{name}: {image.width} x {image.height} px where {SIDE} x {SIDE} were expected")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name}: no JPEG, or damaged ({error}); unpack {ARCHIVE.name} again") from None
