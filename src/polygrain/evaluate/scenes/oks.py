"""Object keypoint similarity (OKS), and the average precision that COCO's own library makes of it.

The OKS of an object of area a is the mean over its labelled keypoints of exp(-d^2 / (2 a (2 sigma)^2)), with d the
distance in px of the found keypoint from the true one. COCO measured a sigma for each keypoint of a person by how much
annotators differ; scenes are annotated exactly, so one declared sigma holds for all keypoints.

Legend: N objects, K keypoints.
"""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Posed:
    """An object whose keypoints are looked for."""

    id: int
    image: int
    place: int
    """Of its class."""
    box: tuple[float, float, float, float]
    """Left, top, width, height, px."""
    area: float
    """Of its mask, px."""
    points: Integers
    """Column, row and visibility, int64 [K, 3]; 0 is not labelled."""


def oks(objects: Sequence[Posed], found_NK2: Floats, sigma: float) -> Floats:
    """The similarity of each object with the found columns and rows, float64 [N], 0 to 1."""
    truth_NK3 = np.stack([one.points for one in objects])
    area_N = np.array([one.area for one in objects])
    square_NK = np.square(found_NK2 - truth_NK3[..., :2]).sum(axis=2)
    near_NK = np.exp(-square_NK / (2 * area_N[:, None] * (2 * sigma) ** 2))
    labelled_NK = truth_NK3[..., 2] > 0
    mean_N: Floats = (near_NK * labelled_NK).sum(axis=1) / labelled_NK.sum(axis=1)
    return mean_N


def average_precision(objects: Sequence[Posed], found_NK2: Floats, score_N: Floats, sigma: float) -> dict[str, float]:
    """`oks-ap`, the mean over OKS thresholds 0.5, 0.55, ... 0.95 and over classes, and `oks-ap50` and `oks-ap75`.

    score_N: how sure the network is of an object's keypoints, by which it is ranked among those of its class.
    """
    with redirect_stdout(io.StringIO()):  # the library reports its progress there
        truth = COCO()
        truth.dataset = _dataset(objects)
        truth.createIndex()
        judged = COCOeval(truth, truth.loadRes(_found(objects, found_NK2, score_N)), "keypoints")
        judged.params.kpt_oks_sigmas = np.full(found_NK2.shape[1], sigma)
        judged.params.areaRng, judged.params.areaRngLbl = [[0, 1e10]], ["all"]
        judged.evaluate()
        judged.accumulate()
    precision = judged.eval["precision"]  # by threshold, recall, class, area, number; -1 where a class has no object
    thresholds = {"oks-ap": slice(None), "oks-ap50": slice(0, 1), "oks-ap75": slice(5, 6)}
    return {name: float(known[known > -1].mean()) for name, part in thresholds.items() for known in [precision[part]]}


def _dataset(objects: Sequence[Posed]) -> dict[str, Any]:
    annotations = [
        {
            "id": number,
            "image_id": one.image,
            "category_id": one.place,
            "bbox": list(one.box),
            "area": one.area,
            "iscrowd": 0,
            "keypoints": one.points.ravel().tolist(),
            "num_keypoints": int((one.points[:, 2] > 0).sum()),
        }
        for number, one in enumerate(objects, start=1)  # the library takes a match with id 0 for none
    ]
    images = [{"id": image} for image in sorted({one.image for one in objects})]
    categories = [{"id": place} for place in sorted({one.place for one in objects})]
    return {"images": images, "annotations": annotations, "categories": categories}


def _found(objects: Sequence[Posed], found_NK2: Floats, score_N: Floats) -> list[dict[str, Any]]:
    shown = np.ones((*found_NK2.shape[:2], 1))
    rows = np.concatenate([found_NK2, shown], axis=2).reshape(len(objects), -1).tolist()
    return [
        {"image_id": one.image, "category_id": one.place, "keypoints": row, "score": score}
        for one, row, score in zip(objects, rows, score_N.tolist(), strict=True)
    ]
