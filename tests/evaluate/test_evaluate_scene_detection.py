"""Detection on toy scenes: parts by libraries and by hand, learning, chance, perfect detections, bits, bad input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import roi_align

from polygrain.backbones.load import load_backbone
from polygrain.data.dense.coco import Coco
from polygrain.data.dense.rle import encode
from polygrain.data.dense.tree import Tree
from polygrain.evaluate import scene_detection
from polygrain.evaluate.result import Result
from polygrain.evaluate.scene_detection import evaluate, judged, target, truth
from polygrain.evaluate.scenes.detector import Regions, Sampler, _Proposals, cell_anchors, levels
from polygrain.evaluate.scenes.given import SceneEncoder, SceneSet
from polygrain.provenance.errors import UserError

SIDE, COUNTS = 32, {"train": 48, "validation": 2, "test": 12}
FOLDERS = {"train": "train2017", "validation": "val2017", "test": "test2017"}
RESNET: dict[str, Any] = {
    "name": "resnet", "widths": [8, 8, 16], "strides": [1, 2, 2], "blocks": [1, 1, 1], "stem_stride": 2
}  # fmt: skip
VALUES: dict[str, Any] = {
    "train": 48, "epochs": 10, "batch": 8, "rate": 0.005, "trunk_factor": 1.0, "weight_decay": 0.01, "warmup": 0.1,
    "flip": 0.5, "width": 16, "left_out": 1, "anchors": [2.25], "proposals": 12, "drawn": 16, "box_side": 4,
    "hidden": 32, "mask_layers": [8], "mask_side": 4, "detections": 8, "sure": 0.5, "seed": 0,
}  # fmt: skip
Change = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def _drawn(generator: np.random.Generator, number: int) -> tuple[npt.NDArray[np.uint8], list[dict[str, Any]]]:
    """A grey scene with a dark square and a bright, lying rectangle on opposite sides; every sixth has none."""
    pixels = generator.integers(90, 130, (SIDE, SIDE)).astype(np.uint8)
    objects = []
    for category in (1, 2) if number % 6 else ():
        width, height = (10, 10) if category == 1 else (14, 8)
        left = int(generator.integers(0, 17 - width)) + 16 * ((number + category) % 2)
        top = int(generator.integers(0, SIDE - height))
        pixels[top : top + height, left : left + width] = 20 if category == 1 else 235
        mask = np.zeros((SIDE, SIDE), np.bool_)
        mask[top : top + height, left : left + width] = True
        runs = {"size": [SIDE, SIDE], "counts": encode(mask)}
        entry = {"id": 10 * number + category, "image_id": number, "category_id": 7 * category}
        objects.append({**entry, "bbox": [left, top, width, height], "segmentation": runs})
    return pixels, objects


def written(root: Path, change: Change = lambda entries: entries, *, changed: str = "") -> SceneSet:
    """Scenes on disk. change: of the annotations of the split `changed`."""
    splits = {}
    for place, (split, count) in enumerate(COUNTS.items()):
        generator = np.random.default_rng(place)
        (root / FOLDERS[split]).mkdir(parents=True)
        images, annotations = [], []
        for number in range(1, count + 1):
            pixels, objects = _drawn(generator, number)
            Image.fromarray(pixels).save(root / FOLDERS[split] / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "height": SIDE, "width": SIDE})
            annotations += objects
        if split == changed:
            annotations = change(annotations)
        categories = [{"id": 7, "name": "square"}, {"id": 14, "name": "bar"}, {"id": 21, "name": "ring"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(content))
        splits[split] = Coco(Tree(root), f"{split}.json", FOLDERS[split])
    return SceneSet("toy", splits)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SceneSet:
    return written(tmp_path_factory.mktemp("scenes"))


def encoder_on(scenes: SceneSet, backbone: dict[str, Any] | None = None, batch: int = 5) -> SceneEncoder:
    torch.manual_seed(0)
    network = load_backbone(**(backbone or RESNET), channels=1).eval().requires_grad_(False)
    return SceneEncoder(network, scenes, ([0.45], [0.2]), side=16, batch=batch)


@pytest.fixture(scope="module")
def learned(scenes: SceneSet) -> Result:
    return evaluate(encoder_on(scenes), **VALUES)


def test_it_learns_what_is_there(learned: Result) -> None:
    assert learned.values["toy/box-ap50"].value > 0.6
    assert learned.values["toy/mask-ap50"].value > 0.6
    assert learned.values["toy/box-iou"].value > 0.4
    index = learned.examples["toy"].index.tolist()
    assert index == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11], "scenes 6 and 12 hold no object, so they have no score"
    assert all(learned.agrees(name) for name in learned.values)
    assert set(learned.values) == {
        f"toy/{kind}-{name}" for kind in ("box", "mask") for name in ("ap", "ap50", "ap75", "iou")
    }


def test_nothing_is_learned_from_annotations_of_other_scenes(tmp_path: Path) -> None:
    def moved(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        order = np.random.default_rng(3).permutation(len(entries))
        return [{**one, "image_id": entries[place]["image_id"]} for one, place in zip(entries, order, strict=True)]

    chance = evaluate(encoder_on(written(tmp_path, moved, changed="train")), **VALUES)
    assert chance.values["toy/box-ap"].value < 0.1
    assert chance.values["toy/mask-ap"].value < 0.1


def test_perfect_detections_give_one_through_the_whole_judging(scenes: SceneSet) -> None:
    pictures = scenes.pictures("test")
    known = [truth(scenes, "test", picture) for picture in pictures]
    result = judged(scenes, pictures, known, 20, 0.5)
    assert [number.value for number in result.values.values()] == pytest.approx([1.0] * 8)


def test_the_same_bits_twice_whatever_torch_drew_before_and_the_network_stays(
    scenes: SceneSet, learned: Result, tmp_path: Path
) -> None:
    """Neither torch's global state nor the batch of features plays a part."""
    encoder = encoder_on(scenes, batch=3)
    before = {name: value.clone() for name, value in encoder.network.state_dict().items()}
    torch.manual_seed(77)
    torch.rand(5)
    drawn = torch.random.get_rng_state()
    evaluate(encoder, **VALUES).save(tmp_path / "two", "scene-detection")
    learned.save(tmp_path / "one", "scene-detection")
    for kind in ("json", "npz"):
        first, again = (tmp_path / folder / f"scene-detection.{kind}" for folder in ("one", "two"))
        assert first.read_bytes() == again.read_bytes()
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in encoder.network.state_dict().items())


def test_objects_are_those_with_pixels_and_area_and_crowds_are_not_trained_on(tmp_path: Path) -> None:
    def spoiled(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        none = {"size": [SIDE, SIDE], "counts": [SIDE * SIDE]}
        entries[1] = {**entries[1], "segmentation": none}
        entries[2] = {**entries[2], "bbox": [3, 3, 0, 5]}
        entries[4] = {**entries[4], "iscrowd": 1}
        return entries

    scenes = written(tmp_path, spoiled, changed="test")
    pictures = scenes.pictures("test")
    known = [truth(scenes, "test", picture) for picture in pictures]
    assert [one.labels.tolist() for one in known[:3]] == [[1], [2], [1, 2]]
    assert [one.crowd.tolist() for one in known[:3]] == [[False], [False], [True, False]]
    assert target(known[2], False, "cpu")["labels"].tolist() == [2]
    assert target(known[5], True, "cpu")["boxes"].shape == (0, 4)
    assert judged(scenes, pictures, known, 20, 0.5).values["toy/mask-ap"].value == pytest.approx(1.0)


def test_a_mirrored_target_is_that_of_the_mirrored_scene(scenes: SceneSet) -> None:
    known = truth(scenes, "train", scenes.pictures("train")[0])
    plain, mirrored = (target(known, flip, "cpu") for flip in (False, True))
    assert torch.equal(mirrored["masks"], plain["masks"].flip(-1))
    for mask, box in zip(mirrored["masks"], mirrored["boxes"], strict=True):
        rows, columns = torch.where(mask > 0)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_order_and_mirror_images_of_the_batches(scenes: SceneSet) -> None:
    """Every scene once in an epoch; about half of them mirrored, with their objects."""
    encoder, pictures = encoder_on(scenes), scenes.pictures("train")
    training = scene_detection.Training(2, 20, 0.1, 1.0, 0.0, 0.0, 0.5, 0)
    batches = list(scene_detection._batches(encoder, pictures, training))
    assert [len(views) for views, _ in batches] == [20, 20, 8] * 2
    plain = encoder.views("train", pictures)
    mirrored, orders = 0, []
    for first in (0, 3):
        views = torch.cat([batches[first + place][0] for place in range(3)])
        targets = [one for place in range(3) for one in batches[first + place][1]]
        order = []
        for view, one in zip(views, targets, strict=True):
            for flip, shown in ((False, plain), (True, plain.flip(-1))):
                for place in torch.where((shown == view).flatten(1).all(dim=1))[0].tolist():
                    order.append(place)
                    mirrored += flip
                    expected = target(truth(scenes, "train", pictures[place]), flip, "cpu")
                    assert torch.equal(one["boxes"], expected["boxes"])
        assert sorted(order) == list(range(48))
        orders.append(order)
    assert orders[0] != orders[1]
    assert 30 < mirrored < 66


def test_regions_are_those_of_roi_align_with_its_gradient() -> None:
    torch.manual_seed(0)
    map_Whw = torch.randn(3, 9, 7, dtype=torch.float64, requires_grad=True)
    start = torch.rand(20, 2, dtype=torch.float64) * 6
    box = torch.cat([start, start + torch.rand(20, 2, dtype=torch.float64) * 5], dim=1)
    box = torch.cat([box, torch.tensor([[0.0, 0, 7, 9], [-4, -3, 2, 2], [5, 6, 30, 40]]).double()])
    ours = Regions(4, [1])({"0": map_Whw[None]}, [box])
    theirs = roi_align(map_Whw[None], [box], 4, 1.0, 2, aligned=True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    weight = torch.randn_like(ours)
    gradients = [torch.autograd.grad((found * weight).sum(), map_Whw)[0] for found in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_a_region_is_cut_from_the_level_of_its_area() -> None:
    """Level k + floor(log2(side / 224)) of the pyramid's paper, in float64; exactly at the limit the coarser one."""
    generator = np.random.default_rng(0)
    start = generator.random((200, 2)) * 100
    box = np.concatenate([start, start + generator.random((200, 2)) * 700], axis=1)
    root = np.sqrt((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]))
    expected = np.clip(np.floor(4 + np.log2(root / 224)), 2, 5) - 2
    found = levels(torch.from_numpy(box), [4, 8, 16, 32])
    assert found.tolist() == expected.tolist()
    assert set(found.tolist()) == {0, 1, 2, 3}
    assert levels(torch.tensor([[0.0, 0, 112, 112], [0, 0, 111.99, 112]]), [4, 8]).tolist() == [1, 0]
    maps = {"0": torch.zeros(2, 1, 64, 64), "1": torch.ones(2, 1, 32, 32)}
    boxes = [torch.tensor([[0.0, 0, 200, 200], [8, 8, 40, 40]]), torch.zeros(0, 4)]
    pooled = Regions(3, [4, 8])(maps, boxes)
    assert pooled.shape == (2, 1, 3, 3)
    assert pooled.flatten(1).unique(dim=1).tolist() == [[1.0], [0.0]]


def test_anchors_have_the_area_of_their_square_and_three_ratios() -> None:
    anchors = cell_anchors([10.0, 24.0], 8)
    width, height = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    torch.testing.assert_close(width * height, torch.tensor([100.0, 576.0] * 3))
    torch.testing.assert_close(height / width, torch.tensor([0.5, 0.5, 1, 1, 2, 2]))
    torch.testing.assert_close((anchors[:, :2] + anchors[:, 2:]) / 2, torch.full((6, 2), 4.0))


def _sampled(key: tuple[int, int], labels: list[Tensor], drawn: int = 8) -> tuple[list[Tensor], list[Tensor]]:
    sampler = Sampler("rpn", drawn)
    sampler.key = key
    return sampler(labels)


def test_boxes_to_train_on_are_drawn_evenly_and_by_their_key_alone() -> None:
    labels = torch.tensor([1.0] * 6 + [-1.0] * 3 + [0.0] * 20)
    counts = torch.zeros(29)
    for step in range(600):
        (objects,), (ground,) = _sampled((0, step), [labels])
        assert int(objects.sum()) == int(ground.sum()) == 4
        assert not bool((objects * (labels < 1)).any())
        assert not bool((ground * (labels != 0)).any())
        counts += objects + ground
    torch.testing.assert_close(counts[:6] / 600, torch.full((6,), 4 / 6), rtol=0, atol=0.08)
    torch.testing.assert_close(counts[9:] / 600, torch.full((20,), 4 / 20), rtol=0, atol=0.07)
    assert counts[6:9].tolist() == [0, 0, 0]
    (few,), (rest,) = _sampled((0, 0), [torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0, 0, 0])])
    assert (int(few.sum()), int(rest.sum())) == (1, 7), "the background fills up"
    one = _sampled((1, 2), [labels, labels])
    torch.manual_seed(5)
    assert all(torch.equal(a, b) for a, b in zip(one[1], _sampled((1, 2), [labels, labels])[1], strict=True))
    assert torch.equal(_sampled((1, 2), [labels, labels[:20]])[1][0], one[1][0]), "other images change nothing"
    assert not torch.equal(one[1][0], one[1][1])
    assert not torch.equal(one[1][0], _sampled((1, 3), [labels, labels])[1][0])
    other = Sampler("box", 8)
    other.key = (1, 2)
    ground = [torch.zeros(40)]  # both stages draw eight of these
    assert not torch.equal(_sampled((1, 2), ground)[1][0], other(ground)[1][0])


def test_of_equally_likely_boxes_the_first_are_kept(scenes: SceneSet) -> None:
    values = scene_detection.Heads([2.25], 3, 16, 4, 32, [8], 4, 8)
    detector = scene_detection.new_detector(encoder_on(scenes), values, 16, 1, 0)
    assert isinstance(detector.rpn, _Proposals)
    found = detector.rpn._get_top_n_idx(torch.zeros(2, 60), [40, 20])
    assert found.tolist() == [[*range(12), *range(40, 52)]] * 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train": 0}, "train \\(0\\)"),
        ({"rate": 0.0}, "must be positive"),
        ({"trunk_factor": -1.0}, "must be positive"),
        ({"mask_layers": []}, "must be positive"),
        ({"mask_layers": [0]}, "must be positive"),
        ({"left_out": -1}, "not negative"),
        ({"anchors": []}, "positive sides"),
        ({"anchors": [-8.0]}, "positive sides"),
        ({"left_out": 3}, "3 levels are left out"),
        ({"rate": 1e20}, "the loss is not finite at step"),
    ],
)
def test_values_that_make_no_sense_are_refused(scenes: SceneSet, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        evaluate(encoder_on(scenes), **{**VALUES, "epochs": 1, **change})


def test_bad_scenes_are_clear_results_or_one_line(scenes: SceneSet, tmp_path: Path) -> None:
    quick = {**VALUES, "epochs": 1}
    bare = written(tmp_path / "bare", lambda entries: [], changed="train")
    assert evaluate(encoder_on(bare), **quick).values["toy/box-ap"].value < 0.05
    rare = written(tmp_path / "rare", lambda entries: [{**one, "category_id": 21} for one in entries], changed="test")
    assert evaluate(encoder_on(rare), **quick).values["toy/box-ap"].value < 0.05, "a class that no train scene has"
    with pytest.raises(UserError, match="no scene of the split holds an object"):
        evaluate(encoder_on(written(tmp_path / "none", lambda entries: [], changed="test")), **quick)
    pixels = {"name": "pixels", "image_size": 16, "width": 5}
    with pytest.raises(UserError, match="backbone pixels: has no weights"):
        evaluate(encoder_on(scenes, pixels), **quick)


def test_what_is_found_in_a_scene_depends_on_no_other(scenes: SceneSet) -> None:
    encoder, pictures = encoder_on(scenes), scenes.pictures("test", 4)
    values = scene_detection.Heads([2.25], 12, 16, 4, 32, [8], 4, 8)
    detector = scene_detection.new_detector(encoder, values, 16, 1, 0).eval()
    detector.roi.score_thresh = 0.0
    whole = scene_detection.detect(detector, encoder, "test", pictures)
    (alone,) = scene_detection.detect(detector, encoder, "test", pictures[2:3])
    assert len(alone.labels) == 8
    for part in ("boxes", "labels", "masks", "scores"):
        np.testing.assert_array_equal(getattr(alone, part), getattr(whole[2], part))
    assert (np.diff(alone.scores) <= 0).all()


@pytest.mark.parametrize("backbone", ["vit", "swin"])
def test_transformers_with_drop_path_train_too(scenes: SceneSet, backbone: str) -> None:
    shapes: dict[str, dict[str, Any]] = {
        "vit": {"patch": 4, "width": 8, "depth": 2, "heads": 2},
        "swin": {"patch": 2, "widths": [8, 8, 8], "depths": [1, 1, 1], "heads": [2, 2, 2], "window": 4},
    }
    network = {"name": backbone, "image_size": 16, "drop_path": 0.1, **shapes[backbone]}
    found = evaluate(encoder_on(scenes, network), **{**VALUES, "epochs": 1})
    assert isinstance(found, Result)
