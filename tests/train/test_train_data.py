"""A batch is a pure function of the clock: whatever the format, the number of workers and what was asked for before."""

import gc
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from polygrain.config.project import Project
from polygrain.config.runs import Run
from polygrain.config.stages import stage_of
from polygrain.data import shards
from polygrain.data.encoded import decode, open_encoded
from polygrain.data.packed import open_packed
from polygrain.nn.clock import Clock
from polygrain.nn.random import permutation
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import canonical_json, sha256_file
from polygrain.train import loader
from polygrain.train.data import PretrainingData
from polygrain.train.guard import locked
from polygrain.train.images.encoded import _cut
from polygrain.train.run import Training, pretrain
from polygrain.train.state import Identity, save_state
from polygrain.views.apply import erase, fill_of
from polygrain.views.batch import Batch, draw_views, finish_batch, make_batch, plain_view
from polygrain.views.draw import draw
from polygrain.views.randaugment import randaugment
from polygrain.views.recipe import Recipe, read_recipes

PROJECT = Project(Path(__file__).resolve().parents[2])
IDENTITY = Identity("config", "code", "environment", "data")
CROP = {"size": 24, "scale": [0.2, 1.0], "ratio": [0.75, 1.3333333333333333], "flip": 0.5}
RECIPES: dict[str, Any] = {
    "global": {**CROP, "grey": 0.2, "jitter": {"probability": 0.8, "brightness": 0.4, "hue": 0.1}},
    "local": {**CROP, "size": 12, "scale": [0.1, 0.4], "blur": {"probability": 0.5, "sigma": [0.1, 1.0]}},
    "weak": CROP,
    "overlapping": {**CROP, "overlap": {"minimum": 0.2}},
    "strong": {
        **CROP, "interpolation": "bicubic", "erasing": {"probability": 0.5, "area": [0.02, 0.33], "ratio": [0.3, 3.3]},
        "randaugment": {
            "probability": 0.8, "count": 2, "magnitude": 9, "deviation": 0.5,
            "operations": ["auto-contrast", "equalise", "posterise", "sharpness", "shear-y", "translate-x"],
        },
    },
    "cubic": {**CROP, "interpolation": "bicubic"},
    "mixed": {"mixed": {"weak": "cubic", "strong": "strong", "probability": 0.5, "coin": "shared"}},
}  # fmt: skip
VIEWS = ("global", "global", "local")
ALL = ("weak", "overlapping", "strong", "mixed", "local")
TRAIN, VALIDATION, UNLABELLED = 36, 6, 9  # of 3 classes


def config(**changes: Any) -> dict[str, Any]:
    pretrain = {"device": "cpu", "workers": 0, "split": "train", "images": 35, "batch": 8}
    pretrain |= {key: changes.pop(key) for key in list(changes) if key in pretrain}
    base = {"augmentation": RECIPES, "input_size": 24, "seed": 4, "statistics": None}
    return {**base, "pretrain": pretrain, **changes}


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small JPEG and PNG files of many sizes, packed by the real reader into shards of 16 kB."""
    source = tmp_path_factory.mktemp("source")
    generator = np.random.default_rng(0)
    parts = [(f"train/{k}", (TRAIN + VALIDATION) // 3) for k in range(3)] + [(f"val/{k}", 2) for k in range(3)]
    for part, count in [*parts, ("unlabelled", UNLABELLED)]:
        (source / "photos" / part).mkdir(parents=True)
        for number in range(count):
            height, width = generator.integers(20, 60, 2)
            coarse = Image.fromarray(generator.integers(0, 256, (5, 6, 3)).astype(np.uint8))
            image = coarse.resize((int(width), int(height)), Image.Resampling.BICUBIC)
            image.save(source / "photos" / part / f"{number:02d}.{('jpg', 'png')[number % 2]}")
    out = tmp_path_factory.mktemp("encoded")
    settings = {
        "name": "photos", "reader": "image-folder", "format": "encoded", "validation": VALIDATION, "test": 0, "seed": 0,
        "folder": None, "classes": None, "expected": None, "statistics": None, "licence": "none", "source": "made",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYGRAIN_DATA", str(source))
        patch.setenv("POLYGRAIN_CACHE", str(source / "cache"))
        patch.setattr(shards, "SHARD_BYTES", 1 << 14)
        shards.prepare(settings, out)
    return out


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Arrays of equal size with the same splits in name and number."""
    folder = tmp_path_factory.mktemp("pixels")
    generator = np.random.default_rng(1)
    sizes = {"train": TRAIN, "validation": VALIDATION, "test": 6, "unlabelled": UNLABELLED}
    order, splits, start = generator.permutation(sum(sizes.values())), {}, 0
    for name, size in sizes.items():
        splits[name] = order[start : start + size].astype(np.int64)
        start += size
    labels = np.arange(len(order)) % 3
    labels[splits["unlabelled"]] = -1
    np.save(folder / "images.npy", generator.integers(0, 256, (len(order), 3, 28, 28)).astype(np.uint8))
    np.save(folder / "labels.npy", labels)
    np.savez(folder / "splits.npz", **splits)
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in folder.iterdir()}
    manifest = {
        "format": 1, "name": "squares", "classes": ["0", "1", "2"], "shape": [3, 28, 28], "files": files,
        "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "splits": sizes,
    }  # fmt: skip
    (folder / "manifest.json").write_text(canonical_json(manifest))
    return folder


@pytest.fixture(params=["pixels", "encoded"])
def either(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def tensors(batch: Batch) -> list[torch.Tensor]:
    geometry = [part for one in batch.geometry for part in (one.box, one.flip, torch.as_tensor(one.source))]
    coins = [coin for coin in batch.weak if coin is not None]
    return [*batch.views, *geometry, *coins, batch.indices, batch.labels_for_monitoring]


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


def clock(step: int, steps: int = 20, per_epoch: int = 4) -> Clock:
    return Clock(4, step, steps, per_epoch)


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return true()


# --- what a batch is


def test_a_batch_of_pixels_is_the_order_the_draws_and_the_views(pixels: Path) -> None:
    data, packed = PretrainingData(pixels, config()), open_packed(pixels)
    assert data.steps_per_epoch == 4
    for step in (0, 3, 6):
        rows = permutation(35, 4, "order", step // 4)[step % 4 * 8 : step % 4 * 8 + 8].numpy()
        positions = packed.split("train")[:35][rows]
        expected = make_batch(
            torch.from_numpy(packed.images[positions]),
            torch.from_numpy(packed.labels[positions]),
            torch.from_numpy(positions),
            [Recipe.from_mapping(RECIPES[name]) for name in VIEWS],
            seed=4,
            epoch=step // 4,
            mean=[0.4, 0.5, 0.6],
            std=[0.2, 0.25, 0.3],
        )
        assert same(data.batch(clock(step), VIEWS), expected)


def test_a_batch_of_encoded_images_is_torchvisions_crops_of_the_files(encoded: Path) -> None:
    data, opened = PretrainingData(encoded, config()), open_encoded(encoded)
    batch = data.batch(clock(6), ("global", "weak"))
    rows = permutation(35, 4, "order", 1)[16:24].numpy()
    positions = opened.split("train")[:35][rows]
    np.testing.assert_array_equal(batch.indices, positions)
    np.testing.assert_array_equal(batch.labels_for_monitoring, opened.labels[positions])
    for row, position in enumerate(positions.tolist()):
        image = decode(opened.content(position), "", "")
        drawn = draw(
            Recipe.from_mapping(CROP),
            seed=4, epoch=1, indices=torch.tensor([position]), view=1, source=tuple(image.shape[1:]),
        )  # fmt: skip
        view = reference.resized_crop(image, *drawn.box[0].tolist(), [24, 24], antialias=True)
        view = reference.hflip(view) if drawn.flip[0] else view
        expected = reference.normalize(view.float() / 255, opened.mean, opened.std)
        torch.testing.assert_close(batch.views[1][row], expected, atol=1e-6, rtol=0)
        assert torch.equal(batch.geometry[1].box[row], drawn.box[0])
        assert torch.as_tensor(batch.geometry[1].source)[row].tolist() == list(image.shape[1:])
    assert len({tuple(size) for size in torch.as_tensor(batch.geometry[0].source).tolist()}) > 4


def test_strong_views_of_encoded_images_are_made_of_the_whole_image(encoded: Path) -> None:
    """Flip, operations and crop in this order, on the decoded image; what a mixed view did not ask for is not done."""
    data, opened = PretrainingData(encoded, config()), open_encoded(encoded)
    batch = data.batch(clock(6), ("weak", "strong", "mixed"))
    coin, recipes, changed = batch.weak[2], read_recipes(RECIPES), 0
    assert coin is not None
    assert batch.weak[:2] == [None, None]
    for row, position in enumerate(batch.indices.tolist()):
        image = opened.decode(position)
        for view, name in ((1, "strong"), (2, "cubic" if coin[row] else "strong")):
            recipe = recipes[name]
            assert isinstance(recipe, Recipe)
            drawn = draw(
                recipe, seed=4, epoch=1, indices=batch.indices[row : row + 1], view=view, source=tuple(image.shape[1:])
            )
            assert torch.equal(batch.geometry[view].box[row], drawn.box[0])
            assert torch.equal(batch.geometry[view].flip[row], drawn.flip[0])
            whole = image
            if drawn.randaugment is not None:
                whole = randaugment(image[None], drawn.randaugment, drawn.flip, fill_of(opened.mean))[0]
                changed += not torch.equal(whole, image)
            pixels = reference.resized_crop(
                whole, *drawn.box[0].tolist(), [24, 24], InterpolationMode.BICUBIC, antialias=True
            )
            pixels = reference.hflip(pixels) if drawn.flip[0] else pixels
            expected = reference.normalize(pixels.float() / 255, opened.mean, opened.std)
            if drawn.erasing is not None:
                expected = erase(expected[None], drawn.erasing)[0]
            torch.testing.assert_close(batch.views[view][row], expected, atol=1e-6, rtol=0)
    assert changed > 6
    assert 0 < coin.sum() < 8


def test_pixels_and_encoded_images_agree_on_strong_views(encoded: Path, pixels: Path) -> None:
    """Images of one size by both ways: same draws; pixels within rounding, as only one way rounds behind the crop."""
    data = PretrainingData(pixels, config())
    batch = data.batch(clock(0), ALL)
    packed = open_packed(pixels)
    images = torch.from_numpy(packed.images[batch.indices.numpy()])

    class Decoded:
        def decode(self, position: int) -> torch.Tensor:
            return images[position]

    source = torch.tensor([[28, 28]] * 8)
    recipes = [read_recipes(RECIPES)[name] for name in ALL]
    drawn = draw_views(recipes, batch.indices, seed=4, epoch=0, source=source)
    views = [torch.empty(8, 3, recipe.size, recipe.size, dtype=torch.uint8) for recipe in recipes]
    cuts = tuple(_cut(recipe, one, data.mean) for recipe, one in zip(recipes, drawn, strict=True))
    loader.cut_job(Decoded(), loader.CutJob(np.arange(8), cuts), views)  # type: ignore[arg-type]
    finished = finish_batch(
        views, drawn, batch.labels_for_monitoring, batch.indices, recipes, source=source, mean=data.mean, std=data.std
    )
    for view, other, recipe in zip(finished.views, batch.views, recipes, strict=True):
        close = (view - other).abs() < 1.02 / 255 / 0.2
        # 8-bit bicubic cuts to 0..255 between the two axes, which noise of full contrast meets often
        assert close.double().mean() > (0.93 if recipe.interpolation == "bicubic" else 0.999999)
    for one, other_coin in zip(finished.weak, batch.weak, strict=True):
        assert (one is None) == (other_coin is None)
        assert one is None or torch.equal(one, other_coin)


def test_an_overlapping_view_needs_a_view_before_it(either: Path) -> None:
    with pytest.raises(UserError, match="the first view has a recipe with 'overlap'"):
        PretrainingData(either, config()).batch(clock(0), ("overlapping", "weak"))


def test_an_unknown_recipe_names_those_that_there_are(either: Path) -> None:
    with pytest.raises(
        UserError, match="augmentation: no recipe named 'globl'; there are cubic, global, local, mixed, "
    ):
        PretrainingData(either, config()).batch(clock(0), ("globl",))


# --- workers


@pytest.mark.parametrize("small", [False, True])
def test_workers_change_no_bit(encoded: Path, monkeypatch: pytest.MonkeyPatch, small: bool) -> None:
    """Nine steps over three epochs; chunks as they are, and chunks of three images, one or two to a slot."""
    expected = [PretrainingData(encoded, config()).batch(clock(step), VIEWS) for step in range(9)]
    if small:
        monkeypatch.setattr(loader, "CHUNK", 3)
        monkeypatch.setattr(loader, "SLOT_BYTES", 2 * 3 * (24**2 * 2 + 12**2) + 100)
    for workers in (0, 1, 2, 3):
        data = PretrainingData(encoded, config(workers=workers))
        assert all(same(data.batch(clock(step), VIEWS), expected[step]) for step in range(9))


def test_workers_change_no_bit_of_strong_and_mixed_views(encoded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = PretrainingData(encoded, config())
    expected = [whole.batch(clock(step), ALL) for step in range(3)]
    monkeypatch.setattr(loader, "CHUNK", 3)
    data = PretrainingData(encoded, config(workers=2))
    assert all(same(data.batch(clock(step), ALL), expected[step]) for step in range(3))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_may_begin_at_any_step(encoded: Path, workers: int) -> None:
    data = PretrainingData(encoded, config(workers=workers))
    expected = [data.batch(clock(step), VIEWS) for step in range(8)]
    for step in (3, 5, 7):
        fresh = PretrainingData(encoded, config(workers=workers))
        assert all(same(fresh.batch(clock(at), VIEWS), expected[at]) for at in range(step, 8))
    assert same(data.batch(clock(2), VIEWS), expected[2])  # and back again
    assert same(data.batch(clock(2), VIEWS), expected[2])
    assert same(data.batch(clock(4), VIEWS), expected[4])


def test_a_change_of_views_is_no_matter(either: Path) -> None:
    data = PretrainingData(either, config(workers=2))
    asked = [VIEWS, VIEWS, ("weak",), ("weak",), ("local", "weak"), VIEWS]
    for step, views in enumerate(asked):
        assert same(data.batch(clock(step), views), PretrainingData(either, config()).batch(clock(step), views))


def test_views_that_alternate_as_announced_keep_the_stream(encoded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SMoG exchanges its recipes at every step: workers must not begin anew each time."""

    def views(step: Clock) -> tuple[str, ...]:
        return VIEWS if step.step % 2 else ("weak",)

    expected = [PretrainingData(encoded, config()).batch(clock(step), views(clock(step))) for step in range(6)]
    data, begun = PretrainingData(encoded, config(workers=2)), []
    stop = data._stop
    monkeypatch.setattr(data, "_stop", lambda: (begun.append(1), stop()))
    for step in range(6):
        assert same(data.batch(clock(step), views(clock(step)), ahead=views), expected[step])
    assert len(begun) == 1


def test_workers_do_all_the_work_and_every_slot_comes_back(encoded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("cut in this process")

    data = PretrainingData(encoded, config(workers=2))
    monkeypatch.setattr(loader, "cut_job", refuse)
    for step in range(6):
        data.batch(clock(step), VIEWS)
        list(data.augmented_pass(clock(step), ("weak",)))
        next(data.plain_pass())
    assert sorted(data.images.loader.pool.free) == [0, 1, 2, 3, 4]  # type: ignore[attr-defined]


def test_the_last_step_and_what_lies_beyond(encoded: Path) -> None:
    data = PretrainingData(encoded, config(workers=1))
    for step, steps in ((4, 5), (5, 5), (7, 5)):
        whole = PretrainingData(encoded, config()).batch(clock(step), VIEWS)
        assert same(data.batch(clock(step, steps), VIEWS), whole)


def test_no_workers_are_started_for_pixels(pixels: Path) -> None:
    data = PretrainingData(pixels, config(workers=2))
    assert not hasattr(data.images, "loader")


def test_every_row_comes_once_an_epoch(encoded: Path) -> None:
    data = PretrainingData(encoded, config(workers=2, images=32))
    for epoch in range(3):
        seen = torch.cat([data.batch(clock(4 * epoch + step), ("weak",)).indices for step in range(4)])
        assert sorted(seen.tolist()) == sorted(data.positions.tolist())


# --- passes


@pytest.mark.parametrize("workers", [0, 2])
def test_an_augmented_pass_is_the_epoch(either: Path, workers: int) -> None:
    data = PretrainingData(either, config(workers=workers))
    for step in (0, 4, 6):
        epoch = [data.batch(clock(step // 4 * 4 + at), ("weak", "local")) for at in range(4)]
        passed = list(data.augmented_pass(clock(step), ("weak", "local")))
        assert len(passed) == 4
        assert all(same(one, other) for one, other in zip(passed, epoch, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_passes_between_steps_disturb_nothing(either: Path, workers: int) -> None:
    expected = PretrainingData(either, config())
    data = PretrainingData(either, config(workers=workers))
    for step in range(6):
        if step % 2 == 0:
            list(data.plain_pass())
        else:
            next(data.augmented_pass(clock(step), ("weak",)))
        assert same(data.batch(clock(step), VIEWS), expected.batch(clock(step), VIEWS))


def test_passes_may_run_side_by_side(encoded: Path) -> None:
    """More streams than there are slots: the later ones are served by this process."""
    alone = PretrainingData(encoded, config())
    data = PretrainingData(encoded, config(workers=2))
    passes = [data.augmented_pass(clock(0), VIEWS), data.augmented_pass(clock(4), VIEWS), data.plain_pass()]
    together = list(zip(*passes, strict=False))
    assert len(together) == 4
    for step, (one, other, plain) in enumerate(together):
        assert same(one, alone.batch(clock(step), VIEWS))
        assert same(other, alone.batch(clock(4 + step), VIEWS))
        assert torch.equal(plain[0], next(itertools.islice(alone.plain_pass(), step, None))[0])


@pytest.mark.parametrize("split", ["pretrain", "validation"])
def test_a_plain_pass_of_pixels_shows_the_whole_images(pixels: Path, split: str) -> None:
    data, packed = PretrainingData(pixels, config()), open_packed(pixels)
    positions = packed.split("validation") if split == "validation" else packed.split("train")[:35]
    parts = list(data.plain_pass(split))
    assert [len(part[1]) for part in parts][:-1] == [8] * (len(parts) - 1)
    np.testing.assert_array_equal(torch.cat([part[1] for part in parts]), positions)
    np.testing.assert_array_equal(torch.cat([part[2] for part in parts]), packed.labels[positions])
    expected = plain_view(torch.from_numpy(packed.images[positions]), 24, [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    assert torch.equal(torch.cat([part[0] for part in parts]), expected)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["pretrain", "validation"])
def test_a_plain_pass_of_encoded_images_shows_their_centres(encoded: Path, split: str, workers: int) -> None:
    data, opened = PretrainingData(encoded, config(workers=workers)), open_encoded(encoded)
    positions = opened.split("validation") if split == "validation" else opened.split("train")[:35]
    parts = list(data.plain_pass(split))
    np.testing.assert_array_equal(torch.cat([part[1] for part in parts]), positions)
    np.testing.assert_array_equal(torch.cat([part[2] for part in parts]), opened.labels[positions])
    views = torch.cat([part[0] for part in parts])
    for view, position in zip(views, positions.tolist(), strict=True):
        image = reference.resize(opened.decode(position), [27], antialias=True)  # 24 * 256 / 224, rounded
        centre = reference.center_crop(image, [24, 24]).float() / 255
        torch.testing.assert_close(view, reference.normalize(centre, opened.mean, opened.std), atol=1e-6, rtol=0)


# --- which images, and how they are normalised


@pytest.mark.parametrize(
    ("split", "images", "parts"),
    [
        ("train", 20, [("train", 20)]),
        ("unlabelled", 9, [("unlabelled", 9)]),
        ("unlabelled", 8, [("unlabelled", 8)]),
        ("train+unlabelled", 45, [("train", 36), ("unlabelled", 9)]),
        ("train+unlabelled", 40, [("train", 36), ("unlabelled", 4)]),
    ],
)
def test_the_split_is_chosen(either: Path, split: str, images: int, parts: list[tuple[str, int]]) -> None:
    data = PretrainingData(either, config(split=split, images=images))
    expected = np.concatenate([data.data.split(name)[:count] for name, count in parts])
    np.testing.assert_array_equal(data.positions, expected)
    seen = [data.batch(Clock(4, step, 9, data.steps_per_epoch), ("weak",)) for step in range(data.steps_per_epoch)]
    indices = torch.cat([batch.indices for batch in seen])
    labels = torch.cat([batch.labels_for_monitoring for batch in seen])
    assert set(indices.tolist()) <= set(expected.tolist())
    unlabelled = np.isin(indices, data.data.split("unlabelled"))
    assert ((labels == -1).numpy() == unlabelled).all()
    assert unlabelled.any() == ("unlabelled" in split)


@pytest.mark.parametrize(("split", "count"), [("train", 36), ("unlabelled", 9), ("train+unlabelled", 45)])
def test_more_images_than_there_are_are_refused(either: Path, split: str, count: int) -> None:
    message = rf"{count + 1} images of {split.replace('+', '.')} asked, there are {count}; lower pretrain.images"
    with pytest.raises(UserError, match=message):
        PretrainingData(either, config(split=split, images=count + 1))


def test_a_split_that_does_not_exist_is_named(either: Path) -> None:
    with pytest.raises(UserError, match=r"no split 'dev'; there are train, validation, test, unlabelled"):
        PretrainingData(either, config(split="train+dev"))


def test_the_data_sets_own_statistics_may_be_replaced(either: Path) -> None:
    own = PretrainingData(either, config())
    given = PretrainingData(either, config(statistics={"mean": [0.1, 0.2, 0.3], "std": [0.5, 1.0, 2.0]}))

    def pixels(data: PretrainingData, mean: Any, std: Any, view: torch.Tensor) -> torch.Tensor:
        return view * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]

    for own_view, view in (
        (own.batch(clock(0), VIEWS).views[2], given.batch(clock(0), VIEWS).views[2]),
        (next(own.plain_pass())[0], next(given.plain_pass())[0]),
    ):
        expected = pixels(own, own.data.mean, own.data.std, own_view)
        assert not torch.equal(view, own_view)
        torch.testing.assert_close(pixels(given, [0.1, 0.2, 0.3], [0.5, 1.0, 2.0], view), expected, atol=1e-5, rtol=0)


def test_statistics_of_another_number_of_channels_are_refused(either: Path) -> None:
    with pytest.raises(UserError, match=r"statistics: 1 means and 1 deviations for the 3 channels of"):
        PretrainingData(either, config(statistics={"mean": [0.1], "std": [0.5]}))


# --- faults


def spoil(encoded: Path, folder: Path, position: int) -> Path:
    """A copy of the data set with the head of one image overwritten."""
    shutil.copytree(encoded, folder)
    index = open_encoded(encoded).index
    with (folder / f"shards/shard-{index['shard'][position]:05d}.bin").open("r+b") as stream:
        stream.seek(int(index["offset"][position]))
        stream.write(bytes(20))
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_when_its_batch_comes(encoded: Path, tmp_path: Path, workers: int) -> None:
    good = PretrainingData(encoded, config())
    batches = [good.batch(clock(step), VIEWS) for step in range(8)]
    first = set(batches[0].indices.tolist()) | set(batches[1].indices.tolist())
    position = next(at for at in batches[2].indices.tolist() if at not in first)
    data = PretrainingData(spoil(encoded, tmp_path / "bad", position), config(workers=workers))
    assert same(data.batch(clock(0), VIEWS), batches[0])
    assert same(data.batch(clock(1), VIEWS), batches[1])
    for _ in range(2):  # asking again says it again
        with pytest.raises(UserError, match=rf"shard-\d+\.bin, image {position}: not a whole image") as caught:
            data.batch(clock(2), VIEWS)
        assert "\n" not in str(caught.value)
    assert same(data.batch(clock(3), VIEWS), batches[3])


def test_a_worker_that_dies_is_reported(encoded: Path) -> None:
    data = PretrainingData(encoded, config(workers=2))
    data.batch(clock(0), VIEWS)
    for process in data.images.loader.pool.processes:  # type: ignore[attr-defined]
        os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"loader-\d: this worker process ended with code -9, .*; lower pretrain"):
        list(data.augmented_pass(clock(4), VIEWS))


def test_workers_end_with_the_data(encoded: Path) -> None:
    data = PretrainingData(encoded, config(workers=2))
    data.batch(clock(0), VIEWS)
    pids = [process.pid for process in data.images.loader.pool.processes]  # type: ignore[attr-defined]
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids)
    del data
    gc.collect()
    assert not any(alive(pid) for pid in pids)


# a shell that starts a test session in the background leaves it, and so its children, deaf to SIGINT
ORPHANS = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from polygrain.nn.clock import Clock
from polygrain.train.data import PretrainingData
from polygrain.train.guard import locked
with locked(Path(sys.argv[3])):
    data = PretrainingData(Path(sys.argv[2]), json.loads(sys.argv[1]))
    data.batch(Clock(4, 0, 10**6, 4), ("global", "global", "local"))
    print(*(process.pid for process in data.images.loader.pool.processes), flush=True)
    step = 0
    while True:
        step += 1
        data.batch(Clock(4, step, 10**6, 4), ("global", "global", "local"))
"""


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_a_parent_however_it_ends(encoded: Path, tmp_path: Path, kind: signal.Signals) -> None:
    command = [sys.executable, "-c", ORPHANS, json.dumps(config(workers=2)), str(encoded), str(tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids)
    time.sleep(0.1)
    parent.send_signal(kind)
    parent.wait()
    with locked(tmp_path):  # at once: no worker holds on to what its parent had locked
        pass
    assert wait_until(lambda: not any(alive(pid) for pid in pids))
    assert parent.stderr is not None
    if kind is signal.SIGKILL:
        assert parent.stderr.read() == ""
    parent.stdout.close()
    parent.stderr.close()


def test_nothing_is_printed(encoded: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = PretrainingData(encoded, config(workers=2))
    data.batch(clock(0), VIEWS)
    list(data.plain_pass("validation"))
    del data
    gc.collect()
    assert capfd.readouterr() == ("", "")


# --- a run


def run_config(workers: int) -> dict[str, Any]:
    base = stage_of(PROJECT, "pretrain", Run("smoke", "fashion-mnist", "simclr", "base", 0).path).config
    pretrain = {**base["pretrain"], "workers": workers, "images": 35, "batch": 8, "state_every": 100, "log_every": 1}
    augmentation = {**base["augmentation"], "global": RECIPES["global"]}
    return {**base, "pretrain": pretrain, "augmentation": augmentation, "input_size": 24, "steps": 11}


def hashes(folder: Path) -> dict[str, str]:
    return {name: sha256_file(folder / name) for name in ("checkpoint.safetensors", "metrics.jsonl")}


def test_a_run_on_encoded_images_is_the_same_in_pieces_with_other_workers(encoded: Path, tmp_path: Path) -> None:
    def finish(folder: Path, workers: int) -> dict[str, str]:
        timing = folder / "timing.jsonl"
        pretrain(run_config(workers), data=encoded, run=folder, timing=timing, identity=IDENTITY)
        return hashes(folder)

    straight = finish(tmp_path / "straight", 0)
    pieces = tmp_path / "pieces"
    (pieces / "scratch").mkdir(parents=True)
    for stop, workers in ((3, 2), (6, 1)):  # both in the middle of an epoch of four steps
        training = Training(run_config(workers), encoded, pieces / "scratch/state.pt", IDENTITY, resume=False)
        while training.step < stop:
            training.take_step()
        save_state(training.state_path, training.state())
    assert finish(pieces, 2) == straight


@pytest.mark.gpu
def test_a_gpu_sees_what_the_cpu_sees(encoded: Path) -> None:
    on_cpu, on_gpu = (PretrainingData(encoded, config(workers=2, device=device)) for device in ("cpu", "cuda"))
    for step in range(6):
        one, other = on_cpu.batch(clock(step), VIEWS), on_gpu.batch(clock(step), VIEWS)
        for mine, theirs in zip(tensors(one), tensors(other), strict=True):
            assert theirs.is_cuda
            torch.testing.assert_close(theirs.cpu(), mine, atol=1e-4, rtol=0)


def test_what_a_jpeg_holds_reaches_the_method(encoded: Path) -> None:
    """No view is blank, and two views of one image resemble each other more than those of others."""
    batch = PretrainingData(encoded, config(workers=1)).batch(clock(0), ("weak", "weak"))
    one, other = (view.mean(dim=(2, 3)) for view in batch.views)
    assert min(view.flatten(1).std(dim=1).min() for view in batch.views) > 0.05
    distance = torch.cdist(one, other)
    assert distance.diagonal().mean() < 0.7 * distance.mean()


def test_test_images_are_really_of_many_kinds(encoded: Path) -> None:
    opened = open_encoded(encoded)
    formats = {Image.open(io.BytesIO(opened.content(at))).format for at in range(len(opened.labels))}
    assert formats == {"JPEG", "PNG"}
    assert len(list((encoded / "shards").iterdir())) > 1
