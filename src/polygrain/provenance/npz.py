"""Archives of arrays whose bytes depend on the arrays alone.

`numpy.savez` leaves the zip headers to Python's zipfile, which writes other ones from Python 3.11.4 on. Here every
header is written out, as `numpy.savez` has them under Python 3.11.4 and later: no compression, no time, sizes of 64
bits before each member and of 32 bits in the directory. Any zip reader opens them, `numpy.load` too.
"""

import io
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

_LIMIT = 0xFFFFFFFF
_ZIP64 = 45  # the version of the zip format that knows 64-bit sizes
_FIRST_DAY = 33  # 1 January 1980, the first day that a zip file can name
_REGULAR = 0o600 << 16  # mode of a member, as zipfile gives it


def npz_bytes(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """An uncompressed .npz with one member for each array, in the order of `arrays`.

    Raises ValueError for an archive of 4 GiB or more.
    """
    content, directory = io.BytesIO(), io.BytesIO()
    for name, array in arrays.items():
        member = _npy(array)
        file, size, offset = f"{name}.npy".encode(), len(member), content.tell()
        if offset + size >= _LIMIT:
            raise ValueError("an archive of arrays must be smaller than 4 GiB")
        checksum = zlib.crc32(member)
        # signature, version, flags, method, time, date, checksum, sizes (in the extra field), lengths of both
        content.write(
            struct.pack("<4s5H3L2H", b"PK\3\4", _ZIP64, 0, 0, 0, _FIRST_DAY, checksum, _LIMIT, _LIMIT, len(file), 20)
        )
        content.write(file + struct.pack("<2H2Q", 1, 16, size, size) + member)
        # the same with the maker (3: Unix), then lengths of extra and comment, disk, kind, mode and place of the member
        directory.write(
            struct.pack("<4s6H3L", b"PK\1\2", 3 << 8 | _ZIP64, _ZIP64, 0, 0, 0, _FIRST_DAY, checksum, size, size)
            + struct.pack("<5H2L", len(file), 0, 0, 0, 0, _REGULAR, offset)
            + file
        )
    start, listed = content.tell(), directory.getvalue()
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(arrays), len(arrays), len(listed), start, 0)
    return content.getvalue() + listed + end


def _npy(array: npt.NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return stream.getvalue()
