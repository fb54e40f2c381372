"""Hashes of files: by MD5, as DVC names contents, and by SHA-256, as records do."""

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from polygrain.provenance.files import sha256_file


def md5_bytes(content: bytes) -> str:
    """Hex MD5 of a byte string."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def md5_file(path: Path) -> str:
    """Hex MD5 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


class Hashes:
    """MD5 and SHA-256 of files under `root`, remembered by a file's inode, size and modification time.

    So a file that is renamed is not read again. Nothing is kept between two commands.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[tuple[str | int, ...], str] = {}

    def md5(self, path: Path) -> str | None:
        """Hex MD5 of a file, through a symbolic link; None where there is no plain file."""
        return self._hash("md5", md5_file, path)

    def sha256(self, path: Path) -> str | None:
        """Hex SHA-256 of a file, through a symbolic link; None where there is no plain file."""
        return self._hash("sha256", sha256_file, path)

    def read_ahead(self, paths: Iterable[Path]) -> None:
        """Take the MD5 of many files on all cores; large files are hashed without holding the interpreter."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(self.md5, paths))

    def _hash(self, kind: str, function: Callable[[Path], str], path: Path) -> str | None:
        if not (self._root / path).is_file():
            return None
        status = (self._root / path).stat()
        key = (kind, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in self._known:
            self._known[key] = function(self._root / path)
        return self._known[key]
