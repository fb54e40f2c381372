"""From a reader's image files to shards: the files packed as they are, with index, splits, statistics and manifest.

Files are read one at a time, so memory does not grow with the data set. Everything is written in a folder beside and
moved into place when it is whole, the manifest last. Beside what every manifest has, that of image files counts the
bad files that were skipped, by suffix, and the duplicates: files with the bytes of another file, within and across
splits.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from tqdm import tqdm

from polygrain.data.archives import pause
from polygrain.data.encoded import CHANNELS, FORMAT, INDEX, SHARDS, EncodedData, Limits, measure, shard_name
from polygrain.data.files import EncodedRaw, no_images
from polygrain.data.packed import MANIFEST
from polygrain.data.prepare import (
    MeanStd,
    check_sizes,
    check_splits,
    levels,
    load_reader,
    manifest,
    moments,
    split,
    write_array,
)
from polygrain.data.tally import by_suffix, duplicates, shown, tally
from polygrain.nn.random import hash64
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import atomic_path, canonical_json, read_json, write_bytes, write_text
from polygrain.provenance.npz import npz_bytes

if TYPE_CHECKING:  # types and what a stage says of itself decide no output: they stay out of the code hash
    from polygrain.config.typed import Dataset
    from polygrain.provenance.stage import Stage

SHARD_BYTES = 256 * 2**20
STATISTICS_IMAGES = 10_000
SMALL = ("index.npz", "labels.npy", "splits.npz")
_SCRATCH = ".packing"


def run(stage: "Stage") -> None:
    """Do the prepare stage. Raises UserError as `prepare` does."""
    prepare(cast("Dataset", stage.config), stage.directory)


def prepare(config: "Dataset", out: Path) -> None:
    """Read data set `config["name"]` through `config["reader"]`, pack its files into `out` and print what was left.

    Splits are made as for images of equal size. `config["statistics"]` gives mean and std per channel; null takes them
    from the pixels of at most 10,000 training images. Raises UserError when no source answers, when another process
    packs the same data set, on sizes that do not fit, on duplicates across splits unless allowed, and, naming every
    one, on files that are no whole image unless `on_bad` is `skip`.
    """
    with _locked(out):
        raw: EncodedRaw = load_reader(config["reader"]).read(config)
        _splits(raw, config)  # what they refuse is known before hours of packing
        with _scratch(out) as scratch:
            packing = Packing(raw, scratch, config)
            packing.run()
            raw = packing.whole()
            splits = _splits(raw, config)
            copies = duplicates(raw.names, packing.digests, splits)
            if copies.across and raw.duplicates == "refuse":
                raise UserError(
                    f"{raw.root}: {copies.across_line}; remove the copies, or set duplicates: allow in"
                    f" params/dataset/{config['name']}.yaml"
                )
            write_bytes(scratch / "index.npz", npz_bytes(packing.index))
            write_array(scratch / "labels.npy", raw.labels)
            write_bytes(scratch / "splits.npz", npz_bytes(splits))
            mean_std = _statistics(EncodedData(raw.labels, {}, splits, scratch, packing.index), config)
            described = manifest(config["name"], raw, splits, mean_std, [scratch / file for file in SMALL])
            described |= {
                "format": FORMAT,
                "encoded": True,
                "shape": [CHANNELS, None, None],
                "files": {**packing.files, **described["files"]},
                # one hash over every file's name and hash: whichever copy or archive they were read from
                "raw": {"files": packing.listing.hexdigest(), **raw.hashes},
                "skipped": by_suffix(packing.bad),
                "duplicates": {"within": copies.within, "across": copies.across},
            }
            write_text(scratch / MANIFEST, canonical_json(described))
            _publish(scratch, out)
        for line in tally(raw.names, raw.left, packing.bad, copies):
            print(f"{config['name']}: {line}")


def pack_again(config: "Dataset", out: Path) -> None:
    """Pack the shards that the manifest in `out` names, where they are not there; a copy from a record comes without.

    Another process that does so is waited for. Raises UserError when no source answers, and when it is not what was
    packed.
    """
    with _locked(out, wait=True):
        if (out / SHARDS).is_dir():
            return
        known = {name: said for name, said in read_json(out / MANIFEST)["files"].items() if name.startswith(SHARDS)}
        with _scratch(out) as scratch:
            packing = Packing(load_reader(config["reader"]).read(config), scratch, config)
            packing.run()
            if packing.files != known:
                raise UserError(
                    f"{packing.raw.root}: not the files that {out / MANIFEST} tells of; put those there, or pack and"
                    f" train anew with `snakemake --cores all --force {out / MANIFEST}`"
                )
            os.replace(scratch / SHARDS, out / SHARDS)


class Packing:
    """One pass over the files: shards are written, images measured, their bytes hashed, bad files collected."""

    def __init__(self, raw: EncodedRaw, folder: Path, config: "Dataset") -> None:
        self.raw, self.folder, self.config = raw, folder, config
        where = f"params/dataset/{config['name']}.yaml"
        self.limits = Limits(where, **(config.get("limits") or {}))
        self.remedy = f"replace or remove the file, or set on_bad: skip in {where}"
        self.index = {key: np.zeros(len(raw.names), dtype=np.int64) for key in INDEX}
        self.digests = np.zeros((len(raw.names), hashlib.sha256().digest_size), dtype=np.uint8)
        self.files: dict[str, dict[str, Any]] = {}
        self.listing = hashlib.sha256()
        self.bad: dict[str, str] = {}
        """Name of each bad file -> the line that says why."""

    def run(self) -> None:
        """Write every shard. Raises UserError with a line for each bad file, once all files were seen."""
        rows, name = range(len(self.raw.names)), self.config["name"]
        with tqdm(rows, name, unit="img", unit_scale=True, mininterval=pause()) as positions:
            images = ((position, content) for position in positions if (content := self._whole(position)) is not None)
            following = next(images, None)
            while following is not None:
                following = self._write_shard(following, images)
        if self.bad and self.config.get("on_bad", "refuse") == "refuse":
            raise UserError("\n".join(self.bad.values()))

    def whole(self) -> EncodedRaw:
        """The data set without its bad files; index and hashes lose their rows too."""
        kept = np.array([name not in self.bad for name in self.raw.names])
        self.index = {key: rows[kept] for key, rows in self.index.items()}
        self.digests = self.digests[kept]
        moved = np.cumsum(kept) - 1

        def remaining(part: np.ndarray | None) -> np.ndarray | None:
            return None if part is None else moved[part[kept[part]]]

        return replace(
            self.raw,
            images=no_images(int(kept.sum())),
            labels=self.raw.labels[kept],
            test=remaining(self.raw.test),
            unlabelled=remaining(self.raw.unlabelled),
            names=[name for name in self.raw.names if name not in self.bad],
        )

    def _write_shard(self, image: tuple[int, bytes], images: Iterator[tuple[int, bytes]]) -> tuple[int, bytes] | None:
        """Write `image` and those after it that fit; returns the first of the next shard, None when there is none."""
        digest, offset, name = hashlib.sha256(), 0, shard_name(len(self.files))
        following: tuple[int, bytes] | None = image
        with atomic_path(self.folder / name) as temporary, temporary.open("wb") as stream:
            while following is not None and (not offset or offset + len(following[1]) <= SHARD_BYTES):
                position, content = following
                for key, value in zip(INDEX, (len(self.files), offset, len(content)), strict=False):
                    self.index[key][position] = value
                stream.write(content)
                digest.update(content)
                offset += len(content)
                following = next(images, None)
        self.files[name] = {"bytes": offset, "sha256": digest.hexdigest()}
        return following

    def _whole(self, position: int) -> bytes | None:
        """A file's bytes, measured and entered in the listing; None, and its line in `bad`, when it is no image."""
        name = self.raw.names[position]
        path = self.raw.root / name
        try:
            content = path.read_bytes()
            self.index["height"][position], self.index["width"][position] = measure(
                content, shown(path), self.remedy, self.limits
            )
        except OSError as error:
            self.bad[name] = f"{shown(path)}: cannot be read ({error.strerror}); {self.remedy}"
        except UserError as error:
            self.bad[name] = str(error)
        else:
            digest = hashlib.sha256(content)
            self.digests[position] = np.frombuffer(digest.digest(), dtype=np.uint8)
            self.listing.update(f"{digest.hexdigest()}  ".encode() + os.fsencode(f"{name}\n"))
            return content
        return None


def _splits(raw: EncodedRaw, config: "Dataset") -> dict[str, np.ndarray]:
    check_sizes(raw, config)
    splits = split(raw, config)
    check_splits(config["name"], raw, splits)
    return splits


def _statistics(data: EncodedData, config: "Dataset") -> MeanStd:
    """Mean and std per channel: those given, else of the sample's pixels, which are read back from the shards."""
    given = config["statistics"]
    if given is not None:
        return given["mean"], given["std"]
    counts = np.zeros((CHANNELS, 256), dtype=np.int64)
    for position in sorted(statistics_sample(data.splits["train"], config["seed"]).tolist()):
        counts += levels(data.decode(position).numpy())
    return moments(counts)


def statistics_sample(train: np.ndarray, seed: int) -> np.ndarray:
    """The training images that mean and std are computed from: the 10,000 of smallest hash, or all if fewer."""
    draws = hash64(seed, "statistics", torch.from_numpy(train)).numpy()
    return train[np.argsort(draws, kind="stable")[:STATISTICS_IMAGES]]


@contextmanager
def _locked(out: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the operating system's lock on the data set's folder; the kernel drops it when the process dies."""
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
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
