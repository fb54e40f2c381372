"""From a reader's image files to shards: the files packed as they are, with index, splits, statistics and manifest.

Files are read one at a time, so memory does not grow with the data set. Everything is written in a folder beside and
moved into place when it is whole, the manifest last.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from tqdm import tqdm

from polygrain.data.archives import pause
from polygrain.data.encoded import CHANNELS, FORMAT, INDEX, SHARDS, decode, measure, shard_name
from polygrain.data.packed import MANIFEST
from polygrain.data.prepare import (
    check_sizes,
    check_splits,
    levels,
    load_reader,
    manifest,
    moments,
    split,
    write_array,
)
from polygrain.data.raw import Raw
from polygrain.nn.random import hash64
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import atomic_path, canonical_json, write_bytes, write_text
from polygrain.provenance.npz import npz_bytes

if TYPE_CHECKING:  # types and what a stage says of itself decide no output: they stay out of the code hash
    from polygrain.config.typed import Dataset
    from polygrain.provenance.stage import Stage

SHARD_BYTES = 256 * 2**20
STATISTICS_IMAGES = 10_000
SMALL = ("index.npz", "labels.npy", "splits.npz")
_SCRATCH = ".packing"
_REMEDY = "replace the file, or remove it from the data set"


@dataclass(frozen=True, kw_only=True)
class EncodedRaw(Raw):
    """A data set as image files; `images` is an empty stand-in of the right length, see `no_images`."""

    root: Path
    names: Sequence[str]
    """Path of each image's file below `root`, with forward slashes."""


def no_images(count: int) -> np.ndarray:
    """What stands for the pixels of `count` images that are still in their files: no bytes, [count, 0, 0, 0]."""
    return np.empty((count, 0, 0, 0), dtype=np.uint8)


def run(stage: "Stage") -> None:
    """Do the prepare stage. Raises UserError as `prepare` does."""
    prepare(cast("Dataset", stage.config), stage.directory)


def prepare(config: "Dataset", out: Path) -> None:
    """Read data set `config["name"]` through `config["reader"]` and pack its files into `out`.

    Splits are made as for images of equal size. `config["statistics"]` gives mean and std per channel; null takes them
    from the pixels of at most 10,000 training images. Raises UserError when no source answers, on a file that is no
    whole image, on sizes that do not fit, and when another process packs the same data set.
    """
    with _locked(out):
        raw: EncodedRaw = load_reader(config["reader"]).read(config)
        check_sizes(raw, config)
        splits = split(raw, config)
        check_splits(config["name"], raw, splits)
        given = config["statistics"]
        sample = np.zeros(len(raw.names), dtype=bool)
        if given is None:
            sample[statistics_sample(splits["train"], config["seed"])] = True
        with _scratch(out) as scratch:
            packing = Packing(raw, sample, scratch)
            packing.run(config["name"])
            write_bytes(scratch / "index.npz", npz_bytes(packing.index))
            write_array(scratch / "labels.npy", raw.labels)
            write_bytes(scratch / "splits.npz", npz_bytes(splits))
            mean_std = moments(packing.counts) if given is None else (given["mean"], given["std"])
            described = manifest(config["name"], raw, splits, mean_std, [scratch / file for file in SMALL])
            described |= {
                "format": FORMAT,
                "encoded": True,
                "shape": [CHANNELS, None, None],
                "files": {**packing.files, **described["files"]},
                # one hash over every file's name and hash: whichever copy or archive they were read from
                "raw": {"files": packing.listing.hexdigest(), **raw.hashes},
            }
            write_text(scratch / MANIFEST, canonical_json(described))
            _publish(scratch, out)


class Packing:
    """One pass over the files: shards are written, images measured, their bytes hashed and their levels counted."""

    def __init__(self, raw: EncodedRaw, sample: np.ndarray, folder: Path) -> None:
        self.raw, self.sample, self.folder = raw, sample, folder
        self.index = {key: np.zeros(len(raw.names), dtype=np.int64) for key in INDEX}
        self.counts = np.zeros((CHANNELS, 256), dtype=np.int64)
        self.files: dict[str, dict[str, Any]] = {}
        self.listing = hashlib.sha256()

    def run(self, name: str) -> None:
        """Write every shard."""
        with tqdm(desc=name, total=len(self.raw.names), unit="img", unit_scale=True, mininterval=pause()) as bar:
            for number, members in enumerate(self._shards()):
                self._write_shard(number, members, bar)

    def _shards(self) -> Iterator[list[int]]:
        """Positions of each shard's images, by the files' sizes: a shard is closed before it would grow too large."""
        members: list[int] = []
        total = 0
        for position, name in enumerate(self.raw.names):
            size = (self.raw.root / name).stat().st_size
            if members and total + size > SHARD_BYTES:
                yield members
                members, total = [], 0
            members.append(position)
            total += size
        yield members

    def _write_shard(self, number: int, members: Sequence[int], bar: "tqdm[Any]") -> None:
        digest, offset = hashlib.sha256(), 0
        path = self.folder / shard_name(number)
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            for position in members:
                content = self._content(position)
                height, width = self._look(position, content)
                for key, value in zip(INDEX, (number, offset, len(content), height, width), strict=True):
                    self.index[key][position] = value
                stream.write(content)
                digest.update(content)
                offset += len(content)
                bar.update()
        self.files[shard_name(number)] = {"bytes": offset, "sha256": digest.hexdigest()}

    def _content(self, position: int) -> bytes:
        """A file's bytes, entered in the listing. Raises UserError when it cannot be read."""
        path = self.raw.root / self.raw.names[position]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from None
        self.listing.update(f"{hashlib.sha256(content).hexdigest()}  ".encode())
        self.listing.update(os.fsencode(f"{self.raw.names[position]}\n"))
        return content

    def _look(self, position: int, content: bytes) -> tuple[int, int]:
        """Height and width; of an image of the sample the levels are counted. Raises UserError on a damaged file."""
        where = str(self.raw.root / self.raw.names[position])
        if not self.sample[position]:
            return measure(content, where, _REMEDY)
        pixels = decode(content, where, _REMEDY).numpy()
        self.counts += levels(pixels)
        return pixels.shape[1], pixels.shape[2]


def statistics_sample(train: np.ndarray, seed: int) -> np.ndarray:
    """The training images that mean and std are computed from: the 10,000 of smallest hash, or all if fewer."""
    draws = hash64(seed, "statistics", torch.from_numpy(train)).numpy()
    return train[np.argsort(draws, kind="stable")[:STATISTICS_IMAGES]]


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the operating system's lock on the data set's folder; the kernel drops it when the process dies."""
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another process is packing this data set; wait for it or stop it") from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """An empty folder inside `out`, gone afterwards; what a killed process left there is removed first."""
    folder = out / _SCRATCH
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(scratch: Path, out: Path) -> None:
    """Move the new files into place. In between there is no manifest, so nothing half-new can be opened."""
    (out / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(out / SHARDS, ignore_errors=True)
    for name in (SHARDS, *SMALL, MANIFEST):
        os.replace(scratch / name, out / name)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
