"""The cost of determinism: who is compared with whom, and how."""

import json
import subprocess
from pathlib import Path

import pytest

from polygrain.cli.bench import determinism as module
from polygrain.cli.bench.determinism import ALL_PINS, INSTRUCTION_SET, SIDES, determinism, in_turn, line
from polygrain.config.project import Project
from polygrain.provenance.errors import UserError
from polygrain.provenance.pins import PINS

PROJECT = Project(Path(__file__).resolve().parents[2])
RUN = "runs/cpu/fashion-mnist/simclr/base/seed0"


def test_sides_differ_from_the_pinned_one_in_what_they_are_named_after_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MKL_CBWR", "AVX512")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    pinned = SIDES[ALL_PINS].variables("src")
    assert pinned.items() >= PINS.items()
    free = SIDES["free instruction set"].variables("src")
    assert set(pinned) - set(free) == set(INSTRUCTION_SET)
    assert free == {name: value for name, value in pinned.items() if name not in INSTRUCTION_SET}
    assert set(pinned) - set(SIDES["free MKL branch"].variables("src")) == {"MKL_CBWR"}
    assert SIDES["default kernels"].variables("src") == pinned
    assert [name for name, side in SIDES.items() if side.kernels == "default"] == ["default kernels"]


def test_every_pin_of_an_instruction_set_is_known() -> None:
    words = ("AVX", "CBWR", "ISA", "CORETYPE", "CPU_CAPABILITY", "CPU_FEATURES")
    assert set(INSTRUCTION_SET) == {name for name in PINS if any(word in name for word in words)}


def test_sides_take_turns() -> None:
    names = ["a", "b", "c", "d"]
    orders = [in_turn(names, number) for number in range(4)]
    assert all(sorted(order) == names for order in orders)
    assert {order[0] for order in orders} == {"a", "c"}
    assert orders[0] == names
    assert orders[1] == ["a", "d", "c", "b"]


def test_a_ratio_compares_one_round() -> None:
    found = {ALL_PINS: [0.2, 0.4, 0.2], "default kernels": [0.1, 0.4, 0.2]}
    assert line("runs/a", found).split() == ["runs/a", "200", "ms", "1.00", "(1.00", "to", "1.50)"]


def test_each_measurement_is_a_process_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, str]] = []

    def run(command: list[str], env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append((command[-1], env.get("MKL_CBWR", ""), env.get("ATEN_CPU_CAPABILITY", "")))
        seconds = 0.1 if "ATEN_CPU_CAPABILITY" in env else 0.05
        return subprocess.CompletedProcess(command, 0, json.dumps([seconds, seconds, 9.0]), "")

    monkeypatch.setattr(module.subprocess, "run", run)
    monkeypatch.setattr(module, "check_run", lambda *_: None)
    determinism(PROJECT, [RUN], steps=3, rounds=2)
    assert len(asked) == 2 * len(SIDES)
    assert sorted(set(asked)) == sorted(
        [
            ("deterministic", PINS["MKL_CBWR"], "avx2"),
            ("deterministic", "", ""),
            ("deterministic", "", "avx2"),
            ("default", PINS["MKL_CBWR"], "avx2"),
        ]
    )
    said = capsys.readouterr().out.splitlines()[-1].split()
    assert said[:3] == [RUN, "100", "ms"]
    assert said[3:7] == ["2.00", "(2.00", "to", "2.00)"]
    assert said[7:11] == ["1.00", "(1.00", "to", "1.00)"]


def test_a_process_that_fails_is_one_line() -> None:
    with pytest.raises(UserError, match="a measured process failed"):
        module.measure(PROJECT, SIDES[ALL_PINS], "runs/smoke/nothing/simclr/base/seed0", 1)


@pytest.mark.parametrize(("rounds", "words"), [(1, "ask for at least 2"), (2, "cpu/nothing")])
def test_a_request_that_cannot_be_met_is_one_line(rounds: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        determinism(PROJECT, ["runs/cpu/nothing/simclr/base/seed0"], steps=1, rounds=rounds)
