"""Fine-tuned segmentation of scenes: oracles of each part, a re-derived optimiser, scenes that can be learnt."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marked_scenes import COUNTS, NAMES, SIDE, entry, marked_encoder, marked_scenes, write_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torchvision.ops import roi_align

from polygrain.config.project import Project
from polygrain.config.stages import stage_of
from polygrain.data.dense.coco import Picture
from polygrain.evaluate import scene_fine_tuning
from polygrain.evaluate.result import Result
from polygrain.evaluate.scene_fine_tuning import evaluate, pixel_loss
from polygrain.evaluate.scenes.given import SceneEncoder, SceneSet
from polygrain.evaluate.scenes.resample import regions, upsampled
from polygrain.evaluate.scenes.training import Training, fit, fresh, mirrored
from polygrain.provenance.errors import UserError

VALUES: dict[str, Any] = {
    "train": 96, "epochs": 10, "batch": 8, "rates": [1e-6, 0.01], "warmup": 0.1, "weight_decay": 0.05, "width": 8,
    "head": 8, "seed": 0,
}  # fmt: skip
TRAINING = Training("toy", 3, 4, 0.25, 0.1, 0)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SceneEncoder:
    return marked_encoder(marked_scenes(tmp_path_factory.mktemp("scenes")))


@pytest.fixture(scope="module")
def learnt(encoder: SceneEncoder) -> Result:
    return evaluate(encoder, **VALUES)


def test_the_loss_is_the_cross_entropy_of_every_pixel_with_its_cell() -> None:
    generator = np.random.default_rng(0)
    logits, truth = generator.normal(size=(3, 4, 2, 2)), generator.integers(0, 4, (3, 6, 6))
    wide = np.kron(logits, np.ones((3, 3)))
    soft = np.exp(wide) / np.exp(wide).sum(axis=1, keepdims=True)
    expected = -np.log(np.take_along_axis(soft, truth[:, None], axis=1)).mean()
    assert pixel_loss(torch.from_numpy(logits), torch.from_numpy(truth)).item() == pytest.approx(expected, rel=1e-12)
    assert pixel_loss(torch.zeros(1, 4, 3, 3), torch.from_numpy(truth[:1])).item() == pytest.approx(np.log(4))
    with pytest.raises(UserError, match="a map of 4 x 4 cells does not divide images of 6 px"):
        pixel_loss(torch.zeros(3, 4, 4, 4), torch.from_numpy(truth))


def test_upsampling_and_regions_are_those_of_libraries_and_so_are_their_gradients() -> None:
    torch.manual_seed(0)
    maps = torch.rand(3, 5, 6, 6, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    boxes = torch.rand(3, 2, 4, dtype=torch.float64) * 5 - torch.tensor([2.0, 2.0, 0.0, 0.0])  # some lie partly outside
    image = torch.arange(3, dtype=torch.float64).repeat_interleave(2)[:, None]
    corners = torch.cat([image, boxes.flatten(0, 1)[:, :2], (boxes[..., :2] + boxes[..., 2:]).flatten(0, 1)], dim=1)
    pairs = [
        (upsampled(maps, 15), interpolate(maps, (15, 15), mode="bilinear", align_corners=False), 1e-6),
        (regions(maps, boxes, 4), roi_align(maps, corners, 4, 1.0, 2, True), 1e-12),
    ]
    for found, expected, near in pairs:
        torch.testing.assert_close(found, expected, rtol=0, atol=near)
        weights = torch.rand_like(expected)
        gradients = [torch.autograd.grad((each * weights).sum(), maps)[0] for each in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=0, atol=20 * near)


def test_mirroring_turns_the_chosen_images_only() -> None:
    images = torch.arange(12).view(2, 1, 2, 3)
    found = mirrored(images, torch.tensor([False, True]))
    assert found.tolist() == [[[[0, 1, 2], [3, 4, 5]]], [[[8, 7, 6], [11, 10, 9]]]]


def test_the_weights_are_those_of_adamw_written_out_with_its_rates(encoder: SceneEncoder) -> None:
    """Rates rise over a quarter of the 9 steps and fall to 0; decay acts on matrices only."""
    pictures = encoder.scenes.pictures("train", 10)
    layer = nn.Linear(3, 2).double()
    start = {name: weight.detach().numpy().copy() for name, weight in layer.named_parameters()}
    seen: list[tuple[list[int], Tensor]] = []

    def input_of(chosen: Sequence[Picture]) -> Tensor:
        return torch.tensor([[p.id / 10, 1 - p.id / 7, p.id % 3] for p in chosen], dtype=torch.float64)

    def loss_of(chosen: Sequence[Picture], flags: Tensor) -> Tensor:
        seen.append(([picture.id for picture in chosen], flags))
        return layer(input_of(chosen)).square().mean()

    fit(layer, loss_of, pictures, TRAINING, 0.1)
    assert not layer.training
    assert [len(ids) for ids, _ in seen] == [4, 4, 2] * 3
    epochs = [[number for ids, _ in seen[place : place + 3] for number in ids] for place in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(1, 11)) for epoch in epochs), "every scene once in an epoch"
    assert epochs[0] != epochs[1] != epochs[2]
    assert 5 < sum(int(flags.sum()) for _, flags in seen) < 25
    shown = [
        {number: flag for ids, flags in seen[k : k + 3] for number, flag in zip(ids, flags.tolist(), strict=True)}
        for k in (0, 3, 6)
    ]
    assert shown[0] != shown[1] != shown[2], "a scene is mirrored in some epochs"

    moments = {name: (np.zeros_like(weight), np.zeros_like(weight)) for name, weight in start.items()}
    rates = [0, 0.05, *(0.1 * (1 - k / 7) for k in range(7))]
    for step, ((ids, _), rate) in enumerate(zip(seen, rates, strict=True), start=1):
        x = np.array([[i / 10, 1 - i / 7, i % 3] for i in ids])
        outer = 2 * (x @ start["weight"].T + start["bias"]) / (2 * len(ids))
        for name, gradient in {"weight": outer.T @ x, "bias": outer.sum(axis=0)}.items():
            first, second = moments[name]
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            moments[name] = first, second
            decay = 0.1 if name == "weight" else 0.0
            move = (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
            start[name] = start[name] * (1 - rate * decay) - rate * move
    for name, weight in layer.named_parameters():
        np.testing.assert_allclose(weight.detach().numpy(), start[name], rtol=1e-9, atol=1e-12)


def test_new_layers_start_by_seed_and_purpose_alone(encoder: SceneEncoder) -> None:
    def start(training: Training) -> Tensor:
        torch.manual_seed(int(torch.randint(1000, ())))  # whatever the global state is
        return next(fresh(encoder, training, lambda _: nn.Linear(4, 4)).parameters()).detach()

    first = start(TRAINING)
    assert torch.equal(first, start(TRAINING))
    assert not torch.equal(first, start(replace(TRAINING, seed=1)))
    assert not torch.equal(first, start(replace(TRAINING, purpose="other")))
    state = torch.random.get_rng_state()
    fresh(encoder, TRAINING, lambda _: nn.Linear(4, 4))
    assert torch.equal(state, torch.random.get_rng_state()), "the global state is left as it was"


def test_it_learns_what_is_there(encoder: SceneEncoder, learnt: Result) -> None:
    assert learnt.values["toy/miou"].value > 0.85
    assert learnt.selected["toy"]["rate"] == 0.01, "the rate that learns nothing is not selected"
    assert learnt.selected["toy"]["scenes"] == COUNTS["train"]
    assert all(learnt.agrees(name) for name in learnt.values)
    assert learnt.examples["toy"].index.tolist() == list(range(1, COUNTS["test"] + 1))
    assert learnt.examples["toy"].scores["accuracy"][0] > 0.98, "the scene without objects is background"
    assert {name.removeprefix("toy/iou-") for name in learnt.values if "/iou-" in name} == {"background", *NAMES}


def test_masks_of_other_scenes_teach_nothing(tmp_path: Path) -> None:
    encoder = marked_encoder(marked_scenes(tmp_path, permuted=True))
    chance = evaluate(encoder, **{**VALUES, "rates": [0.01]})
    truth = np.stack([encoder.scenes.semantic("test", one) for one in encoder.scenes.pictures("test")])
    assert chance.values["toy/accuracy"].value < (truth == 0).mean() + 0.1
    assert chance.values["toy/miou"].value < 0.45


def test_the_same_bytes_twice_and_the_frozen_network_stays_as_it_is(encoder: SceneEncoder, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in encoder.network.state_dict().items()}
    for folder in ("one", "two"):
        torch.rand(3)  # the global state plays no part
        evaluate(encoder, **{**VALUES, "epochs": 1, "train": 20}).save(tmp_path / folder, "it")
    for kind in ("json", "npz"):
        assert (tmp_path / f"one/it.{kind}").read_bytes() == (tmp_path / f"two/it.{kind}").read_bytes()
    assert all(torch.equal(value, before[name]) for name, value in encoder.network.state_dict().items())


def test_the_head_upsamples_every_level_to_the_finest(encoder: SceneEncoder) -> None:
    """Against torch's own upsampling of each level straight to the finest, in evaluation mode."""
    pictures = encoder.scenes.pictures("test", 3)
    sizes = (8, 8)
    network = scene_fine_tuning._trained(encoder, encoder.scenes.pictures("train", 8), TRAINING, 0.001, sizes)
    views = encoder.views("test", pictures)
    assert isinstance(network, scene_fine_tuning.SemanticFpn)
    with torch.no_grad():
        levels = network.pyramid(views)
        assert [level.shape[-1] for level in levels] == [16, 8]
        whole = network.levels[0](levels[0])
        whole = whole + interpolate(network.levels[1](levels[1]), (16, 16), mode="bilinear", align_corners=False)
        torch.testing.assert_close(network(views), network.classes(whole), rtol=0, atol=1e-5)
        truth = torch.from_numpy(scene_fine_tuning.semantic(encoder, "test", pictures))
        wide = interpolate(network(views), scale_factor=2, mode="nearest")
        torch.testing.assert_close(pixel_loss(network(views), truth), cross_entropy(wide, truth), rtol=1e-5, atol=0)


def test_bad_input_is_one_line(encoder: SceneEncoder, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{"train": 0}, {"epochs": 0}, {"batch": 0}, {"rates": []}, {"rates": [-1.0]}]
    for change in (*changes, {"width": 0}, {"head": 0}):
        with pytest.raises(UserError, match=r"scene-fine-tuning: train .* must be positive"):
            evaluate(encoder, **{**VALUES, **change})
    for change in ({"warmup": 1.5}, {"weight_decay": -0.1}):
        with pytest.raises(UserError, match="scene-fine-tuning: warmup"):
            evaluate(encoder, **{**VALUES, **change})
    with pytest.raises(UserError, match=r"scene-fine-tuning: the loss is not finite at step \d+ with rate 1e\+30"):
        evaluate(encoder, **{**VALUES, "rates": [1e30], "warmup": 0.0})
    pixels = marked_encoder(encoder.scenes, {"name": "pixels", "image_size": 16, "width": 5})
    with pytest.raises(UserError, match="scene-fine-tuning: backbone pixels has no weights and no map"):
        evaluate(pixels, **VALUES)
    empty = write_split(tmp_path, "test", [], [])
    with pytest.raises(UserError, match="toy: the test split holds no image"):
        evaluate(marked_encoder(SceneSet("toy", {**encoder.scenes.splits, "test": empty})), **VALUES)


def test_scenes_without_objects_and_masks_without_pixels_are_background(tmp_path: Path) -> None:
    nothing = entry(1, 2, 5, np.zeros((SIDE, SIDE), bool), [0] * 6)
    images = [np.full((SIDE, SIDE), 60 * k) for k in range(3)]
    scenes = SceneSet("toy", {split: write_split(tmp_path / split, split, [nothing], images) for split in COUNTS})
    found = evaluate(marked_encoder(scenes), **{**VALUES, "rates": [0.01], "epochs": 30})
    assert found.values["toy/accuracy"].value > 0.95


def test_the_protocol_is_a_stage_on_scenes() -> None:
    project = Project(Path(__file__).resolve().parents[2])
    for scale, scenes in (("smoke", "scenes-smoke"), ("cpu", "scenes"), ("paper", "scenes")):
        stage = stage_of(project, "evaluate", f"runs/{scale}/fashion-mnist/simclr/base/seed0/results/scene-fine-tuning")
        assert stage.config["scenes"] == scenes
        assert "polygrain.evaluate.scene_fine_tuning" in stage.entries
    assert Counter(stage.config["values"]["rates"]) == {0.0002: 1}
