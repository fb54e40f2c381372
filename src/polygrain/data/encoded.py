"""Encoded images: a data set as shards of the original JPEG and PNG files, each decoded when it is asked for.

data/{name}/shards/shard-00000.bin, ...: the files' bytes one after another, about 256 MB a shard; index.npz: int64 [N]
`shard`, `offset`, `length` (bytes) and `height`, `width` (px, as decoded); labels.npy and splits.npz as for images of
equal size; manifest.json with format 2.

Every image comes out as RGB and upright: grey, palette and CMYK files are converted, the EXIF orientation is applied,
transparency is dropped, of 16-bit colours the upper byte is kept.
"""

import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from polygrain.data.packed import MANIFEST, DataSet, checked
from polygrain.provenance.errors import UserError

FORMAT = 2
CHANNELS = 3
SHARDS = "shards"
INDEX = ("shard", "offset", "length", "height", "width")
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_TEXT_TOTAL = 64  # Pillow's ratio of all text in a PNG file to one chunk of it


@dataclass(frozen=True)
class Limits:
    """What an image file may ask of the memory, and the file that says so; the defaults are Pillow's."""

    where: str
    pixels: int = 178_956_970
    """Height times width."""
    text: int = 2**20
    """Bytes of one text chunk of a PNG file, unpacked; all of them together may have 64 times as many."""


def shard_name(number: int) -> str:
    """Name of a shard, relative to the data set's folder."""
    return f"{SHARDS}/shard-{number:05d}.bin"


@dataclass(frozen=True)
class EncodedData(DataSet):
    """A data set of encoded images of any sizes; the shards are memory-mapped, so nothing is read before it is used."""

    root: Path
    index: dict[str, np.ndarray]
    _shards: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def sizes(self, positions: np.ndarray) -> np.ndarray:
        """Height and width of images as decoded, int64 [n, 2]."""
        return np.stack((self.index["height"][positions], self.index["width"][positions]), axis=1)

    def content(self, position: int) -> bytes:
        """The file of one image, as it was packed."""
        number, offset, length = (int(self.index[key][position]) for key in ("shard", "offset", "length"))
        if number not in self._shards:
            self._shards[number] = np.memmap(self.root / shard_name(number), dtype=np.uint8, mode="r")
        return self._shards[number][offset : offset + length].tobytes()

    def decode(self, position: int) -> Tensor:
        """One image, uint8 [3, H, W]. Raises UserError naming the shard when its bytes are damaged."""
        shard = self.root / shard_name(int(self.index["shard"][position]))
        remedy = f"rebuild it with `snakemake --cores all --force {self.root / MANIFEST}`"
        image = decode(self.content(position), f"{shard}, image {position}", remedy)
        if image.shape[1:] != (self.index["height"][position], self.index["width"][position]):
            raise UserError(f"{shard}, image {position}: another size than index.npz says; {remedy}")
        return image


def open_encoded(root: Path, verify: bool = False) -> EncodedData:
    """Open a data set of encoded images. Sizes and the small files are always checked, the shards' hashes on `verify`.

    Raises UserError naming the file that is missing, truncated or not what was packed.
    """
    manifest, splits = checked(root, lambda name: verify or not name.startswith(SHARDS))
    with np.load(root / "index.npz") as archive:
        index = {name: archive[name] for name in INDEX}
    return EncodedData(np.load(root / "labels.npy"), manifest, splits, root, index)


def decode(content: bytes, where: str, remedy: str, limits: Limits | None = None) -> Tensor:
    """Decode an image file to uint8 [3, H, W]. Raises UserError naming `where` when it is damaged or no image.

    A file beyond `limits` is refused too; None, for a file that was packed and so within them, sets no limits.
    """
    with _opened(content, where, remedy, limits) as image:
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        pixels = np.array(rgb if turn is None else rgb.transpose(turn))
    # left with the channels last in memory, which is how the resampling kernels are fastest
    return torch.from_numpy(pixels).permute(2, 0, 1)


def measure(content: bytes, where: str, remedy: str, limits: Limits | None = None) -> tuple[int, int]:
    """Height and width that `decode` would give. Raises UserError like it.

    The whole file is decoded, or damage would go unnoticed; a JPEG at an eighth of its size, which reads all of it too.
    """
    with _opened(content, where, remedy, limits) as image:
        whole = image.size
        drafted = image.draft(image.mode, (1, 1)) is not None
        image.load()
        width, height = whole if drafted else image.size
        return (width, height) if _orientation(image) in _SIDEWAYS else (height, width)


@contextmanager
def _opened(content: bytes, where: str, remedy: str, limits: Limits | None) -> Iterator[Image.Image]:
    """Open an image file; whatever its decoder raises on a damaged one, in the body too, becomes one line."""
    try:
        with _within(limits), Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.mode not in MODES:
                raise UserError(f"{where}: pixels of kind {image.mode} do not fit 8-bit RGB; convert the file")
            if limits and image.width * image.height > limits.pixels:
                size = f"{image.width} x {image.height} pixels"
                raise _beyond(where, size, f"limits.pixels of {limits.where} allows {limits.pixels}", remedy)
            yield image
    except UserError:
        raise
    except Exception as error:
        if limits and "MAX_TEXT" in str(error):  # in what Pillow says of either limit
            allowed = f"limits.text of {limits.where} allows {limits.text} bytes in a chunk"
            raise _beyond(where, "a PNG file with more text", allowed, remedy) from None
        raise UserError(f"{where}: not a whole image ({_line(error)}); {remedy}") from None


@contextmanager
def _within(limits: Limits | None) -> Iterator[None]:
    """Put Pillow's own limits, which are variables of its modules, out of the way or where `limits` says."""
    text = limits.text if limits else sys.maxsize
    before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    Image.MAX_IMAGE_PIXELS = None  # the number of pixels is held against the limit here
    PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = text, _TEXT_TOTAL * text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of harmless faults in EXIF data, once an image
            yield
    finally:
        Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = before


def _beyond(where: str, found: str, allowed: str, remedy: str) -> UserError:
    return UserError(f"{where}: {found}, where {allowed}; raise it, or {remedy}")


def _line(error: Exception) -> str:
    """What a decoder says, without the address of the buffer that it names."""
    if isinstance(error, UnidentifiedImageError):
        return "no image format is recognised"
    return " ".join(str(error).split()) or type(error).__name__


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) when there is none or the EXIF data are broken."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


OPEN = open_encoded
