"""Average precision by hand, by the library's own summary, and best overlaps by hand and by two libraries."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_iou

from polygrain.evaluate.scenes.average_precision import (
    Found,
    average_precisions,
    best_overlaps,
    box_ious,
    mask_ious,
)
from polygrain.provenance.errors import UserError

SIDE = 64


def made(rows: list[tuple[list[float], int, float]], crowd: tuple[int, ...] = ()) -> Found:
    """Objects as (box: left, top, right, bottom; label; score); each fills its box."""
    masks = np.zeros((len(rows), SIDE, SIDE), np.bool_)
    for mask, (box, _, _) in zip(masks, rows, strict=True):
        left, top, right, bottom = (round(value) for value in box)
        mask[top:bottom, left:right] = True
    return Found(
        np.array([box for box, _, _ in rows], np.float64).reshape(-1, 4),
        np.array([label for _, label, _ in rows], np.int64),
        masks,
        np.array([score for _, _, score in rows], np.float64),
        np.isin(np.arange(len(rows)), crowd),
    )


def scattered(seed: int, images: int, *, near: list[Found] | None = None) -> list[Found]:
    """Random boxes of three classes; those near others are shifted by up to 2 px."""
    generator, found = np.random.default_rng(seed), []
    for place in range(images):
        rows = []
        for number in range(generator.integers(0, 6)):
            box = np.concatenate([start := generator.integers(0, 40, 2), start + generator.integers(6, 22, 2)])
            label = int(generator.integers(1, 4))
            if near is not None and number < len(near[place].labels):
                box = np.clip(near[place].boxes[number] + generator.integers(-2, 3, 4), 0, SIDE)
                label = int(near[place].labels[number])
            rows.append((box.astype(float).tolist(), label, float(generator.integers(1, 50)) / 50))
        found.append(made(sorted(rows, key=lambda row: -row[2])))
    return found


def test_perfect_detections_have_one_and_random_ones_about_zero() -> None:
    truth = scattered(0, 40)
    assert set(average_precisions(truth, truth, 20).values()) == {1.0}
    chance = average_precisions(truth, scattered(1, 40), 20)
    assert max(chance.values()) < 0.05
    none = [made([]) for _ in truth]
    assert set(average_precisions(truth, none, 20).values()) == {0.0}


def test_small_cases_by_hand() -> None:
    one, two, far = [0.0, 0, 10, 10], [30.0, 30, 50, 50], [5.0, 40, 20, 60]
    truth = [made([(one, 1, 1)]), made([(two, 1, 1)])]
    # right, wrong, right: precision 1 up to recall 0.5 (51 of 101 recalls), 2 of 3 above
    found = [made([(one, 1, 0.9), (far, 1, 0.8)]), made([(two, 1, 0.7)])]
    expected = pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precisions(truth, found, 20) == dict.fromkeys(
        ("box-ap", "box-ap50", "box-ap75", "mask-ap", "mask-ap50", "mask-ap75"), expected
    )
    # only the likeliest detection of an image counts: the wrong one is cut off
    assert average_precisions(truth, found, 1)["box-ap"] == pytest.approx(1.0)
    # a class that is never found counts as zero, one that is only detected counts not at all
    rare = [made([(one, 1, 1), (far, 2, 1)]), made([(two, 1, 1)])]
    spare = [made([(one, 1, 0.9)]), made([(two, 1, 0.7), (far, 3, 0.9)])]
    assert average_precisions(rare, spare, 20)["box-ap"] == pytest.approx(0.5)
    # IoU of 0.62 passes three of ten limits
    wide = [made([([0.0, 0, 50, 50], 1, 1)])]
    partly = average_precisions(wide, [made([([0.0, 0, 31, 50], 1, 0.9)])], 20)
    assert partly["box-ap"] == partly["mask-ap"] == pytest.approx(0.3)
    assert (partly["box-ap50"], partly["box-ap75"]) == pytest.approx((1.0, 0.0))
    # what lies in a crowd is not wrong
    crowded = [made([(one, 1, 1), (two, 1, 1)], crowd=(1,))]
    inside = [made([([32.0, 32, 40, 40], 1, 0.95), (one, 1, 0.9)])]
    assert average_precisions(crowded, inside, 20)["box-ap"] == pytest.approx(1.0)


def summary(truth: list[Found], found: list[Found], kind: str) -> list[float]:
    """What the library says of the same by its own way: files in, `loadRes`, all sizes, 100 detections, `summarize`."""
    runs = [coco_mask.encode(np.asfortranarray(one.masks.transpose(1, 2, 0).astype(np.uint8))) for one in truth]
    annotations: list[dict[str, Any]] = [
        {"id": 0, "image_id": image, "category_id": int(label), "bbox": [*box[:2], *(box[2:] - box[:2])],
         "segmentation": run, "area": int(coco_mask.area(run)), "iscrowd": 0}
        for image, one in enumerate(truth)
        for label, box, run in zip(one.labels, one.boxes, runs[image], strict=True)
    ]  # fmt: skip
    for number, entry in enumerate(annotations, start=1):
        entry["id"] = number
    detections = []
    for image, one in enumerate(found):
        masks = coco_mask.encode(np.asfortranarray(one.masks.transpose(1, 2, 0).astype(np.uint8)))
        for label, box, run, score in zip(one.labels, one.boxes, masks, one.scores, strict=True):
            shape: dict[str, Any] = {"bbox": [*box[:2], *(box[2:] - box[:2])]} if kind == "bbox" else {}
            shape |= {"segmentation": run} if kind == "segm" else {}
            detections.append({"image_id": image, "category_id": int(label), "score": float(score), **shape})
    known = COCO()
    images = [{"id": image, "height": SIDE, "width": SIDE} for image in range(len(truth))]
    known.dataset = {
        "images": images, "annotations": annotations, "categories": [{"id": 1}, {"id": 2}, {"id": 3}]
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        known.createIndex()
        judge = COCOeval(known, known.loadRes(detections), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [float(value) for value in judge.stats[:3]]


def test_it_is_what_the_library_sums_up_and_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    truth = scattered(2, 60)
    found = scattered(3, 60, near=truth)
    numbers = average_precisions(truth, found, 100)
    assert capsys.readouterr().out == ""
    for kind, library in (("box", "bbox"), ("mask", "segm")):
        names = (f"{kind}-ap", f"{kind}-ap50", f"{kind}-ap75")
        assert [numbers[name] for name in names] == pytest.approx(summary(truth, found, library), abs=1e-12)
    assert 0.05 < numbers["box-ap"] < 0.9


def test_overlaps_are_those_of_two_libraries() -> None:
    (one, other) = (scattered(seed, 1)[0] for seed in (4, 8))
    assert min(len(one.labels), len(other.labels)) > 1
    expected = box_iou(torch.from_numpy(one.boxes), torch.from_numpy(other.boxes)).numpy()
    np.testing.assert_allclose(box_ious(one.boxes, other.boxes), expected, rtol=1e-12)
    runs = [coco_mask.encode(np.asfortranarray(a.masks.transpose(1, 2, 0).astype(np.uint8))) for a in (one, other)]
    np.testing.assert_allclose(mask_ious(one.masks, other.masks), coco_mask.iou(*runs, [0] * len(runs[1])), rtol=1e-12)
    empty = np.zeros((1, 4))
    assert box_ious(empty, empty).tolist() == [[0.0]]
    assert mask_ious(np.zeros((1, 2, 2), bool), np.zeros((1, 2, 2), bool)).tolist() == [[0.0]]


def test_best_overlaps_by_hand() -> None:
    one, two = [0.0, 0, 10, 10], [30.0, 30, 50, 50]
    truth = made([(one, 1, 1), (two, 2, 1)])
    found = made([
        ([0.0, 0, 10, 5], 1, 0.9),  # half of the first
        ([0.0, 0, 10, 9], 1, 0.4),  # nine tenths, but not sure
        (one, 2, 0.9),  # of another class
        ([30.0, 30, 50, 46], 2, 0.5),  # four fifths of the second, just sure
    ])  # fmt: skip
    assert best_overlaps(truth, found, 0.5) == pytest.approx({"box": (0.5 + 0.8) / 2, "mask": (0.5 + 0.8) / 2})
    assert best_overlaps(truth, made([]), 0.5) == {"box": 0.0, "mask": 0.0}
    crowded = made([(one, 1, 1), (two, 2, 1)], crowd=(1,))
    assert best_overlaps(crowded, found, 0.5)["box"] == pytest.approx(0.5)
    nothing = best_overlaps(made([]), found, 0.5)
    assert all(np.isnan(value) for value in nothing.values())


def test_scenes_without_objects_are_refused() -> None:
    with pytest.raises(UserError, match="no scene of the split holds an object"):
        average_precisions([made([]), made([([0.0, 0, 9, 9], 1, 1)], crowd=(0,))], [made([])] * 2, 20)
