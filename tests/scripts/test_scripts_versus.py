"""The comparison with lightly: its arithmetic and its report, and that both sides do the same work."""

import sys
from argparse import Namespace
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import versus
from common import spread
from packing import pack
from PIL import Image
from torch.nn.functional import normalize
from versus import GROUPS, RUN
from versus_sides import PARTS, _OurGroups, _TheirGroups, measured, their_model, transform_of, two_views

from polygrain.config.project import Project
from polygrain.config.stages import stage_of
from polygrain.methods.load import load_method
from polygrain.nn.contrastive import nt_xent
from polygrain.nn.groups import assign
from polygrain.nn.phases import Stopwatch
from polygrain.provenance.errors import UserError
from polygrain.views.batch import make_batch
from polygrain.views.recipe import Recipe

PROJECT = Project(Path(__file__).resolve().parents[2])
SAMPLES = 3000


@cache
def agreed() -> Any:
    """The configuration of the run that is compared."""
    return stage_of(PROJECT, "pretrain", RUN).config


@cache
def law() -> Recipe:
    """The law of its views."""
    return Recipe.from_mapping(agreed()["augmentation"]["global"])


needs_lightly = pytest.mark.skipif(
    find_spec("lightly") is None, reason="lightly is not installed: pip install .[bench]"
)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A comparison on 330 images of noise, 16 a step, which leaves 10 over, with few groups."""
    images = np.random.default_rng(0).integers(0, 256, (400, 1, 28, 28))
    splits = {"train": np.arange(330), "validation": np.arange(330, 360), "test": np.arange(360, 400)}
    data = pack(tmp_path_factory.mktemp("data") / "noise", images, np.arange(400) % 10, splits)
    config = {**agreed(), "pretrain": {**agreed()["pretrain"], "images": 330, "batch": 16}}
    groups = {"count": 12, "width": 8, "bank": 200}
    return {"config": config, "data": str(data), "groups": groups, "cores": [0]}


# ---- arithmetic, refusals, report


def test_spread_is_median_and_quartiles() -> None:
    assert spread([5, 1, 4, 2, 3], 1) == "3.0 (2.0 to 4.0)"
    assert spread([7.0], 0) == "7 (7 to 7)"


def test_without_lightly_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versus, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"^lightly is not installed; install it with `pip install \.\[bench\]`$"):
        versus.main(PROJECT, Namespace(parts="abc", rounds=1, steps=1))


@pytest.mark.parametrize(
    "change",
    [
        {"scale": (0.2, 0.9)},
        {"ratio": (0.5, 2.0)},
        {"blur": {"probability": 0.5, "sigma": [0.1, 1]}},
        {"solarise": {"probability": 0.2}},
    ],
)
def test_a_law_that_lightly_cannot_say_is_refused(change: dict[str, Any]) -> None:
    recipe = Recipe.from_mapping({**agreed()["augmentation"]["global"], **change})
    with pytest.raises(UserError, match="lightly's SimCLR transform can make"):
        transform_of(recipe, [0.5], [0.25])


def scripted(job: dict[str, Any]) -> dict[str, Any]:
    """Stands in for a process whose phases last a known time: lightly's is best with one loader worker."""
    ours, best = job["side"] == "polygrain", job["settings"][0]
    if len(job["settings"]) > 1:
        best = (1, 0) if ours else (1, 1)
    seconds = {
        "step": {"rest": 0.01, "forward": 0.03} if ours else {"waiting for data": 0.02, "forward": 0.1},
        "views": {"views": 0.016} if ours else {"views": 0.16},
        "groups": {"assignment": 0.001, "reset": 0.3} if ours else {"assignment": 0.002, "reset": 3.0},
    }[job["part"]]
    phases = {name: value * (1 if name == "reset" else job["steps"]) for name, value in seconds.items()}
    return {"best": best, "phases": phases, "memory": [100.0 if ours else 200.0, 50.0]}


def test_the_report_says_whose_number_is_whose(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(versus, "ask", scripted)
    monkeypatch.setattr(versus, "version", lambda _: "1.0")
    monkeypatch.setattr(versus.os, "sched_getaffinity", lambda _: {0, 1})
    versus.versus(job, "abc", rounds=2, steps=20)
    said = capsys.readouterr().out.splitlines()
    whole = [
        "   polygrain 40.0 (40.0 to 40.0) ms a step, 400 images/s, 1 thread, views in process; peak memory 100 MB",
        "   lightly   120.0 (120.0 to 120.0) ms a step, 133 images/s, 1 thread, 1 loader worker;"
        " peak memory 200 MB + 1 x 50 MB (partly shared)",
        "   lightly takes 3.00 (3.00 to 3.00) times as long",
        "   polygrain forward 75%, rest 25%",
        "   lightly   waiting for data 17%, forward 83%",
    ]
    assert said[0].startswith("polygrain against lightly 1.0, torch 1.0, equal pins, equal cores, batch 16; medians")
    assert said[1:8] == ["", "a. whole SimCLR step, 1 core; rounds of 20 steps", *whole]
    assert said[8:15] == ["", "a. whole SimCLR step, 2 cores; rounds of 20 steps", *whole]
    assert said[15:20] == [
        "",
        "b. two views of each image, in process, 1 core; rounds of 320 images",
        "   polygrain 1000 (1000 to 1000) images/s; peak memory 100 MB",
        "   lightly   100 (100 to 100) images/s; peak memory 200 MB",
        "   lightly takes 10.00 (10.00 to 10.00) times as long; target 5",
    ]
    assert said[20:] == [
        "",
        "c. SMoG besides its networks, 1 core, 1 head, 300 groups, 10,000 x 128 features of a random network"
        " remembered; rounds of 300 steps and a reset, which 300 steps share",
        "   polygrain 2.000 (2.000 to 2.000) ms a step; peak memory 100 MB",
        "   lightly   12.000 (12.000 to 12.000) ms a step; peak memory 200 MB",
        "   lightly takes 6.00 (6.00 to 6.00) times as long; target 3",
        "   assignment    polygrain 1.000 ms, lightly 2.000 ms: 2.00 (2.00 to 2.00) times",
        "   reset         polygrain 1.000 ms, lightly 10.000 ms: 10.00 (10.00 to 10.00) times",
    ]


def test_the_ratio_is_taken_within_a_round(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter([1.0, 5.0, 2.0, 6.0, 3.0, 3.0])
    answers = ({"phases": {"views": each}, "memory": [1.0, 1.0]} for each in seconds)
    monkeypatch.setattr(versus, "ask", lambda _: next(answers))
    versus.versus(job, "b", rounds=3, steps=1)
    assert "lightly takes 3.00 (2.00 to 4.00) times as long" in capsys.readouterr().out, "of the medians: 2.5"


# ---- real processes


@needs_lightly
def test_a_process_measures_on_its_cores_and_a_failing_one_is_one_line(job: dict[str, Any]) -> None:
    asked = {**job, "part": "views", "steps": 2, "settings": [(1, 0)]}
    for side in ("polygrain", "lightly"):
        answer = versus.ask({**asked, "side": side})
        assert list(answer["phases"]) == ["views"]
        assert answer["phases"]["views"] > 0
        assert answer["memory"][0] > 50
    with pytest.raises(UserError, match=r"^polygrain views: exit 1: .*cores"):
        versus.ask({name: value for name, value in asked.items() if name != "cores"} | {"side": "polygrain"})


@needs_lightly
def test_the_best_setting_is_found_with_loader_workers_that_end(job: dict[str, Any]) -> None:
    settings = [(1, 0), (1, 1)]
    answer = measured({**job, "part": "step", "side": "lightly", "steps": 1, "settings": settings})
    assert answer["best"] in settings
    assert set(answer["phases"]) == {"rest", "waiting for data", "forward", "backward", "optimiser"}
    torch.set_num_threads(1)


# ---- the same work on both sides


def test_the_law_is_the_one_that_was_agreed() -> None:
    jitter = law().jitter
    assert jitter is not None
    assert (law().size, law().scale, law().flip, law().grey) == (28, (0.2, 1.0), 0.5, 0.0)
    odds = (jitter.probability, jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    assert odds == (0.8, 0.4, 0.4, 0, 0)
    assert (agreed()["pretrain"]["batch"], agreed()["pretrain"]["images"]) == (128, 12_000)
    assert GROUPS == {"count": 300, "width": 128, "bank": 10_000}


def lightly_parts() -> tuple[Any, Any]:
    """The operations of lightly's transform, configured for the comparison, of its first and its second view."""
    torch.manual_seed(0)
    np.random.seed(0)
    first, second = transform_of(law(), [0.5], [0.25]).transforms
    assert first is second
    return first, first.transform.transforms


def our_views(pixels: Any, recipe: Recipe) -> Any:
    """float [SAMPLES, S, S] on the scale of 0 to 255."""
    images = torch.from_numpy(pixels)[None, None].expand(SAMPLES, 1, -1, -1)
    indices = torch.arange(SAMPLES)
    batch = make_batch(images, indices, indices, [recipe], seed=1, epoch=0, mean=[0.0], std=[1.0])
    return batch.views[0][:, 0].double().numpy() * 255


def lightly_views(pixels: Any, operations: Any) -> Any:
    image, made = Image.fromarray(pixels), []
    for _ in range(SAMPLES):
        view = image
        for operation in operations:
            view = operation(view)
        made.append(np.asarray(view, dtype=np.float64))
    return np.stack(made)


def distance(one: Any, two: Any) -> float:
    """Kolmogorov and Smirnov's: the largest gap between two empirical distributions; by chance 0.042 once in 100."""
    grid = np.sort(np.concatenate([one, two]))
    return np.abs(
        np.searchsorted(np.sort(one), grid, "right") / len(one)
        - np.searchsorted(np.sort(two), grid, "right") / len(two)
    ).max()


@needs_lightly
def test_crops_and_flips_follow_the_same_law() -> None:
    row, column = np.mgrid[:28, :28]
    pixels = (5 * column + 4 * row).astype(np.uint8)
    _, operations = lightly_parts()
    assert type(operations[0]).__name__ == "RandomResizedCrop"
    ours = our_views(pixels, replace(law(), jitter=None))
    theirs = lightly_views(pixels, operations[:4])
    assert theirs.shape == ours.shape == (SAMPLES, 28, 28)

    def of(views: Any) -> Any:
        inner = views[:, 4:24, 4:24]
        # slope over slope: the crop's sides in pixels of the source, negative where it is mirrored
        across = ((inner[:, :, -1] - inner[:, :, 0]).mean(axis=1) / 19 * 28 / 5).round()
        down = ((inner[:, -1] - inner[:, 0]).mean(axis=1) / 19 * 28 / 4).round()
        area = np.abs(across) * down / 28**2
        assert 0.18 < area.min() < 0.22
        assert 0.95 < area.max() <= 1.0
        return area, np.abs(across) / down, inner.mean(axis=(1, 2)), across < 0

    for one, two in zip(of(ours)[:3], of(theirs)[:3], strict=True):
        assert distance(one, two) < 0.05
    assert abs(of(ours)[3].mean() - 0.5) < 0.03
    assert abs(of(theirs)[3].mean() - 0.5) < 0.03


@needs_lightly
def test_brightness_and_contrast_follow_the_same_law() -> None:
    pixels = np.full((32, 32), 25, dtype=np.uint8)
    pixels[:, 16:] = 130
    _, operations = lightly_parts()
    assert type(operations[4]).__name__ == "RandomApply"
    ours = our_views(pixels, replace(law(), scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0))
    theirs = lightly_views(pixels, [operations[4]])

    def of(views: Any) -> Any:
        """The share of views that were changed, and their two factors; no value is cut off."""
        left, right = views[:, 5, 5], views[:, 5, 25]
        changed = np.abs(left - 25) + np.abs(right - 130) > 0.01
        brightness = (left + right) / 155
        contrast = (right - left) / 105 / brightness
        for factor in (brightness[changed], contrast[changed]):
            assert 0.57 < factor.min() < 0.65
            assert 1.35 < factor.max() < 1.45
        return changed.mean(), brightness[changed], contrast[changed]

    one, two = of(ours), of(theirs)
    assert abs(one[0] - 0.8) < 0.03
    assert abs(two[0] - 0.8) < 0.03
    # lightly cuts its pixels to whole numbers after each operation, which adds 0.02 here
    assert distance(one[1], two[1]) < 0.08
    assert distance(one[2], two[2]) < 0.08


@needs_lightly
def test_nothing_else_happens_to_a_view() -> None:
    """Finished views of one structured image: level, contrast and sharpness, normalised, agree on average."""
    row, column = np.mgrid[:28, :28]
    pixels = (128 + 60 * np.sin(column / 2) + 50 * np.cos(row)).astype(np.uint8)
    transform, _ = lightly_parts()
    ours = (our_views(pixels, law()) / 255 - 0.5) / 0.25
    theirs = torch.stack([transform(Image.fromarray(pixels)) for _ in range(SAMPLES)])
    assert theirs.dtype == torch.float32
    assert theirs.shape == (SAMPLES, 1, 28, 28)
    views = [ours, theirs[:, 0].double().numpy()]
    level = [each.mean() for each in views]
    contrast = [each.std(axis=(1, 2)).mean() for each in views]
    across = [np.abs(np.diff(each, axis=2)).mean() for each in views]
    down = [np.abs(np.diff(each, axis=1)).mean() for each in views]
    assert abs(level[0] - level[1]) < 0.05
    for one, two in (contrast, across, down):
        assert abs(one / two - 1) < 0.03


@needs_lightly
def test_losses_are_equal_in_double_precision() -> None:
    from lightly.loss import NTXentLoss

    generator = torch.Generator().manual_seed(0)
    z_1, z_2 = torch.randn(2, 16, 8, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(NTXentLoss(temperature=0.2)(z_1, z_2), nt_xent(z_1, z_2, 0.2), rtol=1e-12, atol=0)


@needs_lightly
def test_a_step_of_both_is_the_same_work(job: dict[str, Any]) -> None:
    """Equal networks give equal losses and have as many parameters; both take optimiser steps on as many images."""
    from lightly.loss import NTXentLoss

    from polygrain.backbones.load import load_backbone

    config = job["config"]
    ours = load_method("simclr", load_backbone(**config["backbone"], channels=1), config["method"]["values"])
    theirs = their_model(config)
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]
    assert sum(p.numel() for p in theirs.parameters()) == 208_560 + 128 * 256 + 2 * 256 + 256 * 128 + 128
    views = [torch.randn(16, 1, 28, 28) for _ in range(2)]
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.copy_(mine)
        losses, _ = ours(SimpleNamespace(views=views), None)
        loss = NTXentLoss(temperature=config["method"]["values"]["temperature"])(
            *theirs["head"](theirs["backbone"](torch.cat(views)).pooled).chunk(2)
        )
    torch.testing.assert_close(losses["instance"], loss, rtol=1e-5, atol=0)
    for side in ("polygrain", "lightly"):
        watch = Stopwatch(torch.device("cpu"))
        with patch.object(torch.optim.AdamW, "step", autospec=True) as step:
            next(PARTS[side, "step"](job, watch, 0))
        assert {"forward", "backward", "optimiser", "rest"} < set(watch.seconds)
        assert [group["fused"] for group in step.call_args.args[0].param_groups] == [True, True]


@needs_lightly
def test_views_of_both_are_as_many_images(job: dict[str, Any]) -> None:
    for side in ("polygrain", "lightly"):
        made = list(islice(PARTS[side, "views"](job, Stopwatch(torch.device("cpu")), 0), 3))
        assert [[tuple(view.shape) for view in views] for views in made] == [[(16, 1, 28, 28)] * 2] * 3
        assert len({tuple(view.flatten().tolist()) for views in made for view in views[0]}) == 48


@needs_lightly
def test_groups_of_both_see_the_same_features_assign_alike_and_remember(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = stand_in_for_scikit_learn(monkeypatch)
    online_ND, target_ND = two_views(job)
    assert torch.equal(online_ND, two_views(job)[0])
    assert not torch.equal(online_ND, target_ND)
    unit_ND = normalize(online_ND, dim=1)
    ours, theirs = _OurGroups(job, online_ND), _TheirGroups(job, online_ND)
    groups = (lambda: ours.groups_KD, lambda: theirs.smog.group_features.data)
    assert torch.equal(groups[0](), groups[1]())
    assert torch.equal(ours.assign(online_ND), theirs.assign(online_ND))
    for side, now, rows_ND in ((ours, groups[0], unit_ND), (theirs, groups[1], online_ND)):
        before, bank = now().clone(), lambda side=side: side.bank_ND if side is ours else side.memory.bank
        expected = torch.zeros(12, dtype=torch.bool)
        expected[assign(unit_ND[:16], before)] = True
        bank().zero_()
        inputs_BD = online_ND[:16].clone().requires_grad_()
        moved_KD = side.moved(inputs_BD)
        moved_KD.square().sum().backward()
        assert inputs_BD.grad.abs().sum() > 0, "the gradient that is timed reaches the rows"
        side.remember(slice(0, 16), inputs_BD, moved_KD)
        assert torch.equal((now() != before).any(dim=1), expected)
        torch.testing.assert_close(bank()[:16], rows_ND[:16])
        assert not bank()[16:].any()
        bank().copy_(rows_ND)
        side.reset()
        torch.testing.assert_close(now().norm(dim=1), torch.ones(12))
    assert shapes == [(200, 8)]


@needs_lightly
@pytest.mark.parametrize("side", ["polygrain", "lightly"])
def test_a_round_of_groups_books_every_phase(side: str, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_scikit_learn(monkeypatch)
    answer = measured({**job, "part": "groups", "side": side, "steps": 2, "settings": [(1, 0)]})
    assert list(answer["phases"]) == ["assignment", "group update", "its gradient", "memory", "reset"]
    assert all(seconds > 0 for seconds in answer["phases"].values())


def stand_in_for_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """K-means as lightly's example uses it, KMeans(k).fit(rows).cluster_centers_; returns what shapes it was given."""
    shapes = []

    class KMeans:
        def __init__(self, count: int) -> None:
            self.count = count

        def fit(self, rows: Any) -> "KMeans":
            shapes.append(rows.shape)
            self.cluster_centers_ = rows[: self.count].astype(np.float64)
            return self

    monkeypatch.setitem(sys.modules, "sklearn.cluster", SimpleNamespace(KMeans=KMeans))
    return shapes
