"""Small scenes in COCO's layout whose objects a test declares."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from polygrain.data.dense.coco import Coco
from polygrain.data.dense.rle import encode
from polygrain.data.dense.tree import Tree
from polygrain.evaluate.scenes.given import SceneSet

SIDE, CELLS, NAMES = 16, 4, ["ball", "cup", "hat"]
Objects = Sequence[tuple[int, npt.NDArray[np.bool_]]]
"""Category (from 1) and mask [SIDE, SIDE] of each object of a scene."""


def scene_set(root: Path, masks: Mapping[str, Sequence[Objects]], points: Mapping[int, Any] | None = None) -> SceneSet:
    """Write scenes for each split, and read them. points: keypoints by the object's number in its split, from 1."""
    return SceneSet("toy", {split: _coco(root, split, masks[split], points or {}) for split in masks})


def _coco(root: Path, split: str, masks: Sequence[Objects], points: Mapping[int, Any]) -> Coco:
    annotations: list[dict[str, Any]] = []
    images = []
    (root / split).mkdir(parents=True)
    for number, objects in enumerate(masks, start=1):
        Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(root / split / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": SIDE, "width": SIDE})
        for category, mask in objects:
            rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
            box = (
                [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
                if len(rows)
                else [0] * 4
            )
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "bbox": box}
            more = {"keypoints": points[entry["id"]]} if entry["id"] in points else {}
            runs = {"size": [SIDE, SIDE], "counts": encode(mask)}
            annotations.append({**entry, **more, "segmentation": runs})
    categories = [{"id": place, "name": name} for place, name in enumerate(NAMES, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"{split}.json").write_text(json.dumps(content))
    return Coco(Tree(root), f"{split}.json", split)
