"""The cost of determinism: who is compared with whom, and how."""

import subprocess
import sys
from pathlib import Path

import bench
import pandas as pd
import pytest
from bench import ALL_PINS, SIDES, compare, in_turn, line
from common import INSTRUCTION_SET, environment
from packing import pack_noise
from portability import checkout

from polygrain.config.project import Project
from polygrain.provenance.errors import UserError
from polygrain.provenance.pins import PINS

PROJECT = Project(Path(__file__).resolve().parents[2])
RUN = "runs/smoke/fashion-mnist/simclr/base/seed0"


def test_sides_differ_from_the_pinned_one_in_what_they_are_named_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "AVX512")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    pinned, free, branch, default = (environment(PROJECT, without) for without, _ in SIDES.values())
    assert pinned.items() >= PINS.items()
    assert free == {name: value for name, value in pinned.items() if name not in INSTRUCTION_SET}
    assert set(pinned) - set(branch) == {"MKL_CBWR"}
    assert default == pinned
    assert [kernels for _, kernels in SIDES.values()] == ["deterministic"] * 3 + ["default"]


def test_every_pin_of_an_instruction_set_is_known() -> None:
    words = ("AVX", "CBWR", "ISA", "CORETYPE", "CPU_CAPABILITY", "CPU_FEATURES")
    assert set(INSTRUCTION_SET) == {name for name in PINS if any(word in name for word in words)}


def test_sides_take_turns_and_a_ratio_compares_one_round() -> None:
    names = ["a", "b", "c", "d"]
    orders = [in_turn(names, number) for number in range(4)]
    assert all(sorted(order) == names for order in orders)
    assert orders[:2] == [names, ["a", "d", "c", "b"]]
    found = pd.DataFrame({name: [0.1, 0.4, 0.2] for name in SIDES} | {ALL_PINS: [0.2, 0.4, 0.2]})
    assert line("runs/a", found).split() == ["runs/a", "200", "ms", *["1.00", "(1.00", "to", "1.50)"] * 3]


def test_each_measurement_is_a_process_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def run(command: list[str], env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command[-1].split("'")[-2])
        return subprocess.CompletedProcess(command, 0, "0.1" if "ATEN_CPU_CAPABILITY" in env else "0.05", "")

    monkeypatch.setattr(bench.subprocess, "run", run)
    monkeypatch.setattr(bench, "checked", lambda *_: None)
    compare(PROJECT, [RUN], steps=3, rounds=2)
    assert sorted(asked) == ["default"] * 2 + ["deterministic"] * 6
    said = capsys.readouterr().out.splitlines()[-1].split()
    assert said[:11] == [RUN, "100", "ms", "2.00", "(2.00", "to", "2.00)", "1.00", "(1.00", "to", "1.00)"]


@pytest.mark.long
def test_a_side_takes_real_steps_with_the_kernels_asked_for(tmp_path: Path) -> None:
    checkout(PROJECT, tmp_path)
    pack_noise(tmp_path / "data" / "fashion-mnist")
    assert 0 < bench.seconds_of(Project(tmp_path), ALL_PINS, RUN, 1) < 60
    code = (
        "import sys, torch, bench\n"
        "bench.measured(sys.argv[1], 1, 'default')\n"
        "print(torch.are_deterministic_algorithms_enabled(), torch.get_num_threads())"
    )
    variables = environment(PROJECT)
    done = subprocess.run(
        [sys.executable, "-c", code, RUN], cwd=tmp_path, env=variables, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[1] == "False 1", done.stderr
    with pytest.raises(UserError, match="a measured process failed"):
        bench.seconds_of(Project(tmp_path), ALL_PINS, "runs/smoke/nothing/simclr/base/seed0", 1)
