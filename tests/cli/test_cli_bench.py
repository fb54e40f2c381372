"""The cost report on a clock that moves only where a test says so: every second is booked once, where it belongs."""

import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_time import Time
from packing import pack_noise
from torch import Tensor, nn

from polygrain.backbones.contract import Backbone, Encoded, from_map
from polygrain.backbones.resnet import ResNet
from polygrain.cli.bench import determinism
from polygrain.cli.bench import meter as meter_module
from polygrain.cli.bench import run as bench_run
from polygrain.cli.bench.determinism import ALL_PINS, SIDES
from polygrain.cli.bench.meter import CALLS, MEASURING, Meter, metered
from polygrain.cli.bench.run import PARTS, WARM_UP, Cost, bench, describe, measure, overview
from polygrain.cli.portability.run import checkout
from polygrain.config.project import Project
from polygrain.config.stages import stage_of
from polygrain.methods import wcl
from polygrain.methods.smog import SMoG
from polygrain.nn import ema, phases
from polygrain.nn.clock import Clock
from polygrain.nn.heads import Head
from polygrain.nn.phases import phase
from polygrain.nn.queue import Queue
from polygrain.provenance import pins
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
    def forward(ctx: Any, x: Tensor, clock: Time, there: float, back: float) -> Tensor:
        clock.sleep(there)
        ctx.clock, ctx.back = clock, back
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.clock.sleep(ctx.back)
        return gradient, None, None, None


class Network(Backbone):
    """Two parts of 1 s, backward 10 s; its final norm takes 2 s, backward 20 s."""

    def __init__(self, clock: Time) -> None:
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
        hidden_BD = Sleep.apply(self.first(images_BCSS.flatten(1)), self.clock, 1, 10)
        return Sleep.apply(self.second(hidden_BD), self.clock, 1, 10)[:, None]

    def finish(self, tokens_BTD: Tensor) -> Encoded:
        tokens_BTD = Sleep.apply(self.norm(tokens_BTD), self.clock, 2, 20)
        return from_map(tokens_BTD.mT[..., None])


class Toy(nn.Module):
    """Heads between the calls of a network, whose copies' weights are shared: what the hooks must not mix up."""

    def __init__(self, clock: Time) -> None:
        super().__init__()
        self.clock = clock
        self.backbone = Network(clock)
        self.copy = ema.frozen_copy(self.backbone)
        self.head = nn.Linear(3, 3)
        self.queue = Queue(4, 3, wrap="ring", unit=True)

    def _head(self, x: Tensor, there: float, back: float) -> Tensor:
        return Sleep.apply(self.head(x), self.clock, there, back)

    def forward(self, view: Tensor) -> Tensor:
        first, second = self.backbone(view), self.backbone(view)
        with torch.no_grad(), phase("rest"):
            target = self.copy(view).pooled
            self.clock.sleep(3)
        loss = self._head(first.pooled, 100, 1000) * self._head(second.tokens.mean(dim=1), 100, 1000)
        loss = loss + target + second.map.mean()
        tokens = self.backbone.trunk(view[..., :1, :1].expand(-1, 4, -1, -1)[:, :4])
        between = self._head(tokens, 200, 2000)
        late = self.backbone.finish(between)
        crops = self.backbone.encode_crops([view, view])
        return (loss + self._head(late.pooled, 300, 3000) + crops[0].pooled + crops[1].pooled).sum()

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


@pytest.fixture
def slow_parts(clock: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(owner: Any, name: str, seconds: float) -> None:
        original = getattr(owner, name)

        def run(*arguments: Any) -> None:
            clock.sleep(seconds)
            original(*arguments)

        monkeypatch.setattr(owner, name, run)

    slow(ema, "update", 11)
    slow(Queue, "push", 13)


def test_encoder_and_heads_are_told_apart_in_both_directions(clock: Time) -> None:
    torch.manual_seed(0)
    toy, meter = Toy(clock), Meter(torch.device("cpu"), side=1)
    view = torch.randn(2, 4, 1, 1)
    with metered(toy, meter):
        for _ in range(2):
            with meter.phase("forward"):
                clock.sleep(0.5)
                loss = toy(view)
            with meter.phase("backward"):
                clock.sleep(0.25)
                loss.backward()
    seconds = {name: value / 2 for name, value in meter.steps.seconds.items()}
    assert seconds.pop(MEASURING) == 0
    encoder = 2 * 4 + 4 + (2 + 2) + 4, 2 * 40 + (20 + 20) + 40
    assert seconds.pop("encoder") == sum(encoder)
    assert seconds.pop("forward") == 0.5 + 100 + 100 + 200 + 300
    assert seconds.pop("backward") == 0.25 + 1000 + 1000 + 2000 + 3000
    assert seconds == {"rest: in forward": 3}
    assert sum(meter.steps.seconds.values()) == clock.now
    # images: two views and the trunk's with gradient, the copy's without, two crops in one pass
    assert meter.steps.passes / 2 == 2 * (3 + 3 + 1 + 3) + 4 * 3


def test_the_gradients_are_those_of_a_method_that_nobody_watches(clock: Time) -> None:
    torch.manual_seed(0)
    toy = Toy(clock)
    view = torch.randn(2, 4, 1, 1)
    toy(view).backward()
    plain = [parameter.grad.clone() for parameter in toy.parameters() if parameter.grad is not None]
    toy.zero_grad()
    meter = Meter(torch.device("cpu"), side=1)
    with metered(toy, meter), meter.phase("forward"):
        toy(view).backward()
    watched = [parameter.grad for parameter in toy.parameters() if parameter.grad is not None]
    assert len(plain) == len(watched) == 8
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


def test_hooks_and_shared_parts_are_named_and_what_is_rare_has_books_of_its_own(clock: Time, slow_parts: None) -> None:
    toy, meter = Toy(clock), Meter(torch.device("cpu"), side=1)
    with metered(toy, meter), meter.phase("rest"):
        clock.sleep(1)
        for step in (0, 5):
            now = Clock(0, step, 10, 5)
            toy.start_epoch(now, None)
            toy.before_step(now)
            toy.after_step(now)
    assert meter.once.seconds == {"rest: start_epoch": 5, "encoder": 4, MEASURING: 0}
    assert meter.hooks.seconds == {
        "rest: start_epoch": 5, "encoder": 4, MEASURING: 0, "rest: before_step": 14, "rest: EMA": 22
    }  # fmt: skip
    assert meter.steps.seconds == {"rest: in forward": 1, "rest: after_step": 18, "rest: queues": 26}
    assert (meter.once.passes, meter.hooks.passes, meter.steps.passes) == (7, 7, 0)
    meter.restart()
    assert meter.once.passes == 7
    assert meter.hooks.passes == meter.steps.passes == 0
    assert not meter.hooks.seconds


def test_nothing_of_the_measurement_is_left_behind(clock: Time) -> None:
    toy = Toy(clock)
    before = [dict(vars(module)) for module in toy.modules()], ema.update, ema.copy_parameters, Queue.push
    meter = Meter(torch.device("cpu"), side=1)
    with suppress(KeyError), metered(toy, meter):
        assert all(name in vars(toy.backbone) and name in vars(toy.copy) for name in CALLS)
        raise KeyError
    assert ([dict(vars(module)) for module in toy.modules()], ema.update, ema.copy_parameters, Queue.push) == before
    loss = toy(torch.randn(2, 4, 1, 1))
    loss.backward()
    assert meter.steps.passes == 0


# ---- whole runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/fashion-mnist, noise in ten classes."""
    return pack_noise(tmp_path_factory.mktemp("project") / "data" / "fashion-mnist")


def config_of(method: str, variant: str = "base") -> dict[str, Any]:
    return copy.deepcopy(stage_of(PROJECT, "pretrain", f"runs/smoke/fashion-mnist/{method}/{variant}/seed0").config)


CELLS = [(method, "base") for method in METHODS if method not in ("pca", "random")] + [("wcl", "multicrop")]


@pytest.mark.parametrize(("method", "variant"), CELLS, ids=lambda part: part)
def test_every_method_spends_the_passes_that_it_declares(method: str, variant: str, data: Path) -> None:
    config = config_of(method, variant)
    cost = measure(config, data, steps=2)
    assert cost.passes == pytest.approx(config["method"]["encoder_passes"], abs=0.01)
    assert cost.start_passes == pytest.approx(config["method"]["start_passes"], abs=0.01)
    assert math.isclose(sum(cost.share(part) for part in PARTS), 1)
    assert all(cost.share(part) > 0 for part in PARTS)
    assert cost.share("encoder") > 0.1


def slowed(owner: Any, name: str, clock: Time, seconds: Callable[..., float], patch: pytest.MonkeyPatch) -> None:
    original = getattr(owner, name)

    def run(*arguments: Any, **options: Any) -> Any:
        clock.sleep(seconds(*arguments))
        return original(*arguments, **options)

    patch.setattr(owner, name, run)


def test_a_part_that_sleeps_is_booked_where_it_belongs_and_all_shares_add_up(
    data: Path, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WCL: two views, so two heads twice, a graph per view; one gradient each for the loop's check and the rate."""
    slowed(PretrainingData, "batch", clock, lambda *_: 1, monkeypatch)
    slowed(Head, "forward", clock, lambda *_: 2, monkeypatch)
    slowed(wcl.graph, "positives", clock, lambda *_: 4, monkeypatch)
    slowed(torch.optim.AdamW, "step", clock, lambda *_: 8, monkeypatch)
    slowed(Training, "_refuse_non_finite", clock, lambda *_: 16, monkeypatch)
    slowed(Training, "_hook", clock, lambda _, name, *__: 32 if name == "after_step" else 0, monkeypatch)
    slowed(ResNet, "encode_jointly", clock, lambda *_: 64, monkeypatch)
    slowed(meter_module, "_hook", clock, lambda *_: 1000, monkeypatch)  # the measurement itself: nobody's
    cost = measure(config_of("wcl"), data, steps=3)
    assert clock.now > 0
    assert cost.components == pytest.approx(
        {
            "views": 1, "encoder": 2 * 64, "heads": 2 * 2 * 2, "optimiser": 8,
            "rest: loop": 16 + 32, "rest: graph": 2 * 4, "rest: monitors": 0,
        }
    )  # fmt: skip
    assert cost.step == pytest.approx(1 + 128 + 8 + 8 + 48 + 8)
    assert cost.share("rest") == pytest.approx((48 + 8) / 201)


def test_work_that_is_rarely_done_counts_by_its_share_of_the_run(
    data: Path, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SMoG's groups are found anew every 8 steps, and its memory is filled once, however few steps are timed."""
    config = config_of("smog")
    config["method"]["values"]["reset_epochs"], config["steps"] = 1.0, 40
    assert config["pretrain"]["images"] // config["pretrain"]["batch"] == 8
    slowed(SMoG, "_cluster", clock, lambda *_: 80, monkeypatch)
    slowed(SMoG, "start_epoch", clock, lambda _, now, __: 400 if now.step == 0 else 16, monkeypatch)
    cost = measure(config, data, steps=1)
    after_warm_up = 40 - WARM_UP
    assert cost.components["rest: k-means"] == pytest.approx(4 * 80 / after_warm_up)
    assert cost.components["rest: start_epoch"] == pytest.approx(400 / 40 + 4 * 16 / after_warm_up)
    monkeypatch.setattr(bench_run, "HOOK_STEPS", 9)
    short = measure(config, data, steps=1)
    assert short.components["rest: k-means"] == pytest.approx(1 * 80 / (9 - WARM_UP)), "the first 9 steps only"


def test_the_report_names_parts_and_components_largest_first() -> None:
    parts = {"views": 0.001, "encoder": 0.09, "heads": 0.004, "optimiser": 0.002}
    cost = Cost({**parts, "rest: EMA": 0.001, "rest: k-means": 0.002}, passes=6.0, start_passes=0.0)
    config = config_of("simclr")
    lines = describe("runs/a", config, cost, 20).splitlines()
    assert lines[0] == "runs/a: 100.0 ms a step, 640 images/s (20 steps of 64 images)"
    assert lines[1] == "  encoder passes of an image: 6 declared, 6 counted"
    assert [line.split()[0] for line in lines[2:]] == [
        "views",
        "encoder,",
        "heads",
        "optimiser",
        "the",
        "k-means",
        "EMA",
    ]
    assert lines[6].split()[-3:] == ["3.00", "ms", "3.0%"]
    assert sum(float(line.split()[-1].rstrip("%")) for line in lines[2:7]) == pytest.approx(100)
    config["method"] |= {"start_passes": 2}
    assert "; before the first step 2 declared, 0 counted" in describe("runs/a", config, cost, 20)
    table = overview({"runs/a": cost, "runs/b": cost}).splitlines()
    assert "under 15%" in table[0]
    assert table[1].split() == ["ms", "a", "step", *PARTS]
    assert table[3].split() == ["runs/b", "100.0", "1.0%", "90.0%", "4.0%", "2.0%", "3.0%"]


def test_by_default_every_method_that_takes_steps_is_measured(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parents[1])
    monkeypatch.setattr(pins, "pin_torch", lambda: None)  # done when the tests began, and to be done once
    monkeypatch.setattr(bench_run, "_start_up", lambda: print("start-up"))
    monkeypatch.setattr(bench_run, "measure", lambda *_: Cost({"encoder": 1.0}, 6, 0))
    bench(PROJECT, [], steps=1)
    said = capsys.readouterr().out.splitlines()
    measured = [line.split(":")[0] for line in said if "ms a step," in line]
    assert measured == [f"runs/cpu/fashion-mnist/{method}/base/seed0" for method, variant in CELLS if variant == "base"]
    assert said[-1] == "start-up"
    bench(PROJECT, measured[:1], steps=1)
    assert "shares of a step" not in capsys.readouterr().out, "one run needs no overview"


@pytest.mark.parametrize(
    ("run", "steps", "words"),
    [
        ("runs/smoke/fashion-mnist/simclr/base/seed0", 10_000, r"seed0: has only \d+ steps, 5 of them to warm up; ask"),
        ("runs/smoke/fashion-mnist/simclr/base/seed0", 0, "ask for at least 1"),
        ("runs/cpu/fashion-mnist/random/base/seed0", 1, "has only 0 steps"),
        (
            "runs/smoke/animal-mnist/simclr/base/seed0",
            1,
            r"^data/animal-mnist: not there yet; build it with `snakemake",
        ),
        ("runs/smoke/fashion-mnist/simclrr/base/seed0", 1, "did you mean 'simclr'"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_line(
    run: str, steps: int, words: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parents[1])
    monkeypatch.setattr(pins, "pin_torch", lambda: None)  # done when the tests began, and to be done once
    with pytest.raises(UserError, match=words):
        bench(PROJECT, [run], steps)


def test_start_up_times_are_of_whole_processes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(bench_run.subprocess, "run", lambda command, check: asked.append(command[2]))
    bench_run._start_up(repeats=2)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "start-up, median of 2 processes:"
    assert len(said) == 7
    assert len(asked) == 12
    for code in set(asked):
        compile(code, "start-up", "exec")


def test_a_side_of_the_cost_of_determinism_takes_real_steps_with_the_kernels_asked_for(data: Path) -> None:
    project = Project(data.parents[1])
    checkout(PROJECT, project.root)
    assert determinism.measure(project, SIDES[ALL_PINS], "runs/smoke/fashion-mnist/simclr/base/seed0", 1) > 0
    code = (
        "import sys, torch, polygrain.cli.bench.side as side\n"
        "side.main(sys.argv[1:])\n"
        "print(torch.are_deterministic_algorithms_enabled(), torch.get_num_threads())"
    )
    for kernels, on in (("default", "False"), ("deterministic", "True")):
        command = [sys.executable, "-c", code, "runs/smoke/fashion-mnist/simclr/base/seed0", "3", kernels]
        done = subprocess.run(command, cwd=project.root, capture_output=True, text=True)
        seconds, state = done.stdout.splitlines()
        assert state.split() == [on, "1"], done.stderr
        assert len(json.loads(seconds)) == 3
        assert min(json.loads(seconds)) > 0
