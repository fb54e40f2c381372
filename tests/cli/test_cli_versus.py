import io
import os
import signal
import sys
import time
import types
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from polygrain.cli.versus import run as versus_run
from polygrain.cli.versus import worker
from polygrain.cli.versus.run import GROUPS, RUN, versus
from polygrain.cli.versus.summary import Spread, per_step, shares, spread, times_as_long
from polygrain.config.project import Project
from polygrain.config.stages import stage_of
from polygrain.nn.contrastive import nt_xent
from polygrain.nn.groups import assign
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import canonical_json, sha256_file, write_text
from polygrain.views.batch import make_batch
from polygrain.views.recipe import Recipe

PROJECT = Project(Path(__file__).resolve().parents[2])
CONFIG = stage_of(PROJECT, "pretrain", RUN).config
RECIPE = Recipe.from_mapping(CONFIG["augmentation"]["global"])
SAMPLES = 3000

needs_lightly = pytest.mark.skipif(
    find_spec("lightly") is None, reason="lightly is not installed: pip install .[bench]"
)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A comparison on 330 images of noise, 16 a step, which leaves 10 over, with few groups."""
    folder = tmp_path_factory.mktemp("noise")
    generator = np.random.default_rng(0)
    np.save(folder / "images.npy", generator.integers(0, 256, (400, 1, 28, 28)).astype(np.uint8))
    np.save(folder / "labels.npy", np.arange(400) % 10)
    splits = {"train": np.arange(330), "validation": np.arange(330, 360), "test": np.arange(360, 400)}
    np.savez(folder / "splits.npz", **splits)
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
        for name in ("images.npy", "labels.npy", "splits.npz")
    }
    manifest = {"format": 1, "name": "noise", "mean": [0.5], "std": [0.25], "shape": [1, 28, 28], "label_subsets": {}}
    write_text(folder / "manifest.json", canonical_json({**manifest, "files": files}))
    config = {**CONFIG, "pretrain": {**CONFIG["pretrain"], "images": 330, "batch": 16}}
    groups = {"count": 12, "width": 8, "bank": 200, "reset": False}
    return {"config": config, "data": str(folder), "groups": groups, "cores": sorted(os.sched_getaffinity(0))[:1]}


# ---- arithmetic


def test_spread_is_median_and_quartiles():
    assert spread([5, 1, 4, 2, 3]) == Spread(3, 2, 4)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0)
    assert spread([1.0, 2.0]) == Spread(1.5, 1.25, 1.75)
    assert Spread(1.234, 1.0, 2.0).text(1) == "1.2 (1.0 to 2.0)"


def test_the_ratio_is_taken_within_a_round_and_above_one_where_ours_is_faster():
    ours, theirs = [1.0, 2.0, 3.0], [5.0, 6.0, 3.0]
    assert times_as_long(ours, theirs) == Spread(3.0, 2.0, 4.0), "of the medians it would be 2.5"
    with pytest.raises(ValueError):
        times_as_long([1.0], [1.0, 2.0])


def test_a_reset_is_shared_by_the_steps_of_its_interval():
    assert per_step({"assignment": 3.0, "reset": 6.0}, steps=3, interval=300) == {"assignment": 1.0, "reset": 0.02}


def test_shares_are_of_all_rounds_together():
    assert shares([{"views": 1.0, "rest": 1.0}, {"views": 5.0, "rest": 1.0}]) == "views 75%, rest 25%"


# ---- refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"parts": "ax"}, "--parts takes letters of 'abc', not 'ax'"),
        ({"parts": ""}, "--parts takes letters of 'abc', not ''"),
        ({"rounds": 0}, "--rounds and --steps must be at least 1"),
        ({"steps": 0}, "--rounds and --steps must be at least 1"),
    ],
)
def test_arguments_without_sense_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        versus(PROJECT, **options)


def test_without_lightly_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(versus_run, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"^versus: lightly is not installed; install it with `pip install \.\[bench\]`$"
    ):
        versus(PROJECT)


def test_without_data_one_line_says_how_to_build_them(tmp_path, monkeypatch):
    for part in ("params", "workflow"):
        (tmp_path / part).symlink_to(PROJECT.root / part)
    monkeypatch.setattr(versus_run, "find_spec", lambda name: True)
    with pytest.raises(
        UserError, match=r"^data/fashion-mnist: not there yet; build it with `snakemake .*manifest.json`$"
    ):
        versus(Project(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"scale": (0.2, 0.9)},
        {"ratio": (0.5, 2.0)},
        {"blur": {"probability": 0.5, "sigma": [0.1, 1]}},
        {"solarise": {"probability": 0.2}},
    ],
)
def test_a_law_that_lightly_cannot_say_is_refused(change):
    from polygrain.cli.versus.theirs import transform_of

    recipe = Recipe.from_mapping({**CONFIG["augmentation"]["global"], **change})
    with pytest.raises(UserError, match="lightly's SimCLR transform can make"):
        transform_of(recipe, [0.5], [0.25])


def test_a_process_that_cannot_start_its_work_is_one_line(job):
    with pytest.raises(UserError, match=r"^versus: polygrain views: OSError: ") as caught:
        worker.Side({**job, "side": "polygrain", "part": "views", "cores": []})
    assert "\n" not in str(caught.value)


# ---- processes


def frozen(process, patience=100):
    """Whether it stops within a second: a signal needs a moment."""
    while process.status() != psutil.STATUS_STOPPED and patience:
        time.sleep(0.01)
        patience -= 1
    return patience > 0


@needs_lightly
def test_sides_take_turns_frozen_and_leave_nothing_behind(job, monkeypatch, capsys):
    """The whole step end to end: its own processes, settings tried, one loader worker at least, one core."""
    seen, asked = [], []

    class Watched(worker.Side):
        def ask(self, question):
            reply = super().ask(question)
            group = [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(recursive=True)]
            seen.extend(group)
            asked.append((self._name, question.get("do"), len(group)))
            assert all(frozen(each) for each in group)
            assert all(each.cpu_affinity() == job["cores"] for each in group)
            return reply

    monkeypatch.setattr(worker, "Side", Watched)
    monkeypatch.setattr(versus_run.os, "sched_getaffinity", lambda _: set(job["cores"]))
    for name in ("TRY", "TRIES", "WARM_UP"):
        monkeypatch.setattr(versus_run, name, 1)
    versus(PROJECT, parts="a", rounds=2, steps=1, job=job)

    assert max(count for *_, count in asked) == 3, "two loader workers were tried"
    turns = [name.split()[0] for name, do, _ in asked if do == "run"][-4:]
    assert turns == ["polygrain", "lightly"] * 2
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in seen)
    said = capsys.readouterr().out.splitlines()
    assert said[2].startswith("a. whole SimCLR step, 1 core; rounds of 1 step")
    assert said[3].startswith("   polygrain ")
    assert "1 thread, views in process; peak memory" in said[3]
    assert "lightly takes" in said[5]
    assert said[6].startswith("   polygrain views ")
    assert said[7].startswith("   lightly   waiting for data ")
    assert said[-1] == "a. whole step on 2 cores: left out, this process may use only one"


def test_a_process_that_fails_or_died_is_reported(job):
    with worker.side({**job, "side": "polygrain", "part": "views"}) as one:
        assert one.ask({"do": "run", "steps": 2})["phases"]["views"] > 0
        assert one.ask({"do": "close"})["memory"] > 50
        with pytest.raises(UserError, match=r"^versus: polygrain views: KeyError: 'steps'$"):
            one.ask({"do": "run"})
        os.killpg(one._process.pid, signal.SIGKILL)
        with pytest.raises(UserError, match="polygrain views ended without an answer"):
            one.ask({"do": "run", "steps": 1})


@contextmanager
def scripted(job):
    """Stands in for a process whose phases last a known time: lightly's is shortest with one loader worker."""
    ours, setting = job["side"] == "polygrain", {}
    seconds = {
        "step": {"views": 0.01, "forward": 0.03} if ours else {"waiting for data": 0.02, "forward": 0.1},
        "views": {"views": 0.016} if ours else {"views": 0.16},
        "groups": {"assignment": 0.001, "reset": 0.3} if ours else {"assignment": 0.002, "reset": 3.0},
    }[job["part"]]

    def ask(question):
        if question["do"] == "prepare":
            setting.update(question)
        if question["do"] == "run":
            slower = 1 + abs(setting["workers"] - 1) if not ours else setting["threads"]
            times = {name: 1 if name == "reset" else question["steps"] for name in seconds}
            return {"phases": {name: value * times[name] * slower for name, value in seconds.items()}}
        return {"memory": 100.0 if ours else 200.0, "child": 50.0}

    yield types.SimpleNamespace(ask=ask)


def test_the_report_says_whose_number_is_whose(job, monkeypatch, capsys):
    monkeypatch.setattr(versus_run, "side", scripted)
    monkeypatch.setattr(versus_run, "find_spec", lambda name: name)
    monkeypatch.setattr(versus_run, "version", lambda name: "1.0")
    monkeypatch.setattr(versus_run.os, "sched_getaffinity", lambda _: {0, 1})
    versus(PROJECT, rounds=2, steps=20, job=job)
    said = capsys.readouterr().out.splitlines()
    head = (
        "polygrain against lightly 1.0, torch 1.0, equal pins, equal cores, batch 16; medians and quartiles of 2 rounds"
    )
    whole = [
        "   polygrain 40.0 (40.0 to 40.0) ms a step, 400 images/s, 1 thread, views in process; peak memory 100 MB",
        "   lightly   120.0 (120.0 to 120.0) ms a step, 133 images/s, 1 thread, 1 loader worker;"
        " peak memory 200 MB + 1 x 50 MB (partly shared)",
        "   lightly takes 3.00 (3.00 to 3.00) times as long",
        "   polygrain views 25%, forward 75%",
        "   lightly   waiting for data 17%, forward 83%",
    ]
    assert said[0] == head + " in turns"
    assert said[1:8] == ["", "a. whole SimCLR step, 1 core; rounds of 20 steps", *whole]
    assert said[8:15] == ["", "a. whole SimCLR step, 2 cores; rounds of 20 steps", *whole]
    assert said[15:20] == [
        "",
        "b. two views of each image, in process, 1 core; rounds of 320 images",
        "   polygrain 1000 (1000 to 1000) images/s; peak memory 100 MB",
        "   lightly   50 (50 to 50) images/s; peak memory 200 MB",
        "   lightly takes 20.00 (20.00 to 20.00) times as long; target 5",
    ]
    assert said[21:28] == [
        "",
        "c. SMoG besides its networks, 1 core, 1 head, 12 groups, 200 x 8 features of a random network remembered;"
        " rounds of 300 steps and a reset, which 300 steps share",
        "   polygrain 2.000 (2.000 to 2.000) ms a step; peak memory 100 MB",
        "   lightly   24.000 (24.000 to 24.000) ms a step; peak memory 200 MB",
        "   lightly takes 12.00 (12.00 to 12.00) times as long; target 3",
        "   assignment    polygrain 1.000 ms, lightly 4.000 ms: 4.00 (4.00 to 4.00) times",
        "   reset         polygrain 1.000 ms, lightly 20.000 ms: 20.00 (20.00 to 20.00) times",
    ]


@contextmanager
def here(job):
    """Stands in for a process: the same questions, answered in this one."""
    work = worker.import_module(worker.SIDES[job["side"]]).WORKS[job["part"]](job)
    yield types.SimpleNamespace(ask=lambda question: worker._answer(work, question))


@needs_lightly
@pytest.mark.parametrize("reset", [True, False])
def test_views_and_groups_are_reported(reset, job, monkeypatch, capsys):
    monkeypatch.setattr(versus_run, "side", here)
    monkeypatch.setattr(versus_run, "find_spec", lambda name: None if name == "sklearn" and not reset else name)
    clustered = stand_in_for_scikit_learn(monkeypatch)
    versus(PROJECT, parts="bc", rounds=2, steps=2, job=job)
    said = capsys.readouterr().out
    assert "b. two views of each image, in process, 1 core; rounds of 32 images" in said
    assert "12 groups, 200 x 8 features" in said
    phases = ["assignment", "group update", "its gradient", "memory", *(["reset"] if reset else [])]
    lines = [line for line in said.splitlines() if line.endswith(" times")]
    assert [line[3:17].strip() for line in lines] == phases
    assert ("scikit-learn, which is not installed" in said) == (not reset)
    assert ("; target 3" in said) == reset, "a target is for the whole"
    assert clustered == ([(200, 8)] * 3 if reset else []), "once to warm up, once a round"


def stand_in_for_scikit_learn(monkeypatch):
    """K-means as lightly's example uses it, KMeans(k).fit(rows).cluster_centers_; returns what shapes it was given."""
    shapes = []

    class KMeans:
        def __init__(self, count):
            self.count = count

        def fit(self, rows):
            shapes.append(rows.shape)
            self.cluster_centers_ = rows[: self.count].astype(np.float64)
            return self

    monkeypatch.setitem(sys.modules, "sklearn.cluster", types.SimpleNamespace(KMeans=KMeans))
    return shapes


# ---- the same work on both sides


def test_the_law_is_the_one_that_was_agreed():
    jitter = RECIPE.jitter
    assert (RECIPE.size, RECIPE.scale, RECIPE.flip, RECIPE.grey) == (32, (0.2, 1.0), 0.5, 0.0)
    assert (jitter.probability, jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (
        0.8,
        0.4,
        0.4,
        0,
        0,
    )
    assert CONFIG["pretrain"]["batch"] == 128
    assert CONFIG["pretrain"]["images"] == 12_000
    assert GROUPS == {"count": 300, "width": 128, "bank": 10_000}


def lightly_parts():
    """The operations of lightly's transform, configured for the comparison, of its first and its second view."""
    from polygrain.cli.versus.theirs import transform_of

    torch.manual_seed(0)
    np.random.seed(0)
    first, second = transform_of(RECIPE, [0.5], [0.25]).transforms
    assert first is second
    return first, first.transform.transforms


def our_views(pixels, recipe):
    """float [SAMPLES, S, S] on the scale of 0 to 255."""
    images = torch.from_numpy(pixels)[None, None].expand(SAMPLES, 1, -1, -1)
    indices = torch.arange(SAMPLES)
    batch = make_batch(images, indices, indices, [recipe], seed=1, epoch=0, mean=[0.0], std=[1.0])
    return batch.views[0][:, 0].double().numpy() * 255


def lightly_views(pixels, operations):
    image, made = Image.fromarray(pixels), []
    for _ in range(SAMPLES):
        view = image
        for operation in operations:
            view = operation(view)
        made.append(np.asarray(view, dtype=np.float64))
    return np.stack(made)


def distance(one, two):
    """Kolmogorov and Smirnov's: the largest gap between two empirical distributions; by chance 0.042 once in 100."""
    grid = np.sort(np.concatenate([one, two]))
    return np.abs(
        np.searchsorted(np.sort(one), grid, "right") / len(one)
        - np.searchsorted(np.sort(two), grid, "right") / len(two)
    ).max()


@needs_lightly
def test_crops_and_flips_follow_the_same_law():
    row, column = np.mgrid[:28, :28]
    pixels = (5 * column + 4 * row).astype(np.uint8)
    _, operations = lightly_parts()
    assert type(operations[0]).__name__ == "RandomResizedCrop"
    ours = our_views(pixels, replace(RECIPE, jitter=None))
    theirs = lightly_views(pixels, operations[:4])
    assert theirs.shape == ours.shape == (SAMPLES, 32, 32)

    def measured(views):
        inner = views[:, 4:28, 4:28]
        # slope over slope: the crop's sides in pixels of the source, negative where it is mirrored
        across = ((inner[:, :, -1] - inner[:, :, 0]).mean(axis=1) / 23 * 32 / 5).round()
        down = ((inner[:, -1] - inner[:, 0]).mean(axis=1) / 23 * 32 / 4).round()
        area = np.abs(across) * down / 28**2
        assert 0.18 < area.min() < 0.22
        assert 0.95 < area.max() <= 1.0
        return area, np.abs(across) / down, inner.mean(axis=(1, 2)), across < 0

    for one, two in zip(measured(ours)[:3], measured(theirs)[:3], strict=True):
        assert distance(one, two) < 0.05
    assert abs(measured(ours)[3].mean() - 0.5) < 0.03
    assert abs(measured(theirs)[3].mean() - 0.5) < 0.03


@needs_lightly
def test_brightness_and_contrast_follow_the_same_law():
    pixels = np.full((32, 32), 25, dtype=np.uint8)
    pixels[:, 16:] = 130
    _, operations = lightly_parts()
    assert type(operations[4]).__name__ == "RandomApply"
    ours = our_views(pixels, replace(RECIPE, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0))
    theirs = lightly_views(pixels, [operations[4]])

    def measured(views):
        """The share of views that were changed, and their two factors; no value is cut off."""
        left, right = views[:, 5, 5], views[:, 5, 25]
        changed = np.abs(left - 25) + np.abs(right - 130) > 0.01
        brightness = (left + right) / 155
        contrast = (right - left) / 105 / brightness
        for factor in (brightness[changed], contrast[changed]):
            assert 0.57 < factor.min() < 0.65
            assert 1.35 < factor.max() < 1.45
        return changed.mean(), brightness[changed], contrast[changed]

    one, two = measured(ours), measured(theirs)
    assert abs(one[0] - 0.8) < 0.03
    assert abs(two[0] - 0.8) < 0.03
    # lightly cuts its pixels to whole numbers after each operation, which adds 0.02 here
    assert distance(one[1], two[1]) < 0.08
    assert distance(one[2], two[2]) < 0.08


@needs_lightly
def test_nothing_else_happens_to_a_view():
    """Finished views of one structured image: level, contrast and sharpness, normalised, agree on average."""
    row, column = np.mgrid[:28, :28]
    pixels = (128 + 60 * np.sin(column / 2) + 50 * np.cos(row)).astype(np.uint8)
    transform, _ = lightly_parts()
    ours = (our_views(pixels, RECIPE) / 255 - 0.5) / 0.25
    theirs = torch.stack([transform(Image.fromarray(pixels)) for _ in range(SAMPLES)])
    assert theirs.dtype == torch.float32
    assert theirs.shape == (SAMPLES, 1, 32, 32)
    views = [ours, theirs[:, 0].double().numpy()]
    level = [each.mean() for each in views]
    contrast = [each.std(axis=(1, 2)).mean() for each in views]
    across = [np.abs(np.diff(each, axis=2)).mean() for each in views]
    down = [np.abs(np.diff(each, axis=1)).mean() for each in views]
    assert abs(level[0] - level[1]) < 0.05
    for one, two in (contrast, across, down):
        assert abs(one / two - 1) < 0.03


@needs_lightly
def test_losses_are_equal_in_double_precision():
    from lightly.loss import NTXentLoss

    generator = torch.Generator().manual_seed(0)
    z_1, z_2 = torch.randn(2, 16, 8, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(NTXentLoss(temperature=0.2)(z_1, z_2), nt_xent(z_1, z_2, 0.2), rtol=1e-12, atol=0)


@needs_lightly
def test_a_step_of_both_is_the_same_work(job):
    """Equal networks give equal losses; as many parameters, images and epochs; both take an optimiser step."""
    from polygrain.cli.versus import ours, theirs

    our, their = ours.Step(job), theirs.Step(job)
    our_parameters, their_parameters = list(our.training.method.parameters()), list(their.model.parameters())
    assert [p.shape for p in our_parameters] == [p.shape for p in their_parameters]
    assert sum(p.numel() for p in our_parameters) == 307_248 + 128 * 256 + 2 * 256 + 256 * 64 + 64
    batch = our.training.data.batch(our.training.clock, ("global", "global"))
    with torch.no_grad():
        for mine, other in zip(our_parameters, their_parameters, strict=True):
            other.copy_(mine)
        losses, _ = our.training.method(batch, our.training.clock)
        other_loss = their.criterion(*their.model(torch.cat(batch.views)).chunk(2))
    torch.testing.assert_close(losses["instance"], other_loss, rtol=1e-5, atol=0)

    views, labels, _ = next(their.batches)
    assert [view.shape for view in views] == [view.shape for view in batch.views] == [(16, 1, 32, 32)] * 2
    assert [view.dtype for view in views] == [view.dtype for view in batch.views]
    assert len(labels) == 16
    assert len(their.loader) == our.training.data.steps_per_epoch
    for optimizer in (our.training.optimizer, their.optimizer):
        assert type(optimizer).__name__ == "AdamW"
        assert [group["fused"] for group in optimizer.param_groups] == [True, True]

    for side in (our, their):
        module = our.training.method if side is our else their.model
        before = [p.detach().clone() for p in module.parameters()]
        phases = side.run(2)
        assert {"forward", "backward", "optimiser", "rest"} <= set(phases)
        assert all(seconds >= 0 for seconds in phases.values())
        assert all(not torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True))
        side.close()
    assert our.training.step == 2


@needs_lightly
def test_views_of_both_are_as_many_images(job, monkeypatch):
    from polygrain.cli.versus import ours, theirs

    our, their = ours.Views(job), theirs.Views(job)
    made = []
    make = our.data.batch
    monkeypatch.setattr(our.data, "batch", lambda *arguments: made.append(make(*arguments)) or made[-1])
    assert set(our.run(3)) == set(their.run(3)) == {"views"}
    assert [[view.shape for view in batch.views] for batch in made] == [[(16, 1, 32, 32)] * 2] * 3
    assert [view.shape for view in their.made] == [(16, 1, 32, 32)] * 2
    assert len({index for batch in made for index in batch.indices.tolist()}) == 48
    assert len(their.dataset) == len(our.data.positions) == 330


@needs_lightly
def test_groups_of_both_see_the_same_features_and_assign_alike(job, monkeypatch):
    from polygrain.cli.versus import ours, theirs

    stand_in_for_scikit_learn(monkeypatch)
    job = {**job, "groups": {**job["groups"], "reset": True}}
    our, their = ours.Groups(job), theirs.Groups(job)
    assert torch.equal(our.online_ND, their.online_ND)
    assert torch.equal(our.target_ND, their.target_ND)
    assert not torch.equal(our.online_ND, our.target_ND)
    assert our.online_ND.shape == their.memory.bank.shape == our.bank_ND.shape == (200, 8)
    assert our.groups_KD.shape == their.smog.group_features.shape == (12, 8)
    assert torch.equal(our.gradient_KD, their.gradient_KD)

    groups, rows = their.smog.group_features.data, our.online_ND
    unit = torch.nn.functional.normalize(rows, dim=1)
    assert torch.equal(their.smog.assign_groups(rows), assign(unit, groups))

    # a step of the first 16 images moves the groups that they fall into, and is remembered
    for side, groups_now in ((our, lambda: our.groups_KD), (their, lambda: their.smog.group_features.data)):
        before, members = groups_now().clone(), rows if side is their else unit
        expected = torch.zeros(12, dtype=torch.bool)
        expected[assign(members[:16], torch.nn.functional.normalize(before, dim=1))] = True
        bank = side.bank_ND if side is our else side.memory.bank
        bank.zero_()
        side.job = {**job, "groups": {**job["groups"], "reset": False}}
        side.run(1)
        assert torch.equal((groups_now() != before).any(dim=1), expected)
        torch.testing.assert_close(bank[:16], members[:16])
        assert not bank[16:].any()
        side.job = job
        bank.copy_(members)
    for side in (our, their):
        phases = side.run(2)
        assert list(phases) == ["assignment", "group update", "its gradient", "memory", "reset"]
        assert all(seconds > 0 for seconds in phases.values())
        assert side.step == 3
    lengths = (our.groups_KD.norm(dim=1), their.smog.group_features.norm(dim=1))
    for length in lengths:
        torch.testing.assert_close(length, torch.ones(12))


def test_the_gradient_that_is_timed_reaches_the_rows(job, monkeypatch):
    from polygrain.cli.versus import ours

    side, reached = ours.Groups(job), []
    backward = torch.autograd.backward
    monkeypatch.setattr(
        torch.autograd, "backward", lambda moved, *rest: reached.append(moved) or backward(moved, *rest)
    )
    side.run(1)
    assert reached[0].requires_grad
    assert not side.groups_KD.requires_grad


def test_what_is_printed_meanwhile_goes_to_standard_error(monkeypatch, capsys):
    terminal = io.StringIO()
    monkeypatch.setattr(versus_run.sys, "stderr", terminal)
    with versus_run.Progress(2) as progress:
        progress.tell("views, round 1 of 2")
        progress.update()
        progress.say("a line of the result")
    assert capsys.readouterr().out == "a line of the result\n"
    assert "a line" not in terminal.getvalue()
