"""PNG files whose bytes depend on the pixels alone: what zlib's compressor gives may change with its version.

Grey images are stored as they are. Palette images (masks) are rows minus the row above (filter 2), of which runs of
equal bytes are packed with the fixed code of deflate (RFC 1951, 3.2.6); any PNG reader opens both.
"""

import struct
import zlib
from functools import cache

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_STORED = 0xFFFF  # most bytes of a stored block
_LONGEST = 258  # bytes of one match
_BITS = 18  # most bits of a token: 8 of the length's code, 5 more of the length, 5 of the distance


def grey_png(image_HW: Bytes) -> bytes:
    """A grey image, uint8 [H, W]."""
    rows = np.pad(image_HW, ((0, 0), (1, 0))).tobytes()
    return _file(image_HW, 0, b"", _zlib(rows, _stored(rows)))


def palette_png(index_HW: Bytes, palette_K3: Bytes) -> bytes:
    """A mask, uint8 [H, W], with a palette uint8 [K, 3]. Raises ValueError for an index outside the palette."""
    if int(index_HW.max(initial=0)) >= len(palette_K3):
        raise ValueError(f"index {int(index_HW.max())} is outside the palette of {len(palette_K3)}")
    above = np.pad(index_HW, ((1, 0), (0, 0)))[:-1]
    rows = np.pad(index_HW - above, ((0, 0), (1, 0)), constant_values=2)
    return _file(index_HW, 3, _chunk(b"PLTE", palette_K3.tobytes()), _zlib(rows.tobytes(), packed_runs(rows.ravel())))


@cache
def _voc_colours() -> Bytes:
    numbers = np.arange(256)
    bits = (numbers[:, None, None] >> (3 * np.arange(8)[None, None, :] + np.arange(3)[None, :, None])) & 1
    colours: Bytes = (bits << (7 - np.arange(8))).sum(axis=2).astype(np.uint8)
    return colours


def voc_palette(size: int) -> Bytes:
    """The first `size` colours, uint8 [size, 3], that VOC and DAVIS print indices in.

    Bits 3 j, 3 j + 1 and 3 j + 2 of an index are the bits 7 - j of red, green and blue.
    """
    return _voc_colours()[:size]


def packed_runs(content: Bytes) -> bytes:
    """A deflate stream of bytes [n], n > 0: the first byte of a run as a literal, the rest as matches of distance 1."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(content)) + 1])
    rest = np.diff(np.concatenate([starts, [len(content)]])) - 1
    full, tail = rest // _LONGEST, rest % _LONGEST
    matched = tail >= 3
    counts = 1 + full + np.where(matched, 1, tail)
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # of a token in its run
    full, tail, matched = (np.repeat(array, counts) for array in (full, tail, matched))
    longest, last = (place >= 1) & (place <= full), matched & (place == full + 1)
    # token numbers: 0..255 a literal, 256 the end, 256 + length a match
    tokens = np.repeat(content[starts].astype(np.int64), counts)
    tokens = np.where(longest, 256 + _LONGEST, np.where(last, 256 + tail, tokens))
    values, lengths = (table[np.append(tokens, 256)] for table in _codes())
    bits = (values[:, None] >> np.arange(_BITS)) & 1
    used = bits[np.arange(_BITS) < lengths[:, None]]
    head = [1, 1, 0]  # the last block, with the fixed code
    return np.packbits(np.concatenate([head, used]).astype(np.uint8), bitorder="little").tobytes()


@cache
def _codes() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each token number its bits, the first one lowest, and how many they are."""
    values, lengths = np.zeros(257 + _LONGEST, np.int64), np.zeros(257 + _LONGEST, np.int64)
    for symbol in range(257):
        values[symbol], lengths[symbol] = _fixed(symbol)
    for length in range(3, _LONGEST + 1):
        symbol, extra, bits = _length_symbol(length)
        value, size = _fixed(symbol)
        values[256 + length] = value | extra << size  # behind it five zeros: distance 1
        lengths[256 + length] = size + bits + 5
    return values, lengths


def _fixed(symbol: int) -> tuple[int, int]:
    """The fixed code of a symbol, first bit lowest, and its length."""
    if symbol < 144:
        code, size = 0x30 + symbol, 8
    elif symbol < 256:
        code, size = 0x190 + symbol - 144, 9
    elif symbol < 280:
        code, size = symbol - 256, 7
    else:
        code, size = 0xC0 + symbol - 280, 8
    return int(f"{code:0{size}b}"[::-1], 2), size


def _length_symbol(length: int) -> tuple[int, int, int]:
    """The symbol of a match's length, the value of its extra bits, and how many they are."""
    if length == _LONGEST:
        return 285, 0, 0
    if length < 11:
        return 254 + length, 0, 0
    bits = (length - 3).bit_length() - 3
    step = (length - 3) >> bits
    return 257 + 4 * bits + step, (length - 3) & ((1 << bits) - 1), bits


def _stored(content: bytes) -> bytes:
    parts = [content[start : start + _STORED] for start in range(0, len(content), _STORED)]
    last = len(parts) - 1
    return b"".join(
        struct.pack("<B2H", number == last, len(part), len(part) ^ 0xFFFF) + part for number, part in enumerate(parts)
    )


def _zlib(content: bytes, deflated: bytes) -> bytes:
    return b"\x78\x01" + deflated + struct.pack(">L", zlib.adler32(content))


def _file(image_HW: Bytes, colours: int, palette: bytes, pixels: bytes) -> bytes:
    height, width = image_HW.shape
    header = struct.pack(">2L5B", width, height, 8, colours, 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", header) + palette + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))
