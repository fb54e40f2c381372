"""Protocols on scenes, by numpy and a library, on perfect, permuted and toy features, and a network in its windows."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    jaccard_score,
    label_ranking_average_precision_score,
)

from polygrain.backbones.contract import Encoded, from_map
from polygrain.backbones.load import load_backbone
from polygrain.config.models import ProtocolChoice
from polygrain.config.project import Project
from polygrain.config.stages import stage_of
from polygrain.data.dense.coco import Coco, Picture
from polygrain.data.dense.rle import encode
from polygrain.data.dense.tree import Tree
from polygrain.evaluate import scene_labels, scene_segmentation
from polygrain.evaluate.linear import Solver
from polygrain.evaluate.result import Result
from polygrain.evaluate.scenes import iou
from polygrain.evaluate.scenes.given import SceneEncoder, SceneSet
from polygrain.evaluate.scenes.standard import Standard
from polygrain.provenance.errors import UserError
from polygrain.views.apply import plain_view

PROJECT = Project(Path(__file__).resolve().parents[2])
SIDE, CELLS, NAMES = 16, 4, ["ball", "cup", "hat"]
VALUES: dict[str, Any] = {"train": 60, "decays": [0.01, 1e-4], "iterations": 60, "tolerance": 1e-6}
COUNTS = {"train": 60, "validation": 20, "test": 24}
PROTOCOLS = {"scene-segmentation": scene_segmentation, "scene-labels": scene_labels}


def _write(root: Path, split: str, count: int, seed: int, names: Sequence[str]) -> Coco:
    """Scenes of whole 4 px cells: each cell is one of the classes or background; the first scene has no object."""
    generator, annotations, images = np.random.default_rng(seed), [], []
    folder = {"train": "train2017", "validation": "val2017", "test": "test2017"}[split]
    (root / folder).mkdir(parents=True)
    for number in range(1, count + 1):
        cells = generator.integers(0, len(NAMES) + 2, (CELLS, CELLS)) * (number > 1)
        cells[cells > len(NAMES)] = 0
        labels = np.kron(cells, np.ones((4, 4), np.int64))
        Image.fromarray((60 * labels).astype(np.uint8)).save(root / folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": SIDE, "width": SIDE})
        for category in np.unique(labels[labels > 0]).tolist():
            mask = labels == category
            rows, columns = np.nonzero(mask)
            box = [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
            runs = {"size": [SIDE, SIDE], "counts": encode(mask)}
            entry = {"id": 10 * number + category, "image_id": number, "category_id": 5 * category, "bbox": box}
            annotations.append({**entry, "segmentation": runs})
    categories = [{"id": 5 * place, "name": name} for place, name in enumerate(names, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"{split}.json").write_text(json.dumps(content))
    return Coco(Tree(root), f"{split}.json", folder)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SceneSet:
    root = tmp_path_factory.mktemp("scenes")
    made = {split: _write(root, split, count, seed, NAMES) for seed, (split, count) in enumerate(COUNTS.items())}
    return SceneSet("toy", made)


class Given:
    """Stands for `SceneEncoder`: the truth of each cell and of each scene as features, with noise, or permuted."""

    def __init__(self, scenes: SceneSet, noise: float = 0.0, permuted: bool = False) -> None:
        self.scenes, self.noise, self.permuted = scenes, noise, permuted

    def encoded(self, split: str, pictures: Sequence[Picture]) -> Iterator[Encoded]:
        generator = np.random.default_rng(len(split))
        truth = np.stack([self.scenes.semantic(split, picture) for picture in pictures])[:, 2::4, 2::4]
        present = np.stack([self.scenes.present(picture) for picture in pictures]).astype(float)
        if self.permuted:
            truth = generator.permutation(truth.ravel()).reshape(truth.shape)
            present = generator.permutation(present.ravel()).reshape(present.shape)
        maps = np.moveaxis(np.eye(len(NAMES) + 1)[truth], 3, 1)
        maps = maps + self.noise * generator.normal(size=maps.shape)
        pooled = present + self.noise * generator.normal(size=present.shape)
        yield from_map(torch.from_numpy(maps).float(), torch.from_numpy(pooled).float())


def _evaluate(name: str, given: Given, **changes: Any) -> Result:
    own = {"shrinkage": 0.001} if name == "scene-segmentation" else {}
    result: Result = PROTOCOLS[name].evaluate(given, **{**VALUES, **own, **changes})  # type: ignore[attr-defined]
    return result


def test_segmentation_of_perfect_and_of_permuted_features(scenes: SceneSet) -> None:
    """Perfect cells give every cell right; upsampling blurs their borders only. Permuted ones give the commonest."""
    perfect, chance = (_evaluate("scene-segmentation", Given(scenes, permuted=permuted)) for permuted in (False, True))
    assert perfect.values["toy/miou"].value > 0.75
    test = np.stack([scenes.semantic("test", picture) for picture in scenes.pictures("test")])
    common = (test == 0).mean()
    assert chance.values["toy/accuracy"].value == pytest.approx(common, abs=0.02)
    assert chance.values["toy/miou"].value == pytest.approx(common / 4, abs=0.05)
    at_cells = test[:, ::4, ::4]  # judged at the cells themselves nothing is blurred
    found = iou.Maps(torch.from_numpy(np.moveaxis(np.eye(4)[at_cells], 3, 1)).float(), at_cells)
    np.testing.assert_array_equal(
        scene_segmentation.predicted(found, torch.Tensor.double, torch.eye(4).double()), at_cells
    )


def test_labels_of_perfect_and_of_permuted_features(scenes: SceneSet) -> None:
    perfect, chance = (_evaluate("scene-labels", Given(scenes, permuted=permuted)) for permuted in (False, True))
    assert perfect.values["toy/map"].value == perfect.values["toy/label-ranking"].value == 1.0
    present = np.stack([scenes.present(picture) for picture in scenes.pictures("test")])
    assert chance.values["toy/map"].value == pytest.approx(present.mean(), abs=0.12)
    assert perfect.examples["toy"].index.tolist() == list(range(2, 25)), "the scene without objects has no ranking"


@pytest.mark.parametrize("name", PROTOCOLS)
def test_numbers_are_means_of_their_scores_and_bytes_are_equal_twice(
    scenes: SceneSet, name: str, tmp_path: Path
) -> None:
    for folder in ("one", "two"):
        _evaluate(name, Given(scenes, noise=1.0)).save(tmp_path / folder, name)
    for kind in ("json", "npz"):
        assert (tmp_path / f"one/{name}.{kind}").read_bytes() == (tmp_path / f"two/{name}.{kind}").read_bytes()
    read = Result.load(tmp_path / "one", name)
    assert all(read.agrees(number) for number in read.values)
    assert read.selected["toy"]["decay"] in VALUES["decays"]


def test_numbers_of_segmentation_are_those_of_a_library(scenes: SceneSet) -> None:
    generator = np.random.default_rng(0)
    truth, found = (generator.integers(0, 4, (5, 6, 6)) for _ in range(2))
    counts = iou.confusion(found, truth, 4)
    np.testing.assert_array_equal(counts, confusion_matrix(truth.ravel(), found.ravel()))
    expected = jaccard_score(truth.ravel(), found.ravel(), average=None)
    np.testing.assert_allclose(iou.ious(counts), expected, rtol=1e-12)
    # by hand: two classes of three occur; 2 of 3 and 1 of 2
    few = iou.confusion(np.array([[0, 0], [0, 1]]), np.array([[0, 0], [1, 1]]), 3)
    assert iou.mean_iou(few) == pytest.approx((2 / 3 + 1 / 2) / 2)
    shares = iou.shares(np.array([[[0, 1, 2, 2], [1, 1, 2, 2]] * 2]).reshape(1, 4, 4), 2, 3)
    assert shares.tolist() == [[0.25, 0.75, 0], [0, 0, 1], [0.25, 0.75, 0], [0, 0, 1]]


def test_average_precision_is_that_of_a_library_also_where_scores_are_equal() -> None:
    generator = np.random.default_rng(1)
    for levels in (3, 1000):
        scores, present = generator.integers(0, levels, (30, 6)).astype(float), generator.random((30, 6)) < 0.4
        present[:, 0] = False
        present[3] = False
        for column in range(1, 6):
            expected = average_precision_score(present[:, column], scores[:, column])
            assert scene_labels.average_precision(scores[:, column], present[:, column]) == pytest.approx(expected)
        expected = average_precision_score(present[:, 1:], scores[:, 1:], average="macro")
        assert scene_labels.mean_precision(scores, present) == pytest.approx(expected)
    rows = present.any(axis=1)
    ranking = np.mean([scene_labels.average_precision(s, p) for s, p in zip(scores[rows], present[rows], strict=True)])
    assert ranking == pytest.approx(label_ranking_average_precision_score(present[rows], scores[rows]))
    with pytest.raises(UserError, match="no scene of a split holds an object"):
        scene_labels.mean_precision(scores, np.zeros((30, 6), bool))


def test_the_layers_are_at_their_minimum() -> None:
    """The sigmoid layer is logistic regression of a library class by class; the softmax layer has gradient zero."""
    generator = np.random.default_rng(2)
    x, labels = generator.normal(size=(80, 4)), generator.random((80, 2)) < 0.4
    x_ND = torch.from_numpy(np.concatenate([x, np.ones((80, 1))], axis=1))
    signs = torch.from_numpy(np.where(labels, 1.0, -1.0))
    (weights,) = scene_labels._fit(x_ND, signs, [0.05], Solver(300, 1e-10))
    for place in range(2):
        known = LogisticRegression(C=1 / (0.05 * 80), tol=1e-12, max_iter=5000).fit(x, labels[:, place])
        np.testing.assert_allclose(weights[:-1, place], known.coef_[0], atol=1e-6)
        np.testing.assert_allclose(weights[-1, place], known.intercept_[0], atol=1e-6)
    shares = torch.from_numpy(generator.dirichlet(np.ones(3), 80))
    (layer,) = scene_segmentation._fit(x_ND, shares, [0.05], Solver(300, 1e-10))
    penalty = 0.05 * layer.numpy() * np.array([1, 1, 1, 1, 0])[:, None]
    logits = x_ND.numpy() @ layer.numpy()
    soft = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(x_ND.numpy().T @ (soft - shares.numpy()) / 80 + penalty, 0, atol=1e-8)


def test_inputs_are_standardised_by_the_train_rows() -> None:
    generator = np.random.default_rng(3)
    train, other = (generator.normal(5, 3, size=(50, 4)).astype(np.float32) for _ in range(2))
    train[:, 2], other[:, 2] = 7.0, 9.0  # constant in train: it becomes zero everywhere
    found = Standard(torch.from_numpy(train))(torch.from_numpy(other)).numpy()
    spread = train.astype(float).std(axis=0)
    expected = (other - train.astype(float).mean(axis=0)) / np.where(spread > 0, spread, 1)
    expected[:, 2] = 0
    np.testing.assert_allclose(found[:, :-1], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found[:, -1], 1)


def _encoder(scenes: SceneSet, backbone: dict[str, Any], **changes: Any) -> SceneEncoder:
    torch.manual_seed(0)
    network = load_backbone(**backbone, channels=1).eval().requires_grad_(False)
    return SceneEncoder(network, scenes, ([0.4], [0.3]), **{"side": 8, "batch": 7, **changes})


RESNET = {"name": "resnet", "widths": [4, 8], "strides": [1, 2], "blocks": [1, 1], "stem_stride": 2}


def test_scenes_are_shown_at_their_own_side_as_in_pre_training(scenes: SceneSet) -> None:
    encoder, pictures = _encoder(scenes, RESNET), scenes.pictures("test", 10)
    batches = list(encoder.encoded("test", pictures))
    assert [len(batch.pooled) for batch in batches] == [7, 3]
    images = torch.from_numpy(np.stack([scenes.splits["test"].image(picture) for picture in pictures]))
    whole = encoder.network(plain_view(images, SIDE, [0.4], [0.3]))
    assert whole.map.shape[2:] == (4, 4)
    for part in ("map", "pooled", "tokens"):
        got = torch.cat([getattr(batch, part) for batch in batches])
        torch.testing.assert_close(got, getattr(whole, part), rtol=0, atol=1e-5)
    (alone,) = encoder.encoded("test", pictures[:1])
    assert torch.equal(alone.map, batches[0].map[:1]), "the other images of a batch change nothing"


def test_a_network_of_one_side_sees_windows(scenes: SceneSet) -> None:
    """A linear map of 8 x 8 pixels: 2 x 2 windows that tile the scene."""
    encoder = _encoder(scenes, {"name": "pixels", "image_size": 8, "width": 5})
    encoder.network.components.copy_(torch.randn(64, 5))  # type: ignore[union-attr, operator]
    picture = scenes.pictures("test", 3)[2]
    (found,) = encoder.encoded("test", [picture])
    view = plain_view(torch.from_numpy(scenes.splits["test"].image(picture)[None].copy()), SIDE, [0.4], [0.3])
    assert found.map.shape == (1, 5, 2, 2)
    for row in range(2):
        for column in range(2):
            window = view[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            torch.testing.assert_close(found.map[:, :, row, column], encoder.network(window).pooled)
    torch.testing.assert_close(found.pooled, found.map.mean(dim=(2, 3)))


def test_bad_input_is_one_line(scenes: SceneSet, tmp_path: Path) -> None:
    for name in PROTOCOLS:
        for change in ({"train": 0}, {"decays": []}, {"decays": [-1.0]}, {"iterations": 0}, {"tolerance": 0.0}):
            with pytest.raises(UserError, match=f"{name}: train"):
                _evaluate(name, Given(scenes), **change)
        with pytest.raises(UserError, match="not finite, the encoder has diverged"):
            _evaluate(name, Given(scenes, noise=float("nan")))
    made = {split: _write(tmp_path / split, split, 2, 0, NAMES) for split in COUNTS}
    made["validation"] = _write(tmp_path / "more", "validation", 2, 0, [*NAMES, "unicorn"])
    with pytest.raises(UserError, match=r"toy, validation split: category 20 'unicorn' is not declared in the train"):
        SceneSet("toy", made)
    empty = _write(tmp_path / "empty", "test", 0, 0, NAMES)
    with pytest.raises(UserError, match="toy: the test split holds no image"):
        SceneSet("toy", {**scenes.splits, "test": empty}).pictures("test")


def test_a_class_that_no_train_scene_holds_scores_zero(scenes: SceneSet) -> None:
    """A category in validation and test only, but declared: a clear result."""
    picture = scenes.pictures("test")[1]
    rare = SimpleNamespace(pictures=[one for one in scenes.splits["train"].pictures if not scenes.present(one)[2]])
    coco = scenes.splits["train"]
    kept, coco.pictures = coco.pictures, rare.pictures
    try:
        result = _evaluate("scene-segmentation", Given(scenes))
    finally:
        coco.pictures = kept
    assert picture.instances
    assert result.values["toy/iou-hat"].value == 0.0


def test_a_stage_on_scenes_reads_them_and_the_others_read_none() -> None:
    run = "runs/smoke/fashion-mnist/simclr/base/seed0"
    stage = stage_of(PROJECT, "evaluate", f"{run}/results/scene-segmentation")
    assert {str(path) for path in stage.inputs if path.parts[0] == "data"} == {
        "data/fashion-mnist/manifest.json",
        *(f"data/scenes-smoke/{name}" for name in ("coco.zip", "voc.zip", "davis.zip", "manifest.json")),
    }
    assert "on-fashion-mnist-scenes-smoke@" in stage.name
    assert "scenes" not in stage_of(PROJECT, "evaluate", f"{run}/results/linear-augmented").config
    choice = {
        "needs": "features",
        "datasets": "own",
        "device": "cpu",
        "cost": {"minutes": 1, "memory": 1},
        "values": {},
    }
    with pytest.raises(UserError, match="a protocol with scenes needs: tokens"):
        ProtocolChoice.of("here", {**choice, "scenes": "scenes"})
