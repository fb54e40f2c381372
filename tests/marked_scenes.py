"""Small scenes of grey blocks with a bright and a dark mark, which are their keypoints: what any network can learn."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from polygrain.backbones.load import load_backbone
from polygrain.data.dense.coco import Coco
from polygrain.data.dense.rle import encode
from polygrain.data.dense.tree import Tree
from polygrain.evaluate.scenes.given import SceneEncoder, SceneSet

SIDE, NAMES = 32, ["cup", "hat"]
COUNTS = {"train": 96, "validation": 16, "test": 32}
RESNET = {"name": "resnet", "widths": [8, 16], "strides": [1, 2], "blocks": [1, 1], "stem_stride": 2}
_FOLDERS = {"train": "train2017", "validation": "val2017", "test": "test2017"}


def marked_scenes(root: Path, *, permuted: bool = False) -> SceneSet:
    """One block in the upper and one in the lower half, but none in the first scene; the second has an empty mask.

    permuted: masks and keypoints are those of another scene.
    """
    return SceneSet("toy", {split: _write(root / split, split, permuted) for split in COUNTS})


def write_split(root: Path, split: str, entries: Sequence[dict[str, Any]], images: Sequence[npt.NDArray[Any]]) -> Coco:
    """A split of images [S, S] with annotations, in COCO's layout; ids count from 1."""
    (root / _FOLDERS[split]).mkdir(parents=True)
    listed = []
    for number, pixels in enumerate(images, start=1):
        Image.fromarray(pixels.astype(np.uint8)).save(root / _FOLDERS[split] / f"{number}.png")
        listed.append({"id": number, "file_name": f"{number}.png", "height": len(pixels), "width": len(pixels)})
    categories = [{"id": 5 * place, "name": name} for place, name in enumerate(NAMES, start=1)]
    content = {"images": listed, "annotations": list(entries), "categories": categories}
    (root / "all.json").write_text(json.dumps(content), encoding="utf-8")
    return Coco(Tree(root), "all.json", _FOLDERS[split])


def entry(number: int, image: int, category: int, mask: npt.NDArray[np.bool_], points: Sequence[int]) -> dict[str, Any]:
    """An annotation as COCO writes it."""
    rows, columns = np.nonzero(mask)
    box = (
        [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
        if mask.any()
        else 4 * [0]
    )
    runs = {"size": list(mask.shape), "counts": encode(mask)}
    about = {"id": number, "image_id": image, "category_id": category, "area": int(mask.sum()), "iscrowd": 0}
    return {**about, "bbox": box, "segmentation": runs, "keypoints": list(points)}


def _write(root: Path, split: str, permuted: bool) -> Coco:
    generator, entries, images = np.random.default_rng(len(split)), list[dict[str, Any]](), []
    for image in range(1, COUNTS[split] + 1):
        pixels = np.zeros((SIDE, SIDE), np.int64)
        for half in range(2 * (image > 1)):
            height, width = generator.integers(11, 15, 2).tolist()
            top, left = (
                int(generator.integers(0, 16 - height + 1)) + 16 * half,
                int(generator.integers(0, SIDE - width)),
            )
            category = int(generator.integers(0, 2))
            mask = np.zeros((SIDE, SIDE), bool)
            mask[top : top + height, left : left + width] = True
            pixels[mask] = (90, 170)[category]
            points = list[int]()
            for mark, shift in ((255, 2), (20, width // 2 + 1)):  # the bright one is in the left half
                row = int(generator.integers(top + 2, top + height - 2))
                column = left + shift + int(generator.integers(0, width // 2 - 2))
                pixels[row - 1 : row + 2, column - 1 : column + 2] = mark
                points += [column, row, 2]
            entries.append(entry(10 * image + half, image, 5 * (category + 1), mask, points))
        images.append(pixels)
    entries.append(entry(9, 2, 5, np.zeros((SIDE, SIDE), bool), [0] * 6))
    if permuted:
        order = generator.permutation(len(entries) - 1).tolist()
        kept = ("bbox", "area", "segmentation", "keypoints", "category_id")
        entries[:-1] = [{**entries[k], **{key: entries[o][key] for key in kept}} for k, o in enumerate(order)]
    return write_split(root, split, entries, images)


def marked_encoder(scenes: SceneSet, backbone: dict[str, Any] | None = None) -> SceneEncoder:
    """A random network that sees them."""
    torch.manual_seed(0)
    network = load_backbone(**(backbone or RESNET), channels=1).eval().requires_grad_(False)
    return SceneEncoder(network, scenes, ([0.2], [0.3]), side=16, batch=8)
