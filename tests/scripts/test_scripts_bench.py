"""The cost report on a clock that moves only where a test says so: every second is booked once, where it belongs."""

import copy
import math
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import bench
import pandas as pd
import pytest
import torch
from bench import PARTS, WARM_UP, Cost, describe, measure, overview
from bench_meter import CALLS, Meter, backward_share, metered
from fake_time import Time
from packing import pack_noise
from torch import Tensor, nn

from polygrain.backbones.contract import Backbone, Encoded, from_map
from polygrain.backbones.resnet import ResNet
from polygrain.config.project import Project
from polygrain.methods import wcl
from polygrain.methods.smog import SMoG
from polygrain.nn import ema, phases
from polygrain.nn.clock import Clock
from polygrain.nn.heads import Head
from polygrain.nn.phases import phase
from polygrain.nn.queue import Queue
from polygrain.provenance.errors import UserError
from polygrain.train.data import PretrainingData
from polygrain.train.run import Training

PROJECT = Project(Path(__file__).resolve().parents[2])
METHODS = sorted(path.stem for path in (PROJECT.params / "method").glob("*.yaml"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(phases, "time", clock)
    return clock


# ---- a toy method whose parts take known times


class Sleep(torch.autograd.Function):
    """Hands its input on, and takes its time in either direction."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clock: Any, there: float, back: float) -> Tensor:
        clock.sleep(there)
        ctx.clock, ctx.back = clock, back
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.clock.sleep(ctx.back)
        return gradient, None, None, None


class Network(Backbone):
    """Two parts of 1 s, backward 0.02 s; its final norm takes 2 s."""

    def __init__(self, clock: Any) -> None:
        super().__init__()
        self.width, self.clock = 3, clock
        self.first, self.second, self.norm = nn.Linear(4, 3), nn.Linear(3, 3), nn.LayerNorm(3)

    def __deepcopy__(self, memo: Any) -> "Network":
        other = Network(self.clock)
        other.load_state_dict(self.state_dict())
        return other

    def forward(self, images_BCSS: Tensor) -> Encoded:
        return self.finish(self.trunk(images_BCSS))

    def trunk(self, images_BCSS: Tensor) -> Tensor:
        hidden_BD = Sleep.apply(self.first(images_BCSS.flatten(1)), self.clock, 1, 0.02)
        return Sleep.apply(self.second(hidden_BD), self.clock, 1, 0.02)[:, None]

    def finish(self, tokens_BTD: Tensor) -> Encoded:
        tokens_BTD = Sleep.apply(self.norm(tokens_BTD), self.clock, 2, 0)
        return from_map(tokens_BTD.mT[..., None])


class Toy(nn.Module):
    """Heads between the calls of a network, whose copies' weights are shared: what must not be mixed up."""

    def __init__(self, clock: Any) -> None:
        super().__init__()
        self.clock = clock
        self.backbone = Network(clock)
        self.copy = ema.frozen_copy(self.backbone)
        self.head = nn.Linear(3, 3)
        self.queue = Queue(4, 3, wrap="ring", unit=True)

    def forward(self, view: Tensor) -> Tensor:
        first, second = self.backbone(view), self.backbone(view)
        with torch.no_grad(), phase("rest"):
            target = self.copy(view).pooled
            self.clock.sleep(3)
        loss = Sleep.apply(self.head(first.pooled), self.clock, 100, 0.03) * second.map.mean() + target
        between = Sleep.apply(self.head(self.backbone.trunk(view)), self.clock, 200, 0.03)
        crops = self.backbone.encode_crops([view, view])
        return (loss + self.backbone.finish(between).pooled + crops[0].pooled + crops[1].pooled).sum()

    def start_epoch(self, clock: Clock, data: None) -> None:
        self.clock.sleep(5)
        with torch.no_grad():
            self.backbone(torch.zeros(7, 4, 1, 1))

    def before_step(self, clock: Clock) -> None:
        self.clock.sleep(6)
        with phase("rest"):
            self.clock.sleep(1)
        ema.update(self.copy, self.backbone, 0.5)

    def after_step(self, clock: Clock) -> None:
        self.clock.sleep(9)
        self.queue.push(torch.zeros(2, 3))


def slowed(owner: Any, name: str, clock: Time, seconds: Callable[..., float], patch: pytest.MonkeyPatch) -> None:
    original = getattr(owner, name)

    def run(*arguments: Any, **options: Any) -> Any:
        clock.sleep(seconds(*arguments))
        return original(*arguments, **options)

    patch.setattr(owner, name, run)


VIEW = torch.linspace(-1, 1, 8).reshape(2, 4, 1, 1)


def test_encoder_and_heads_are_told_apart_and_passes_counted_by_their_work(clock: Time) -> None:
    torch.manual_seed(0)
    toy, meter = Toy(clock), Meter(torch.device("cpu"))
    with metered(toy, VIEW, meter):
        before = clock.now
        for _ in range(2):
            with meter.phase("forward"):
                clock.sleep(0.5)
                toy(VIEW)
    seconds = {name: value / 2 for name, value in meter.of("steps").items()}
    assert seconds == {"forward": 0.5 + 100 + 200, "encoder": 2 * 4 + 4 + 2 + 4 + 2, "rest: in forward": 3}
    assert sum(meter.seconds.values()) == clock.now - before
    # images: two views and the trunk's with gradient, the copy's without, two crops in one pass
    assert meter.passes["steps"] / 2 == pytest.approx(2 * (3 + 3 + 1 + 3) + 4 * 3)


def test_the_backward_pass_is_divided_by_what_made_its_nodes() -> None:
    torch.manual_seed(0)

    class Real(Time):
        def sleep(self, seconds: float) -> None:
            time.sleep(seconds if seconds < 1 else 0)

    toy, meter = Toy(Real()), Meter(torch.device("cpu"))

    def step() -> None:
        with meter.phase("forward"):
            loss = toy(VIEW)
        loss.backward()

    with metered(toy, VIEW, meter):
        share = backward_share(step, 2)
    # the trunk runs four times with two parts of 0.02 s each; two heads take 0.03 s each
    assert share == pytest.approx(4 * 0.04 / (4 * 0.04 + 0.06), abs=0.1)


def test_the_gradients_are_those_of_a_method_that_nobody_watches(clock: Time) -> None:
    torch.manual_seed(0)
    toy = Toy(Time())
    toy.clock.sleep = lambda _: None
    toy(VIEW).backward()
    plain = [parameter.grad.clone() for parameter in toy.parameters() if parameter.grad is not None]
    toy.zero_grad()
    meter = Meter(torch.device("cpu"))
    with metered(toy, VIEW, meter), meter.phase("forward"):
        toy(VIEW).backward()
    watched = [parameter.grad for parameter in toy.parameters() if parameter.grad is not None]
    assert len(plain) == len(watched) == 8
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


def test_hooks_and_shared_parts_are_named_and_what_is_rare_has_books_of_its_own(
    clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(ema, "update", clock, lambda *_: 11, monkeypatch)
    slowed(Queue, "push", clock, lambda *_: 13, monkeypatch)
    toy, meter = Toy(clock), Meter(torch.device("cpu"))
    meter.counting = False
    with metered(toy, VIEW, meter), meter.phase("rest"):
        clock.sleep(1)
        for step in (0, 5):
            now = Clock(0, step, 10, 5)
            toy.start_epoch(now, None)
            toy.before_step(now)
            toy.after_step(now)
    assert meter.of("once") == {"rest: start_epoch": 5, "encoder": 4}
    assert meter.of("hooks") == {"rest: start_epoch": 5, "encoder": 4, "rest: before_step": 14, "rest: EMA": 22}
    assert meter.of("steps") == {"rest: in forward": 1, "rest: after_step": 18, "rest: queues": 26}
    assert meter.passes == pytest.approx({"once": 7, "hooks": 7}), "hooks are counted even where steps are not"


def test_nothing_of_the_measurement_is_left_behind(clock: Time) -> None:
    toy = Toy(clock)
    before = [dict(vars(module)) for module in toy.modules()], ema.update, ema.copy_parameters, Queue.push
    meter = Meter(torch.device("cpu"))
    with suppress(KeyError), metered(toy, VIEW, meter):
        assert all(name in vars(toy.backbone) and name in vars(toy.copy) for name in CALLS)
        raise KeyError
    assert ([dict(vars(module)) for module in toy.modules()], ema.update, ema.copy_parameters, Queue.push) == before
    toy(VIEW).backward()
    assert not meter.passes


# ---- whole runs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/fashion-mnist, noise in ten classes."""
    folder = tmp_path_factory.mktemp("project")
    pack_noise(folder / "data" / "fashion-mnist")
    return folder


@pytest.fixture
def there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


def config_of(method: str, variant: str = "base", scale: str = "smoke") -> dict[str, Any]:
    run = f"runs/{scale}/fashion-mnist/{method}/{variant}/seed0"
    return copy.deepcopy(dict(bench.stage_of(PROJECT, "pretrain", run).config))


CELLS = [*((method, "base") for method in METHODS if method not in ("pca", "random")), ("wcl", "multicrop")]


SMALL_VIEWS = {("mncl", "base"): 0.04, ("mugs", "base"): 0.04, ("wcl", "multicrop"): 0.04, ("fast-moco", "base"): 0.07}


@pytest.mark.parametrize(("method", "variant"), CELLS, ids=lambda part: part)
def test_every_method_spends_the_passes_that_it_declares(method: str, variant: str, there: None) -> None:
    config = config_of(method, variant)
    config["pretrain"]["batch"] = 32
    if "batch" in config["method"]["values"]:
        config["method"]["values"]["batch"] = 32
    cost = measure(config, steps=1)
    # units are areas; odd sides of maps of 28 and 14 px are rounded up, which small crops and parts feel
    allowed = max(SMALL_VIEWS.get((method, variant), 0.0) * config["method"]["encoder_passes"], 0.01)
    assert cost.passes == pytest.approx(config["method"]["encoder_passes"], abs=allowed)
    assert cost.start_passes == pytest.approx(config["method"]["start_passes"], abs=0.01)
    assert math.isclose(cost.parts().sum(), cost.components.sum())
    assert (cost.parts() > 0).all()
    assert cost.parts()["encoder"] > 0.1 * cost.parts().sum()


def test_a_part_that_sleeps_is_booked_where_it_belongs_and_all_shares_add_up(
    there: None, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WCL: two views, so two heads twice, a graph per view."""
    slowed(PretrainingData, "batch", clock, lambda *_: 1, monkeypatch)
    slowed(Head, "forward", clock, lambda *_: 2, monkeypatch)
    slowed(wcl.graph, "positives", clock, lambda *_: 4, monkeypatch)
    slowed(torch.optim.AdamW, "step", clock, lambda *_: 8, monkeypatch)
    slowed(Training, "_refuse_non_finite", clock, lambda *_: 16, monkeypatch)
    slowed(Training, "_hook", clock, lambda _, name, *__: 32 if name == "after_step" else 0, monkeypatch)
    slowed(ResNet, "encode_jointly", clock, lambda *_: 64, monkeypatch)
    slowed(torch.autograd, "backward", clock, lambda *_: 100, monkeypatch)
    share = bench.backward_share
    monkeypatch.setattr(bench, "backward_share", lambda step, steps: 0.75 + 0 * share(step, steps))
    cost = measure(config_of("wcl"), steps=3)
    assert dict(cost.components) == pytest.approx(
        {
            "views": 1, "encoder": 2 * 64 + 75, "heads": 2 * 2 * 2 + 25, "optimiser": 8,
            "rest: loop": 16 + 32, "rest: graph": 2 * 4, "rest: monitors": 0,
        }
    )  # fmt: skip
    assert list(cost.parts()) == pytest.approx([1, 128 + 75, 8 + 25, 8, 48 + 8])


def test_work_that_is_rarely_done_counts_by_its_share_of_the_run(
    there: None, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SMoG's groups are found anew every 8 steps, and its memory is filled once, however few steps are timed."""
    config = config_of("smog")
    config["method"]["values"]["reset_epochs"], config["steps"] = 1.0, 40
    assert config["pretrain"]["images"] // config["pretrain"]["batch"] == 8
    slowed(SMoG, "_cluster", clock, lambda *_: 80, monkeypatch)
    slowed(SMoG, "start_epoch", clock, lambda _, now, __: 400 if now.step == 0 else 16, monkeypatch)
    # the profiled steps fall out of the fake clock's books
    cost = measure(config, steps=1)
    after_warm_up = 40 - WARM_UP
    assert cost.components["rest: k-means"] == pytest.approx(4 * 80 / after_warm_up)
    assert cost.components["rest: start_epoch"] == pytest.approx(400 / 40 + 4 * 16 / after_warm_up)


def test_the_report_names_parts_and_components_largest_first() -> None:
    parts = {"views": 0.001, "encoder": 0.09, "heads": 0.004, "optimiser": 0.002}
    cost = Cost(pd.Series({**parts, "rest: EMA": 0.001, "rest: k-means": 0.002}), passes=6.0, start_passes=0.0)
    config = config_of("simclr")
    lines = describe("runs/a", config, cost, 20).splitlines()
    assert lines[0] == "runs/a: 100.0 ms a step, 640 images/s (20 steps of 64 images)"
    assert lines[1] == "  encoder passes of an image: 6 declared, 6 counted"
    words = ["views", "encoder,", "heads", "optimiser", "overhead", "k-means", "EMA"]
    assert [line.split()[0] for line in lines[2:]] == words
    assert lines[6].split()[-3:] == ["3.00", "ms", "3.0%"]
    assert sum(float(line.split()[-1].rstrip("%")) for line in lines[2:7]) == pytest.approx(100)
    config["method"] = {**config["method"], "start_passes": 2}
    assert "; before the first step 2 declared, 0 counted" in describe("runs/a", config, cost, 20)
    table = overview({"runs/a": cost, "runs/b": cost}).splitlines()
    assert "under 15%" in table[0]
    assert table[1].split() == ["ms", "a", "step", *list(PARTS)[:-1], "overhead"]
    assert table[3].split() == ["runs/b", "100.0", "1.0%", "90.0%", "4.0%", "2.0%", "3.0%"]


@pytest.mark.parametrize(
    ("run", "steps", "words"),
    [
        ("runs/smoke/fashion-mnist/simclr/base/seed0", 10_000, r"seed0: has only \d+ steps, 5 to warm up; ask"),
        ("runs/cpu/fashion-mnist/random/base/seed0", 1, "has only 0 steps"),
        ("runs/smoke/fashion-mnist/simclrr/base/seed0", 1, "did you mean 'simclr'"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_line(
    run: str, steps: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "check_data", lambda *_: None)
    with pytest.raises(UserError, match=words):
        bench.checked(PROJECT, run, steps)


def test_without_data_one_line_says_how_to_build_them(tmp_path: Path) -> None:
    (tmp_path / "params").symlink_to(PROJECT.params)
    (tmp_path / "workflow").symlink_to(PROJECT.root / "workflow")
    with pytest.raises(UserError, match=r"^data/fashion-mnist/images.npy: not there yet; build it with `snakemake"):
        bench.checked(Project(tmp_path), "runs/smoke/fashion-mnist/simclr/base/seed0", 1)


def test_by_default_every_method_that_takes_steps_is_measured_and_then_start_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def configuration(_: Project, run: str, steps: int) -> Mapping[str, Any]:
        return config_of(run.split("/")[3], scale="cpu")

    monkeypatch.setattr(bench, "pin_torch", lambda: None)  # done when the tests began, and to be done once
    monkeypatch.setattr(bench, "checked", configuration)
    monkeypatch.setattr(bench, "measure", lambda *_: Cost(pd.Series({"encoder": 1.0}), 6, 0))
    monkeypatch.setattr(bench.subprocess, "run", lambda command, check: asked.append(command[2]))
    bench.main(PROJECT, Namespace(runs=[], steps=1, determinism=False))
    said = capsys.readouterr().out.splitlines()
    measured = [line.split(":")[0] for line in said if "ms a step," in line]
    assert measured == [f"runs/cpu/fashion-mnist/{method}/base/seed0" for method, variant in CELLS if variant == "base"]
    start = said.index("start-up, median of 5 processes:")
    kinds = [line.split()[0] for line in said[start + 1 :]]
    assert kinds[0] == "show,"
    assert {"prepare", "pretrain", "features", "table"} <= set(kinds)
    assert len(asked) == 5 * len(kinds)
    for code in set(asked):
        compile(code, "start-up", "exec")
