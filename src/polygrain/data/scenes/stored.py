"""Zip archives without compression whose bytes depend on names and contents alone: no time, fixed attributes."""

import struct
import zlib
from pathlib import Path
from types import TracebackType
from typing import IO

_LIMIT = 0xFFFFFFFF
_MOST = 0xFFFF  # members, without the 64-bit extension
_VERSION = 20
_UTF8 = 0x800  # flag: names are UTF-8
_FIRST_DAY = 33  # 1 January 1980, the first day that a zip file can name
_REGULAR = 0o100644 << 16


class StoredZip:
    """Writes members to `path` one after another; the directory follows when the context ends without an exception."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._directory = bytearray()
        self._members = 0

    def __enter__(self) -> "StoredZip":
        self._stream: IO[bytes] = self._path.open("wb")
        return self

    def add(self, name: str, content: bytes) -> None:
        """Append a member. Raises ValueError when the archive would have 65,536 members or 4 GiB."""
        file, offset, size = name.encode(), self._stream.tell(), len(content)
        if self._members >= _MOST or offset + size >= _LIMIT:
            raise ValueError(f"{name}: an archive holds fewer than 65,536 members and less than 4 GiB")
        # flags, method, time, date, checksum, sizes, length of the name, no extra field
        fields = struct.pack("<4H3L2H", _UTF8, 0, 0, _FIRST_DAY, zlib.crc32(content), size, size, len(file), 0)
        self._stream.write(struct.pack("<4sH", b"PK\3\4", _VERSION) + fields + file)
        self._stream.write(content)
        # made by Unix (3); then no comment, disk 0, kind 0, mode, place
        self._directory += struct.pack("<4s2H", b"PK\1\2", 3 << 8 | _VERSION, _VERSION) + fields
        self._directory += struct.pack("<3H2L", 0, 0, 0, _REGULAR, offset) + file
        self._members += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            start, size = self._stream.tell(), len(self._directory)
            end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, self._members, self._members, size, start, 0)
            self._stream.write(bytes(self._directory) + end)
        self._stream.close()
