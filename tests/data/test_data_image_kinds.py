"""Every format, mode and orientation of an image file against pixels that are known and turned with numpy alone."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from polygrain.data.encoded import Limits, decode, measure
from polygrain.provenance.errors import UserError

HEIGHT, WIDTH, BLOCK = 32, 48, 16  # whole blocks of a JPEG, so that one colour a block survives it
ORIENTATION = 0x0112
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}
"""EXIF orientation -> the upright picture of the stored rows, as the EXIF standard's table of row 0 and column 0."""


def blocks(channels: int) -> np.ndarray:
    """Known stored values, uint8 [H, W, channels], one in each block and no two blocks alike."""
    few = np.random.default_rng(channels).permutation(200)[: HEIGHT * WIDTH // BLOCK**2 * channels].astype(np.uint8)
    few = few.reshape(HEIGHT // BLOCK, WIDTH // BLOCK, channels)
    return few.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.reshape(HEIGHT, WIDTH, 1), 3, axis=2)


def in_mode(mode: str) -> tuple[Image.Image, np.ndarray]:
    """An image of a mode, and the RGB pixels [H, W, 3] that its values mean."""
    if mode == "1":
        bits = blocks(1)[..., 0] > 100
        return Image.fromarray(bits), grey(bits * np.uint8(255))
    if mode == "P":
        palette = np.random.default_rng(9).integers(0, 256, (256, 3)).astype(np.uint8)
        image = Image.fromarray(blocks(1)[..., 0]).convert("P")
        image.putpalette(palette.tobytes())
        return image, palette[blocks(1)[..., 0]]
    values = blocks({"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode])
    if mode == "CMYK":
        values[..., 3] = 0  # without black the other three are the complements of RGB
        return Image.frombytes("CMYK", (WIDTH, HEIGHT), values.tobytes()), 255 - values[..., :3]
    image = Image.frombytes(mode, (WIDTH, HEIGHT), values.tobytes())
    return image, grey(values[..., :1]) if mode in ("L", "LA") else values[..., :3]


KINDS = [
    *(("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
    *(("TIFF", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")),
    *(("WEBP", mode) for mode in ("RGB", "RGBA")),
    *(("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},
}


def agrees(content: bytes, expected: np.ndarray, within: int = 0) -> None:
    found = decode(content, "", "").numpy().transpose(1, 2, 0)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= within
    assert measure(content, "", "") == expected.shape[:2]


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(("kind", "mode"), KINDS)
def test_every_format_mode_and_orientation_comes_out_upright(kind: str, mode: str, orientation: int) -> None:
    image, meant = in_mode(mode)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"transparency": 3} if (kind, mode) == ("PNG", "P") else {}
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif, **OPTIONS.get(kind, {}), **options)
    agrees(buffer.getvalue(), TURNS[orientation](meant), within=3 if kind == "JPEG" else 0)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits"])
@pytest.mark.parametrize("orientation", TURNS)
def test_a_compressed_tiff_is_turned_once(compression: str, orientation: int) -> None:
    image, meant = in_mode("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", tiffinfo={ORIENTATION: orientation}, compression=compression)
    agrees(buffer.getvalue(), TURNS[orientation](meant))


@pytest.mark.parametrize(("kind", "mode"), [("BMP", "1"), ("BMP", "L"), ("BMP", "P"), ("BMP", "RGB"), ("PPM", "L"),
                                            ("PPM", "1"), ("PPM", "RGB")])  # fmt: skip
def test_formats_without_an_orientation(kind: str, mode: str) -> None:
    image, meant = in_mode(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    agrees(buffer.getvalue(), meant)


def png(colour: int, rows: np.ndarray, orientation: int, before: bool = True) -> bytes:
    """A PNG of 16-bit samples [H, W, channels], written by hand; its eXIf chunk stands before or after the pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], 16, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows))
    exif = chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHHI", ORIENTATION, 3, 1, orientation, 0, 0))
    parts = [exif, chunk(b"IDAT", pixels)]
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + b"".join(parts if before else parts[::-1]) + chunk(b"IEND", b"")


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("colour", [2, 6])
def test_of_sixteen_bit_colours_the_upper_byte_is_kept(colour: int, orientation: int, before: bool) -> None:
    channels = {2: 3, 6: 4}[colour]
    deep = np.random.default_rng(4).integers(0, 2**16, (HEIGHT, WIDTH, channels))
    agrees(png(colour, deep, orientation, before), TURNS[orientation](deep[..., :3] >> 8))


@pytest.mark.parametrize("look", [decode, measure])
@pytest.mark.parametrize("orientation", TURNS)
def test_sixteen_bit_grey_is_refused(look: Any, orientation: int) -> None:
    deep = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1)
    with pytest.raises(UserError, match=r"^x: pixels of kind I;16 do not fit 8-bit RGB; convert the file$"):
        look(png(0, deep, orientation), "x", "")


LIMITS = Limits("params/dataset/zoo.yaml", pixels=HEIGHT * WIDTH, text=1000)


def with_text(length: int, packed: bool = True) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", "x" * length, zip=packed)
    buffer = io.BytesIO()
    in_mode("RGB")[0].save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


@pytest.mark.parametrize("look", [decode, measure])
def test_limits_are_no_damage_and_name_the_key_to_raise(look: Any) -> None:
    look(with_text(1000), "a.png", "remove it", LIMITS)
    with pytest.raises(UserError) as caught:
        look(with_text(0), "a.png", "remove it", Limits("params/dataset/zoo.yaml", pixels=1535))
    assert str(caught.value) == (
        "a.png: 48 x 32 pixels, where limits.pixels of params/dataset/zoo.yaml allows 1535; raise it, or remove it"
    )
    for content in (with_text(1001), with_text(64_001, packed=False)):
        with pytest.raises(UserError) as caught:
            look(content, "a.png", "remove it", LIMITS)
        assert str(caught.value) == (
            "a.png: a PNG file with more text, where limits.text of params/dataset/zoo.yaml allows 1000 bytes in a"
            " chunk; raise it, or remove it"
        )


def test_what_was_packed_is_decoded_whatever_pillow_would_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    agrees(with_text(3_000_000), in_mode("RGB")[1])
    assert Image.MAX_IMAGE_PIXELS == 10
