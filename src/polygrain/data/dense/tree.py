"""The files of a dense data set, in a folder or in a zip archive that holds the same names."""

import io
import json
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from polygrain.provenance.errors import UserError

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]

SUFFIXES = (".jpg", ".png", ".jpeg", ".JPEG", ".JPG")
_INDEXED = ("P", "L", "1", "I", "I;16")


class Tree:
    """Read access by names with forward slashes, relative to the top."""

    def __init__(self, path: Path) -> None:
        """path: folder or zip archive. Raises UserError where there is neither."""
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        self._names: dict[str, set[str]] = defaultdict(set)
        if path.is_dir():
            return
        try:
            self._archive = zipfile.ZipFile(path)
        except FileNotFoundError:
            raise UserError(f"{path}: not found; give a folder or a zip archive") from None
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{path}: not a whole zip archive ({error}); get it again") from None
        for name in self._archive.namelist():
            folder, _, file = name.rpartition("/")
            self._names[folder].add(file)

    def where(self, name: str) -> str:
        """How errors call a file."""
        return f"{self.path}/{name}"

    def listed(self, folder: str) -> list[str]:
        """Names of the files directly in a folder, sorted. Raises UserError when there is no such folder."""
        if self._archive is None:
            if not (self.path / folder).is_dir():
                raise UserError(f"{self.where(folder)}: no such folder; is this the right layout?")
            return sorted(each.name for each in (self.path / folder).iterdir() if each.is_file())
        found = sorted(file for file in self._names.get(folder, ()) if file)
        if not found:
            raise UserError(f"{self.where(folder)}: no such folder; is this the right layout?")
        return found

    def folders(self, folder: str) -> list[str]:
        """Names of the folders directly in a folder, sorted; none where it does not exist."""
        if self._archive is None:
            place = self.path / folder
            return sorted(each.name for each in place.iterdir() if each.is_dir()) if place.is_dir() else []
        prefix = f"{folder}/"
        return sorted({name[len(prefix) :].partition("/")[0] for name in self._names if name.startswith(prefix)})

    def holds(self, name: str) -> bool:
        """Whether there is such a file."""
        if self._archive is None:
            return (self.path / name).is_file()
        folder, _, file = name.rpartition("/")
        return file in self._names.get(folder, ())

    def read(self, name: str) -> bytes:
        """A file's content. Raises UserError when it is missing or damaged."""
        if not self.holds(name):
            raise UserError(f"{self.where(name)}: not found; the data set is not whole")
        try:
            return (self.path / name).read_bytes() if self._archive is None else self._archive.read(name)
        except zipfile.BadZipFile as error:
            raise UserError(f"{self.where(name)}: damaged ({error}); get the archive again") from None

    def json(self, name: str) -> Any:
        """A JSON file. Raises UserError when it is missing or broken."""
        try:
            return json.loads(self.read(name))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{self.where(name)}: not valid JSON ({error}); get it again") from None

    def lines(self, name: str) -> list[str]:
        """The lines of a text file without the space around them; empty ones are left out."""
        return [line.strip() for line in self.read(name).decode("utf-8", "replace").splitlines() if line.strip()]

    def image(self, name: str) -> Bytes:
        """Pixels of an image, uint8 [1, H, W] for a grey one and [3, H, W] for any other. Raises UserError as below."""
        shown = self._opened(name)
        pixels = np.asarray(shown if shown.mode == "L" else shown.convert("RGB"))
        return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)

    def indices(self, name: str) -> Integers:
        """The number at each pixel of a mask, int64 [H, W]. Raises UserError for a damaged file and a colour image."""
        shown = self._opened(name)
        if shown.mode not in _INDEXED:
            raise UserError(f"{self.where(name)}: a mask must hold numbers, not colours of mode {shown.mode}")
        return np.asarray(shown).astype(np.int64)

    def _opened(self, name: str) -> Image.Image:
        content = self.read(name)
        try:
            shown = Image.open(io.BytesIO(content))
            shown.load()
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{self.where(name)}: not a whole image ({error}); get it again") from None
        return shown

    def with_suffix(self, stem: str) -> str:
        """The name of the image that is called `stem` up to its suffix. Raises UserError when there is none."""
        for suffix in SUFFIXES:
            if self.holds(stem + suffix):
                return stem + suffix
        raise UserError(f"{self.where(stem)}{SUFFIXES[0]}: not found, nor with {', '.join(SUFFIXES[1:])}")


def checked_indices(mask_HW: Integers, known: Sequence[int], where: str) -> Integers:
    """The mask, if it holds known numbers only. Raises UserError, which begins with `where`, naming an unknown one."""
    unknown = np.setdiff1d(mask_HW, known)
    if len(unknown):
        raise UserError(f"{where}: holds the number {unknown[0]}, which is no class of this data set; correct the mask")
    return mask_HW


def same_size(image_CHW: Bytes, mask_HW: Integers, where: str) -> None:
    """Raise UserError, which begins with `where`, for a mask of another size than its image."""
    if image_CHW.shape[1:] != mask_HW.shape:
        (height, width), (rows, columns) = image_CHW.shape[1:], mask_HW.shape
        raise UserError(f"{where}: a mask of {rows} x {columns} for an image of {height} x {width}; correct it")
