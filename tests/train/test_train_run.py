import copy
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packing import pack
from safetensors import safe_open

from polygrain.backbones.load import load_backbone
from polygrain.config.project import Project
from polygrain.config.runs import Run
from polygrain.config.stages import stage_of
from polygrain.data.packed import open_packed
from polygrain.methods.load import load_method
from polygrain.nn.clock import Clock
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import sha256_file
from polygrain.train.run import Training, pretrain
from polygrain.train.state import Identity, State, save_state

PROJECT = Project(Path(__file__).resolve().parents[2])
IDENTITY = Identity("config", "code", "environment", "data")
METHODS = sorted(path.stem for path in (PROJECT.params / "method").glob("*.yaml"))
# beside every method, the variants whose state holds more: another queue, dropped paths, groups that are found anew
STATES = [*((method, "base") for method in METHODS), ("mncl", "released"), ("mugs", "released"), ("smog", "heads-2")]


def config_of(method: str, variant: str = "base") -> dict[str, Any]:
    run = Run("smoke", "fashion-mnist", method, variant, 0)
    config = copy.deepcopy(stage_of(PROJECT, "pretrain", run.path).config)
    small = {"images": 320, "batch": 32}
    config["method"]["values"] |= {key: value for key, value in small.items() if key in config["method"]["values"]}
    config["pretrain"] |= small
    return {**config, "steps": 12 if config["steps"] else 0}


def run(config: dict[str, Any], data: Path, folder: Path, **options: Any) -> dict[str, str]:
    pretrain(config, data=data, run=folder, timing=folder / "timing.jsonl", identity=IDENTITY, **options)
    return {name: sha256_file(folder / name) for name in ("checkpoint.safetensors", "metrics.jsonl")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small packed data set of moving bars, ten classes of 60 images."""
    return pack_bars(tmp_path_factory.mktemp("data"))


def pack_bars(folder: Path, labels: np.ndarray | None = None) -> Path:
    generator = np.random.default_rng(0)
    truth = np.repeat(np.arange(10), 60)
    images = generator.integers(0, 60, (600, 1, 28, 28)).astype(np.uint8)
    for image, label in zip(images, truth, strict=True):
        image[0, 2 * label : 2 * label + 5] += 150
    order = generator.permutation(600)
    splits = {"train": order[:420], "validation": order[420:500], "test": order[500:]}
    return pack(folder, images, truth if labels is None else labels, splits)


@pytest.mark.parametrize(("method", "variant"), STATES, ids=lambda part: part)
def test_a_run_is_the_same_bits_twice_and_in_pieces(method, variant, data, tmp_path, monkeypatch):
    """The second time new memory holds NaN: a step that read what it did not write would not come out the same."""
    config = config_of(method, variant)
    assert torch.are_deterministic_algorithms_enabled()  # else memory is never filled
    straight = run(config, data, tmp_path / "straight")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    assert torch.empty(3).isnan().all()
    folder = tmp_path / "pieces"  # the second time, each step once more
    (folder / "scratch").mkdir(parents=True)
    for stop in (1, 4, 9) if config["steps"] else ():
        training = Training(config, data, folder / "scratch/state.pt", IDENTITY, resume=False)
        assert training.step == {1: 0, 4: 1, 9: 4}[stop]
        while training.step < stop:
            training.take_step()
        save_state(training.state_path, training.state())
    assert run(config, data, folder) == straight
    assert not (folder / "scratch/state.pt").exists()


def test_a_run_killed_at_any_moment_goes_on_to_the_same_bits(data, tmp_path):
    config = config_of("simclr")
    config["steps"], config["pretrain"]["state_every"] = 60, 3
    straight = run(config, data, tmp_path / "straight")
    folder = tmp_path / "killed"
    code = (
        "import json, sys\nfrom pathlib import Path\nfrom polygrain.provenance.pins import pin_torch\npin_torch()\n"
        "from polygrain.train.run import pretrain\nfrom polygrain.train.state import Identity\n"
        "folder = Path(sys.argv[3])\n"
        "pretrain(json.loads(sys.argv[1]), data=Path(sys.argv[2]), run=folder, timing=folder / 'timing.jsonl',\n"
        "         identity=Identity('config', 'code', 'environment', 'data'))\n"
    )
    command = [sys.executable, "-c", code, json.dumps(config), str(data), str(folder)]
    for delay in (0.05, 0.4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        state, deadline = folder / "scratch/state.pt", time.monotonic() + 60
        before = state.stat().st_mtime_ns if state.exists() else 0
        while not (state.exists() and state.stat().st_mtime_ns != before) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (folder / "checkpoint.safetensors").exists()
    assert run(config, data, folder) == straight


@pytest.mark.parametrize("method", METHODS)
def test_labels_do_not_touch_what_claims_to_learn_without_them(method, data, tmp_path):
    labels = np.random.default_rng(1).permutation(np.load(data / "labels.npy"))
    other = pack_bars(tmp_path / "relabelled", labels)
    config = config_of(method)
    config["steps"] = min(4, config["steps"])
    backbone = load_backbone(**config["backbone"], channels=1)
    uses_labels = load_method(config["method"]["name"], backbone, config["method"]["values"]).uses_labels
    same = sha(run(config, data, tmp_path / "a")) == sha(run(config, other, tmp_path / "b"))
    assert same is not bool(uses_labels)


def sha(files: dict[str, str]) -> str:
    return files["checkpoint.safetensors"]


def test_the_loss_falls_and_the_metrics_say_where(data, tmp_path):
    config = config_of("simclr")
    config["steps"] = 40
    run(config, data, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(0, 40, config["pretrain"]["log_every"]), 39]
    assert math.log(63) - 0.5 < lines[0]["loss"] < math.log(63) + 1.0
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3
    assert all("seconds" not in key and "time" not in key for line in lines for key in line)


def test_the_checkpoint_holds_the_whole_method_under_one_metadata_key(data, tmp_path):
    config = config_of("simclr")
    run(config, data, tmp_path / "run")
    with safe_open(tmp_path / "run/checkpoint.safetensors", "pt") as file:
        metadata = file.metadata()
        names = set(file.keys())
    assert list(metadata) == ["polygrain"]
    method = load_method("simclr", load_backbone(**config["backbone"], channels=1), config["method"]["values"])
    assert names == set(method.state_dict())


def test_a_loss_that_is_not_finite_stops_the_run_and_publishes_nothing(data, tmp_path):
    config = config_of("simclr")
    config["optimizer"] = {
        **config["optimizer"],
        "schedule": {**config["optimizer"]["schedule"], "base": 1e30, "warmup": 0.0},
    }
    with pytest.raises(UserError, match=r"loss 'instance' is (nan|inf) at step \d+ of 12; nothing was published"):
        run(config, data, tmp_path / "run")
    assert not (tmp_path / "run/checkpoint.safetensors").exists()
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_corrupted_data_is_refused_before_the_first_step(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    with (tmp_path / "data/images.npy").open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"\x00\x01\x02")
    with pytest.raises(UserError, match=r"images\.npy"):
        run(config_of("simclr"), tmp_path / "data", tmp_path / "run")


def test_a_subset_larger_than_the_split_is_refused(data, tmp_path):
    config = config_of("simclr")
    config["pretrain"]["images"] = 100_000
    with pytest.raises(UserError, match=r"100000|100,000"):
        run(config, data, tmp_path / "run")


def test_a_full_disk_at_checkpoint_time_publishes_nothing_and_the_next_try_ends_well(data, tmp_path, monkeypatch):
    config = config_of("simclr")
    straight = run(config, data, tmp_path / "straight")
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if "checkpoint" in path.name:
            write(path, content[:100])
            raise OSError(28, "No space left on device")
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match="the disk is full"):
            run(config, data, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["scratch"]
    assert run(config, data, tmp_path / "run") == straight


def test_every_image_is_seen_once_an_epoch_and_the_clock_says_when(data):
    training = Training(config_of("simclr"), data, Path("unused"), IDENTITY, resume=False)
    per_epoch = training.data.steps_per_epoch
    assert open_packed(data).subset("train", 320).shape == (320,)
    seen = []
    for step in range(2 * per_epoch):
        clock = Clock(0, step, 100, per_epoch)
        seen.append(training.data.batch(clock, ("global",)).indices)
    first, second = torch.cat(seen[:per_epoch]), torch.cat(seen[per_epoch:])
    assert len(set(first.tolist())) == len(set(second.tolist())) == 320
    assert not torch.equal(first, second)


def decays(config: dict[str, Any], data: Path, resumed: State | None = None) -> list[list[float]]:
    """Weight decay by group, as each step of a run meets it."""
    training = Training(config, data, Path("unused"), IDENTITY, resume=False)
    optimizer, used = training.optimizer, list[list[float]]()
    assert optimizer is not None
    optimizer.register_step_pre_hook(
        lambda chosen, *_: used.append([group["weight_decay"] for group in chosen.param_groups])
    )
    if resumed is not None:
        training.step = resumed.step
        optimizer.load_state_dict(resumed.optimizer)
    while training.step < config["steps"]:
        training.take_step()
    return used


def test_weight_decay_moves_by_half_a_cosine_in_decayed_groups_alone(data):
    """Mugs section 6.2: from 0.04 at step 0 towards 0.4 past the last one; half way it is the mean."""
    config = config_of("simclr")
    config["optimizer"]["values"]["weight_decay"] = 0.04
    assert config["optimizer"]["final_weight_decay"] is None
    assert decays(config, data) == [[0.04, 0.0]] * 12
    config["optimizer"]["final_weight_decay"] = 0.4
    used = decays(config, data)
    expected = [0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)]
    assert [first for first, _ in used] == pytest.approx(expected)
    assert (used[0][0], used[6][0]) == pytest.approx((0.04, 0.22))
    assert {second for _, second in used} == {0.0}
    training = Training(config, data, Path("unused"), IDENTITY, resume=False)
    for _ in range(5):
        training.take_step()
    assert decays(config, data, training.state()) == used[5:], "a resumed run goes on where the schedule stands"


def logged(config: dict[str, Any], data: Path, **changes: Any) -> list[dict[str, Any]]:
    """Every step of a run of 12 steps, 10 an epoch, and the norm of the gradient that the optimiser got."""
    changed = copy.deepcopy(config)
    changed["pretrain"]["log_every"] = 1
    for key, value in changes.items():
        changed["optimizer"][key] |= value
    training, clipped = Training(changed, data, Path("unused"), IDENTITY, resume=False), []
    while training.step < 12:
        training.take_step()
        gradients = [p.grad.flatten() for p in training.method.parameters() if p.grad is not None]
        clipped.append(torch.cat(gradients).norm().item())
    lines = [json.loads(line) for line in training.metrics]
    return [{**line, "clipped": norm} for line, norm in zip(lines, clipped, strict=True)]


def test_clipping_changes_its_maximum_with_the_epoch(data):
    config = config_of("simclr")
    early = logged(config, data, clip={"rule": "global", "maximum": 0.02})
    found = logged(config, data, clip={"rule": "global", "maximum": 0.02, "later": {"epoch": 1, "maximum": 0.001}})
    assert [line["epoch"] for line in found] == [0] * 10 + [1] * 2
    assert min(line["gradient_norm"] for line in found) > 0.02
    assert [line["clipped"] for line in found] == pytest.approx([0.02] * 10 + [0.001] * 2, rel=1e-3)
    assert found[:10] == early[:10]


def test_a_schedule_may_count_the_parts_of_a_batch(data):
    """SMoG section 4.8: the rate moves with every part; an update has that of its last one."""
    config = config_of("simclr")
    schedule = {"name": "cosine_closed_warmup", "base": 0.01, "final": 0.001, "start": 0.0, "warmup": 0.25}
    fine = [0.01 * t / 5 for t in range(6)]
    fine += [0.001 + 0.009 * (1 + math.cos(math.pi * t / 18)) / 2 for t in range(18)]
    found = [line["learning_rate"] for line in logged(config, data, schedule={**schedule, "parts": 2})]
    assert found == pytest.approx(fine[1::2])
    assert found != pytest.approx([line["learning_rate"] for line in logged(config, data, schedule=schedule)])


def test_a_run_whose_weight_decay_moves_is_the_same_bits_in_pieces_and_other_bits_than_a_constant_one(data, tmp_path):
    config = config_of("simclr")
    constant = run(config, data, tmp_path / "constant")
    config["optimizer"]["final_weight_decay"] = 0.5
    straight = run(config, data, tmp_path / "straight")
    assert sha(straight) != sha(constant)
    (tmp_path / "pieces/scratch").mkdir(parents=True)
    training = Training(config, data, tmp_path / "pieces/scratch/state.pt", IDENTITY, resume=False)
    for _ in range(7):
        training.take_step()
    save_state(training.state_path, training.state())
    assert run(config, data, tmp_path / "pieces") == straight


@pytest.mark.gpu
def test_on_a_gpu_a_run_is_the_same_bits_twice_and_sees_what_the_cpu_sees(data, tmp_path):
    config = config_of("simclr")
    on_cpu = Training(config, data, Path("unused"), IDENTITY, resume=False)
    config["pretrain"]["device"] = "cuda"
    on_gpu = Training(config, data, Path("unused"), IDENTITY, resume=False)
    clock = Clock(0, 3, 12, on_cpu.data.steps_per_epoch)
    for cpu, gpu in zip(
        on_cpu.data.batch(clock, ("global",)).views, on_gpu.data.batch(clock, ("global",)).views, strict=True
    ):
        torch.testing.assert_close(gpu.cpu(), cpu, rtol=0, atol=1e-5)
    assert run(config, data, tmp_path / "one") == run(config, data, tmp_path / "two")
