"""Average precision of boxes and masks, by pycocotools' COCOeval, and the best overlaps of each image by hand.

Average precision of COCO: the mean over ten limits of IoU (0.50 to 0.95), 101 recalls and the classes that occur.

Legend: R objects or detections of one image, S side of an image.
"""

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from polygrain.provenance.errors import UserError

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Masks = npt.NDArray[np.bool_]
KINDS = {"box": "bbox", "mask": "segm"}  # ours, and the library's names
_LIMITS = {"ap": None, "ap50": 0.5, "ap75": 0.75}


@dataclass(frozen=True)
class Found:
    """Objects of one image, known or detected."""

    boxes: Floats
    """[R, 4]: left, top, right, bottom; px."""
    labels: Integers
    """[R], 1 + the class."""
    masks: Masks
    """[R, S, S]."""
    scores: Floats
    """[R]; 1 for known objects."""
    crowd: npt.NDArray[np.bool_]
    """[R]: known only as a crowd: what lies in it counts neither as found nor as wrong."""


def average_precisions(truth: Sequence[Found], found: Sequence[Found], most: int) -> dict[str, float]:
    """`box-ap`, `box-ap50`, `box-ap75`, and the same of masks, in 0..1. most: detections of an image that count.

    Raises UserError when no image holds an object.
    """
    if not any((~one.crowd).any() for one in truth):
        raise UserError("average precision: no scene of the split holds an object; there is nothing to find")
    known, numbers = _known(truth), dict[str, float]()
    for kind, library in KINDS.items():
        detected = [entry for image, one in enumerate(found, start=1) for entry in _entries(image, one)]
        with contextlib.redirect_stdout(io.StringIO()):  # the library prints its progress
            judge = COCOeval(known, _loaded(known, detected), library)
            judge.params.maxDets = [most]
            judge.params.areaRng, judge.params.areaRngLbl = judge.params.areaRng[:1], ["all"]
            judge.evaluate()
            judge.accumulate()
        for name, limit in _LIMITS.items():
            limits = np.full(10, True) if limit is None else np.isclose(judge.params.iouThrs, limit)
            precision = judge.eval["precision"][limits]
            numbers[f"{kind}-{name}"] = float(precision[precision > -1].mean())
    return numbers


def _known(truth: Sequence[Found]) -> Any:
    """The library's table of the known objects; images are numbered from 1."""
    entries = [entry for image, one in enumerate(truth, start=1) for entry in _entries(image, one)]
    crowds = np.concatenate([one.crowd for one in truth]).tolist()
    for number, (entry, crowd) in enumerate(zip(entries, crowds, strict=True), start=1):
        entry |= {"id": number, "iscrowd": int(crowd), "area": float(coco_mask.area(entry["segmentation"]))}
    labels = sorted({entry["category_id"] for entry in entries})
    height, width = truth[0].masks.shape[1:]
    images = [{"id": number, "height": height, "width": width} for number in range(1, len(truth) + 1)]
    return _table(images, entries, [{"id": label} for label in labels])


def _loaded(known: Any, entries: list[dict[str, Any]]) -> Any:
    """The library's table of detections. Its own `loadRes` has no place for both a box and a mask, nor for none."""
    for number, entry in enumerate(entries, start=1):
        entry |= {"id": number, "iscrowd": 0, "area": float(coco_mask.area(entry["segmentation"]))}
    return _table(known.dataset["images"], entries, known.dataset["categories"])


def _table(images: list[Any], entries: list[Any], categories: list[Any]) -> Any:
    table = COCO()
    table.dataset = {"images": images, "annotations": entries, "categories": categories}
    with contextlib.redirect_stdout(io.StringIO()):
        table.createIndex()
    return table


def _entries(image: int, one: Found) -> list[dict[str, Any]]:
    if not len(one.labels):
        return []
    runs = coco_mask.encode(np.asfortranarray(one.masks.transpose(1, 2, 0).astype(np.uint8)))
    sides = np.concatenate([one.boxes[:, :2], one.boxes[:, 2:] - one.boxes[:, :2]], axis=1)
    rows = zip(one.labels.tolist(), sides.tolist(), runs, one.scores.tolist(), strict=True)
    return [
        {"image_id": image, "category_id": label, "bbox": box, "segmentation": run, "score": score}
        for label, box, run, score in rows
    ]


def best_overlaps(truth: Found, found: Found, least: float) -> dict[str, float]:
    """By kind the mean over an image's objects, without crowds, of the best IoU of a detection of their class.

    least: score that a detection needs. An object without such a detection counts 0; NaN without an object.
    """
    sure = found.scores >= least
    same = truth.labels[:, None] == found.labels[None, sure]
    overlaps = {
        "box": box_ious(truth.boxes, found.boxes[sure]),
        "mask": mask_ious(truth.masks, found.masks[sure]),
    }
    whole = ~truth.crowd
    return {
        kind: float(np.where(same, iou, 0.0).max(axis=1, initial=0.0)[whole].mean()) if whole.any() else float("nan")
        for kind, iou in overlaps.items()
    }


def box_ious(one: Floats, other: Floats) -> Floats:
    """Intersection over union of each box of one with each of the other, float64 [R, R']; 0 where both are empty."""
    start = np.maximum(one[:, None, :2], other[None, :, :2])
    stop = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.maximum(stop - start, 0).prod(axis=2)
    sizes = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (one, other)]
    union = sizes[0][:, None] + sizes[1][None] - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1), 0.0)


def mask_ious(one: Masks, other: Masks) -> Floats:
    """The same of masks."""
    first, second = (masks.reshape(len(masks), math.prod(masks.shape[1:])).astype(np.int64) for masks in (one, other))
    shared = first @ second.T
    union = first.sum(axis=1)[:, None] + second.sum(axis=1)[None] - shared
    return np.where(union > 0, shared / np.maximum(union, 1), 0.0)
