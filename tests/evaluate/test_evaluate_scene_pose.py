"""Keypoints of scenes, by hand-computed similarities, COCO's library, and on scenes that can be learnt."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marked_scenes import COUNTS, SIDE, entry, marked_encoder, marked_scenes, write_split
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import roi_align

from polygrain.config.project import Project
from polygrain.config.stages import stage_of
from polygrain.data.dense.coco import Coco
from polygrain.evaluate import scene_pose
from polygrain.evaluate.result import Result
from polygrain.evaluate.scene_pose import cells_of, evaluate, heat_loss, larger, located, placed
from polygrain.evaluate.scenes import oks as judged
from polygrain.evaluate.scenes.given import SceneEncoder, SceneSet
from polygrain.evaluate.scenes.oks import Posed, average_precision, oks
from polygrain.provenance.errors import UserError

VALUES: dict[str, Any] = {
    "train": 96, "epochs": 10, "batch": 8, "rates": [1e-6, 0.01], "warmup": 0.1, "weight_decay": 0.05, "width": 8,
    "head": 16, "depth": 1, "bins": 7, "sigma": 0.1, "seed": 0,
}  # fmt: skip


def _object(number: int, points: list[list[int]], area: float = 50.0, place: int = 0, image: int = 1) -> Posed:
    return Posed(number, image, place, (4.0, 8.0, 12.0, 16.0), area, np.array(points, dtype=np.int64))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SceneEncoder:
    return marked_encoder(marked_scenes(tmp_path_factory.mktemp("scenes")))


@pytest.fixture(scope="module")
def learnt(encoder: SceneEncoder) -> Result:
    return evaluate(encoder, **VALUES)


def test_the_similarity_is_the_one_computed_by_hand() -> None:
    """Area 50, sigma 0.1: exp(-d^2 / 4). Distances 2 and 0; a point that is not labelled does not count."""
    one = _object(1, [[10, 10, 2], [5, 9, 1], [0, 0, 0]])
    found = np.array([[[12.0, 10.0], [5.0, 9.0], [30.0, 30.0]]])
    assert oks([one], found, 0.1)[0] == pytest.approx((np.exp(-1) + 1) / 2)
    assert oks([replace(one, area=100.0)], found, 0.1)[0] == pytest.approx((np.exp(-0.5) + 1) / 2)
    assert oks([one], found, 0.05)[0] == pytest.approx((np.exp(-4) + 1) / 2)


def test_the_similarity_is_that_of_cocos_library() -> None:
    generator = np.random.default_rng(0)
    objects = [
        _object(number, np.column_stack([generator.integers(0, 20, (4, 2)), generator.permutation(4) % 3]).tolist())
        for number in range(6)
    ]
    objects = [replace(one, image=number, area=20.0 + number) for number, one in enumerate(objects)]
    found = np.stack([one.points[:, :2] for one in objects]) + generator.normal(size=(6, 4, 2))
    truth = COCO()
    truth.dataset = judged._dataset(objects)
    truth.createIndex()
    library = COCOeval(truth, truth.loadRes(judged._found(objects, found, np.ones(6))), "keypoints")
    library.params.kpt_oks_sigmas = np.full(4, 0.07)
    library._prepare()
    known = [library.computeOks(one.image, one.place)[0, 0] for one in objects]
    np.testing.assert_allclose(oks(objects, found, 0.07), known, rtol=1e-12)


def test_average_precision_is_the_one_computed_by_hand() -> None:
    """Of two objects one is found exactly and one with OKS 0.72, which is a match at 5 of 10 thresholds."""
    objects = [_object(1, [[10, 10, 2]]), _object(2, [[10, 10, 2]], image=2)]
    away = np.sqrt(-4 * np.log(0.72))
    found = np.array([[[10.0, 10.0]], [[10.0 + away, 10.0]]])
    assert oks(objects, found, 0.1).tolist() == pytest.approx([1.0, 0.72])
    half = 51 / 101  # of 101 recalls, those up to 0.5
    first = average_precision(objects, found, np.array([0.9, 0.1]), 0.1)
    assert first == pytest.approx({"oks-ap": (5 + 5 * half) / 10, "oks-ap50": 1.0, "oks-ap75": half})
    last = average_precision(objects, found, np.array([0.1, 0.9]), 0.1)  # the wrong one ranks first
    assert last == pytest.approx({"oks-ap": (5 + 5 * half / 2) / 10, "oks-ap50": 1.0, "oks-ap75": half / 2})
    classes = [objects[0], replace(objects[1], place=3)]
    each = average_precision(classes, found, np.array([0.1, 0.9]), 0.1)  # classes are ranked apart
    assert each == pytest.approx({"oks-ap": (1 + 0.5) / 2, "oks-ap50": 1.0, "oks-ap75": 0.5})
    perfect = average_precision(objects, np.array([[[10.0, 10.0]]] * 2), np.array([0.9, 0.1]), 0.1)
    assert set(perfect.values()) == {1.0}


def test_cells_hold_their_keypoints_and_highest_cells_give_them_back() -> None:
    """The box of 12 x 16 px becomes 15 x 20 px from column 2.5 and row 6; with 10 cells they are of 1.5 x 2 px."""
    one = _object(1, [[4, 8, 2], [16, 25, 1], [4, 8, 0], [1, 8, 2], [4, 30, 2]])
    assert larger(one.box) == (2.5, 6.0, 15.0, 20.0)
    (cells,) = cells_of([one], 10)
    assert cells.tolist() == [11, 99, -1, -1, -1], "not labelled, or outside of the larger box: no cell"
    logits = np.zeros((1, 2, 100), np.float32)
    logits[0, [0, 1], [11, 99]] = 5.0
    logits[0, 0, 12], logits[0, 0, 1] = 1.0, 1.0  # right and upper neighbours
    found = located(logits, [larger(one.box)])
    expected = [[2.5 + 1.75 * 1.5 - 0.5, 6 + 1.25 * 2 - 0.5], [2.5 + 9.5 * 1.5 - 0.5, 6 + 9.5 * 2 - 0.5]]
    np.testing.assert_allclose(found[0], expected)
    assert located(np.zeros((1, 1, 100), np.float32), [larger(one.box)])[0, 0].tolist() == [2.75, 6.5], (
        "first of equals"
    )


def test_every_keypoint_in_the_box_is_given_back_within_half_a_cell() -> None:
    points = [[column, row, 2] for column in range(3, 16) for row in range(6, 25)]
    one = _object(1, points)
    (cells,) = cells_of([one], 28)
    logits = np.eye(28 * 28, dtype=np.float32)[cells][None]
    away = np.abs(located(logits, [larger(one.box)])[0] - one.points[:, :2])
    assert (away <= np.array([15, 20]) / 56 + 1e-9).all()


def test_a_mirrored_object_has_its_cells_mirrored() -> None:
    one = _object(1, [[6, 12, 2], [13, 20, 1], [0, 0, 0]])
    cells, backwards = (cells_of([each], 10)[0] for each in (one, scene_pose._mirror(one, SIDE)))
    for before, after in zip(cells[:2], backwards[:2], strict=True):
        assert divmod(int(after), 10) == (before // 10, 9 - before % 10)
    assert backwards[2] == -1


def test_the_loss_is_the_cross_entropy_of_the_keypoints_that_have_a_cell() -> None:
    generator = np.random.default_rng(0)
    logits, cells = generator.normal(size=(2, 3, 9)), np.array([[0, -1, 8], [4, 4, -1]])
    soft = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    expected = -np.mean([np.log(soft[n, k, cells[n, k]]) for n, k in [(0, 0), (0, 2), (1, 0), (1, 1)]])
    given = torch.from_numpy(logits).requires_grad_()
    assert heat_loss(given, torch.from_numpy(cells)).item() == pytest.approx(expected, rel=1e-12)
    nothing = heat_loss(given, torch.full((2, 3), -1))
    assert nothing.item() == 0.0, "keypoints that all lie outside of their boxes"
    assert torch.autograd.grad(nothing, given)[0].abs().max() == 0


def test_heat_maps_are_those_of_the_objects_class_image_and_box(encoder: SceneEncoder) -> None:
    split = scene_pose._Split(encoder.scenes, "test", encoder.scenes.pictures("test", 4))
    training = scene_pose.Training("toy", 1, 4, 0.0, 0.0, 0)
    network = scene_pose._trained(encoder, split, training, 0.001, scene_pose.Sizes(8, 16, 1, 7))
    assert isinstance(network, scene_pose.HeatMaps)
    objects = [split.by_image[picture.id] for picture in split.pictures]
    assert [len(each) for each in objects] == [2, 2, 2], "no empty mask, no scene without objects"
    views = encoder.views("test", split.pictures)
    with torch.no_grad():
        together = network(views, *placed(objects, 2, torch.device("cpu")))
        assert together.shape == (6, 2, 14 * 14)
        for number, one in enumerate(split.objects):
            image = number // 2
            (alone,) = network(views[image : image + 1], *placed([[one]], 2, torch.device("cpu")))
            torch.testing.assert_close(together[number], alone, rtol=0, atol=1e-5)
            other = replace(one, place=1 - one.place)
            (wrong,) = network(views[image : image + 1], *placed([[other]], 2, torch.device("cpu")))
            assert (wrong - alone).abs().max() > 1e-3, "each class has maps of its own"
        corners = [[k // 2, *larger(one.box)] for k, one in enumerate(split.objects)]
        rois = torch.tensor([[k, left, top, left + width, top + height] for k, left, top, width, height in corners])
        maps = network.layers(roi_align(network.pyramid(views)[0], rois.float(), 7, 1 / 2, 2, True)).flatten(2)
        kernels = network.by_class.weight.T.view(2, 2, 16)[[one.place for one in split.objects]]
        torch.testing.assert_close(together, torch.bmm(kernels, maps), rtol=0, atol=1e-5)
    uneven = placed([objects[0][:1], objects[1]], 2, torch.device("cpu"))
    assert uneven[1].tolist() == [0, 2, 3]


def test_it_learns_what_is_there(encoder: SceneEncoder, learnt: Result) -> None:
    assert learnt.values["toy/oks-ap"].value > 0.6
    assert learnt.values["toy/oks-ap50"].value > 0.9
    assert learnt.values["toy/oks"].value > 0.8
    assert learnt.selected["toy"]["rate"] == 0.01, "the rate that learns nothing is not selected"
    assert learnt.examples["toy"].index.tolist() == [10 * image + half for image in range(2, 33) for half in (0, 1)]
    assert all(learnt.agrees(name) for name in learnt.values)


def test_keypoints_of_other_objects_teach_nothing(tmp_path: Path, learnt: Result) -> None:
    encoder = marked_encoder(marked_scenes(tmp_path, permuted=True))
    chance = evaluate(encoder, **{**VALUES, "rates": [0.01]})
    assert chance.values["toy/oks-ap"].value < 0.15
    assert chance.values["toy/oks"].value < learnt.values["toy/oks"].value / 2


def test_the_same_bytes_twice(encoder: SceneEncoder, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        torch.rand(3)  # the global state plays no part
        evaluate(encoder, **{**VALUES, "epochs": 1, "train": 20}).save(tmp_path / folder, "it")
    for kind in ("json", "npz"):
        assert (tmp_path / f"one/it.{kind}").read_bytes() == (tmp_path / f"two/it.{kind}").read_bytes()


def _with(encoder: SceneEncoder, split: str, coco: Coco) -> SceneEncoder:
    return marked_encoder(SceneSet("toy", {**encoder.scenes.splits, split: coco}))


def test_bad_input_is_one_line(encoder: SceneEncoder, tmp_path: Path) -> None:
    for change in ({"train": 0}, {"rates": []}, {"head": 0}, {"depth": 0}, {"bins": 0}):
        with pytest.raises(UserError, match=r"scene-pose: train .* must be positive"):
            evaluate(encoder, **{**VALUES, **change})
    with pytest.raises(UserError, match="scene-pose: sigma"):
        evaluate(encoder, **{**VALUES, "sigma": 0.0})
    with pytest.raises(UserError, match=r"scene-pose: the loss is not finite at step \d+"):
        evaluate(encoder, **{**VALUES, "rates": [1e30], "warmup": 0.0})
    with pytest.raises(UserError, match="scene-pose: backbone pixels has no weights"):
        evaluate(marked_encoder(encoder.scenes, {"name": "pixels", "image_size": 16, "width": 5}), **VALUES)
    images, mask = [np.zeros((SIDE, SIDE))], np.zeros((SIDE, SIDE), bool)
    mask[4:9, 4:9] = True
    invisible = write_split(tmp_path / "invisible", "test", [entry(1, 1, 5, mask, [0] * 6)], images)
    with pytest.raises(UserError, match="no object of the test split of toy has a labelled keypoint"):
        evaluate(_with(encoder, "test", invisible), **VALUES)
    more = [entry(1, 1, 5, mask, [5, 5, 2] * 2), entry(2, 1, 10, mask, [5, 5, 2] * 3)]
    with pytest.raises(UserError, match=r"toy, train split: objects have \[2, 3\] keypoints"):
        evaluate(_with(encoder, "train", write_split(tmp_path / "more", "train", more, images)), **VALUES)
    bare = {key: value for key, value in more[0].items() if key != "area"}
    with pytest.raises(UserError, match="toy, train split: annotation 1 has no area"):
        evaluate(_with(encoder, "train", write_split(tmp_path / "bare", "train", [bare], images)), **VALUES)


def test_an_object_whose_keypoints_are_all_invisible_is_left_out(encoder: SceneEncoder, tmp_path: Path) -> None:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[4:9, 4:9] = True
    entries = [entry(1, 1, 5, mask, [5, 5, 2, 7, 7, 1]), entry(2, 1, 5, mask, [0] * 6)]
    crowd = {**entry(3, 1, 5, mask, [5, 5, 2, 7, 7, 1]), "iscrowd": 1}
    coco = write_split(tmp_path, "test", [*entries, crowd], [np.zeros((SIDE, SIDE))])
    found = evaluate(_with(encoder, "test", coco), **{**VALUES, "epochs": 1, "rates": [0.01]})
    assert found.examples["toy"].index.tolist() == [1]


def test_the_protocol_is_a_stage_on_scenes() -> None:
    project = Project(Path(__file__).resolve().parents[2])
    stage = stage_of(project, "evaluate", "runs/smoke/fashion-mnist/simclr/base/seed0/results/scene-pose")
    assert stage.config["scenes"] == "scenes-smoke"
    assert "polygrain.evaluate.scene_pose" in stage.entries
    assert set(COUNTS) == {"train", "validation", "test"}
