"""COCO: one JSON file with boxes, masks and keypoints of many images, which lie in a folder.

Layout: `annotations/instances_val2017.json` (or person_keypoints_...) and `val2017/000000000139.jpg`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from polygrain.data.dense.polygons import polygon_mask
from polygrain.data.dense.rle import decode
from polygrain.data.dense.tree import Bytes, Integers, Tree
from polygrain.provenance.errors import UserError

_SLACK = 1.0  # px by which a box may leave its image: upstream boxes are rounded


@dataclass(frozen=True)
class Instance:
    """An annotated object."""

    id: int
    category: int
    """Its `category_id`."""
    box: tuple[float, float, float, float]
    """Left, top, width, height, px."""
    crowd: bool
    segmentation: Any
    """As in the file: polygons, or run lengths."""
    keypoints: Integers | None
    """Column, row and visibility (0: none, 1: hidden, 2: shown), int64 [K, 3]; None where the file has none."""
    more: Mapping[str, Any]
    """The whole entry of the file."""


@dataclass(frozen=True)
class Picture:
    """An image and its objects, in the order of the file; an image may have none."""

    id: int
    file: str
    height: int
    width: int
    instances: tuple[Instance, ...]


class Coco:
    """The images of a split, sorted by id."""

    def __init__(self, tree: Tree, annotations: str, folder: str) -> None:
        """annotations: name of the JSON file. folder: where its images are.

        Raises UserError for a broken file, an id that occurs twice, an unknown image or category, a box outside of its
        image, keypoints that their count contradicts, and an image file that is missing.
        """
        self._tree, self.folder = tree, folder
        where, content = tree.where(annotations), tree.json(annotations)
        try:
            self.categories: dict[int, str] = _by_id(where, "category", content["categories"], "name")
            self.keypoints: dict[int, list[str]] = {
                int(one["id"]): list(one.get("keypoints", [])) for one in content["categories"]
            }
            files = _by_id(where, "image", content["images"], "file_name")
            _by_id(where, "annotation", content["annotations"], "id")
            sizes = {int(one["id"]): (int(one["height"]), int(one["width"])) for one in content["images"]}
            grouped: dict[int, list[Instance]] = {number: [] for number in files}
            for entry in content["annotations"]:
                place = f"{where}: annotation {entry['id']}"
                if entry["image_id"] not in grouped:
                    raise UserError(f"{place} belongs to image {entry['image_id']}, which is not in the file")
                grouped[entry["image_id"]].append(self._instance(place, entry, sizes[entry["image_id"]]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: not as COCO writes it ({type(error).__name__}: {error}); correct it") from None
        for number, name in files.items():
            if not tree.holds(f"{folder}/{name}"):
                raise UserError(f"{where}: image {number} is {tree.where(f'{folder}/{name}')}, which is not there")
        self.pictures = [
            Picture(number, files[number], *sizes[number], tuple(grouped[number])) for number in sorted(files)
        ]

    def image(self, picture: Picture) -> Bytes:
        """Pixels, uint8 [C, H, W]. Raises UserError when the file is damaged or of another size than declared."""
        name = f"{self.folder}/{picture.file}"
        pixels = self._tree.image(name)
        if pixels.shape[1:] != (picture.height, picture.width):
            raise UserError(f"{self._tree.where(name)}: not of {picture.height} x {picture.width} px, as declared")
        return pixels

    def mask(self, picture: Picture, instance: Instance) -> npt.NDArray[np.bool_]:
        """The object's pixels, [H, W]; none where its mask is empty. Raises UserError for a mask that does not fit."""
        where = f"{self._tree.where(self.folder)}/{picture.file}: annotation {instance.id}"
        given, size = instance.segmentation, (picture.height, picture.width)
        if isinstance(given, Mapping) and list(given.get("size", ())) == list(size):
            return decode(given["counts"], *size, where)
        if isinstance(given, Sequence) and not isinstance(given, str):
            return polygon_mask(given, *size, where)
        raise UserError(f"{where}: its mask is not of {size[0]} x {size[1]} px; correct it")

    def _instance(self, where: str, entry: Mapping[str, Any], size: tuple[int, int]) -> Instance:
        left, top, width, height = (float(value) for value in entry["bbox"])
        inside = left >= -_SLACK and top >= -_SLACK and left + width <= size[1] + _SLACK
        if not (inside and top + height <= size[0] + _SLACK and width >= 0 and height >= 0):
            raise UserError(f"{where}: box {entry['bbox']} is outside of its image of {size[0]} x {size[1]} px")
        category = int(entry["category_id"])
        if category not in self.categories:
            raise UserError(f"{where}: category {category} is not in the file")
        points = None
        if "keypoints" in entry:
            points = np.array(entry["keypoints"], dtype=np.float64).round().astype(np.int64).reshape(-1, 3)
            labelled = int((points[:, 2] > 0).sum())
            if entry.get("num_keypoints", labelled) != labelled:
                raise UserError(f"{where}: num_keypoints is {entry['num_keypoints']}, but {labelled} are labelled")
        box = (left, top, width, height)
        crowd = bool(entry.get("iscrowd", 0))
        return Instance(int(entry["id"]), category, box, crowd, entry.get("segmentation", []), points, entry)


def _by_id(where: str, kind: str, entries: Sequence[Mapping[str, Any]], key: str) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for entry in entries:
        if entry["id"] in found:
            raise UserError(f"{where}: {kind} id {entry['id']} occurs twice; each needs its own")
        found[int(entry["id"])] = entry[key]
    return found


def same_categories(train: Coco, other: Coco, where: str) -> None:
    """Raise UserError, which begins with `where`, when `other` has a category that the train file does not declare."""
    for number, name in other.categories.items():
        if train.categories.get(number) != name:
            raise UserError(
                f"{where}: category {number} '{name}' is not declared in the train split; nothing learns it"
            )
