"""The comparison of processors: what it says, what its children get, and, where marked, the emulated truth."""

import json
import os
import subprocess
import sys
import threading
from argparse import Namespace
from functools import partial
from pathlib import Path

import portability
import pytest
from common import environment
from operations import digest, expressions
from portability import NATIVE, Findings, command, main, pin_lines, run, table

from polygrain.attest.children import side_by_side
from polygrain.config.project import Project
from polygrain.provenance.errors import UserError
from polygrain.provenance.pins import PINS

PROJECT = Project(Path(__file__).resolve().parents[2])


def seen(**changed: str) -> Findings:
    hashes = {"MKL": {"mm": "a1", "svd": "b2"}, "table": {"pdf": "c3"}}
    changed_hashes = {
        group: {**names, **{n: changed[n] for n in names if n in changed}} for group, names in hashes.items()
    }
    return Findings("AVX2 FMA3", "torch AVX2, MKL COMPATIBLE", changed_hashes, {"MKL": 2.0, "table": 1.0})


def test_identical_bytes_are_called_so_and_a_difference_names_operation_file_and_processor() -> None:
    found = {NATIVE: seen(), "Haswell": seen(), "EPYC": seen()}
    said = [line.split() for line in table(["MKL", "table"], found).splitlines()]
    assert said[0] == ["number", "native,", "s", "Haswell", "Haswell,", "s", "EPYC", "EPYC,", "s"]
    assert said[1] == ["MKL", "2", "2", "identical", "2", "identical", "2"]
    found = {NATIVE: seen(), "Haswell": seen(svd="other"), "EPYC": seen(pdf="another")}
    assert [line.count("1 differ") for line in table(["MKL", "table"], found).splitlines()] == [0, 1, 1]
    del found["EPYC"].hashes["MKL"]["mm"]
    assert found[NATIVE].unequal(found["EPYC"], "MKL") == ["mm"], "an operation that is missing is none that agrees"


def test_a_difference_is_exit_1_and_leaves_what_was_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Namespace(targets=[], cpu=["EPYC"], operations=True, pins=False)
    monkeypatch.setattr(portability.shutil, "which", lambda _: "qemu")
    monkeypatch.setattr(
        portability.tempfile, "mkdtemp", lambda prefix: (tmp_path / "made").mkdir() or tmp_path / "made"
    )
    other = {"mm": "other"}
    monkeypatch.setattr(portability, "look", lambda _, cpu, *__: seen(**other) if cpu != NATIVE else seen())
    assert main(PROJECT, options) == 1
    assert capsys.readouterr().out.endswith(
        f"different on EPYC: MKL, mm\neverything that was made lies in {tmp_path / 'made'}\n"
    )
    assert (tmp_path / "made").is_dir()
    portability.shutil.rmtree(tmp_path / "made")
    other.clear()
    assert main(PROJECT, options) == 0
    assert capsys.readouterr().out.endswith("the same bytes on native, EPYC\n")
    assert not (tmp_path / "made").exists()


def test_without_the_emulator_one_line_says_what_to_install() -> None:
    script = PROJECT.root / "workflow/scripts/portability.py"
    variables = {**os.environ, "PATH": "/nowhere", "PYTHONPATH": str(PROJECT.source)}
    done = subprocess.run([sys.executable, script], cwd=PROJECT.root, env=variables, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "portability.py: qemu-x86_64 is not installed; on Debian and Ubuntu: apt-get install qemu-user\n"
    )


def test_children_run_the_interpreter_itself_with_every_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated = command("EPYC", "-m", "module")
    assert emulated == ["qemu-x86_64", "-cpu", "EPYC", *command(NATIVE, "-m", "module")]
    assert not Path(emulated[3]).is_symlink(), "a launcher starts another process, which no emulator follows"
    monkeypatch.setenv("MKL_CBWR", "AUTO")
    code = "import os, polygrain, torch; print({n: os.environ[n] for n in sorted(os.environ)}, polygrain.__file__)"
    done = subprocess.run([emulated[3], "-c", code], env=environment(PROJECT), capture_output=True, text=True)
    assert all(f"'{name}': {value!r}" in done.stdout for name, value in PINS.items()), done.stderr
    assert str(PROJECT.source) in done.stdout


def test_a_job_without_its_emulator_or_its_pins_does_not_start(tmp_path: Path) -> None:
    script, job = str(portability.SCRIPTS / "portability.py"), ["ledger", "mgc"]
    for cpu, pins, words in (
        ("EPYC", environment(PROJECT), "expected EPYC with all pins; emulated: False"),
        (NATIVE, environment(PROJECT, ["MKL_CBWR"]), "pinned: False"),
    ):
        arguments = [*command(NATIVE, script), "--child", cpu, *job]
        with pytest.raises(UserError, match=words):
            run(arguments, PROJECT.root, pins, tmp_path / "log", threading.Event())
    arguments = [*command(NATIVE, script), "--child", NATIVE, *job]
    run(arguments, PROJECT.root, environment(PROJECT), tmp_path / "log", threading.Event())
    assert "| " in (tmp_path / "log").read_text()


def test_the_first_failure_ends_the_other_children(tmp_path: Path) -> None:
    wait = "import time; time.sleep(60); open('survived', 'w')"
    fail = "import os, signal; print('first\\nlast words', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"

    variables, stop = dict(os.environ), threading.Event()
    tasks = [
        partial(run, [sys.executable, "-c", code], tmp_path, variables, tmp_path / name, stop)
        for name, code in (("a", wait), ("b", fail))
    ]
    with pytest.raises(UserError, match="ended by SIGSEGV: last words"):
        side_by_side(tasks, 2, stop.set)
    assert not (tmp_path / "survived").exists()


def test_what_a_child_printed_is_read_and_a_silent_one_refused(tmp_path: Path) -> None:
    said, mkl = tmp_path / "said", tmp_path / "mkl"
    operations = [["MKL", "mm", "a1", 0.5], ["torch", "sum", "c3", 0.25], ["torch", "mean", "d4", 0.25]]
    lines = [{"torch": "AVX2", "numpy": "X86_V3"}, *operations]
    said.write_text("qemu-x86_64: warning\n" + "".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match="MKL reported none of its calls"):
        portability.read_operations("AVX2", said, mkl)
    mkl.write_text("MKL_VERBOSE oneMKL 2024\nMKL_VERBOSE SGEMM(N,N) 1us CNR:COMPATIBLE Dyn:0\n")
    found = portability.read_operations("AVX2", said, mkl)
    assert (found.features, found.choices) == ("AVX2", "torch AVX2, numpy X86_V3, MKL COMPATIBLE")
    assert found.hashes == {"MKL": {"mm": "a1"}, "torch": {"sum": "c3", "mean": "d4"}}
    assert found.seconds == {"MKL": 0.5, "torch": 0.5}


def test_what_a_pin_is_for_is_counted_by_library() -> None:
    head, _, _, _, one, other = pin_lines(seen(), {"ONE": seen(), "OTHER=x": seen(mm="other", pdf="other")})
    assert head == "AVX2 FMA3"
    assert one == "| ONE | 0 | none | torch AVX2, MKL COMPATIBLE |"
    assert other == "| OTHER=x in place of its value | 2 | MKL: 1; table: 1 | torch AVX2, MKL COMPATIBLE |"


def test_every_library_has_operations_and_a_digest_sees_each_part() -> None:
    found = expressions()
    assert [len(operations) for operations in found.values()] == [25, 25, 14, 20, 35, 13, 10]
    assert all(len(set(operations)) == len(operations) for operations in found.values())
    import torch

    a, b = torch.ones(2), torch.zeros(2)
    assert len({digest(a), digest(b), digest([a, b]), digest([b, a]), digest(b"a")}) == 5
    assert digest(a) == digest(a.numpy()) == digest(torch.ones(2))


@pytest.mark.workflow
@pytest.mark.parametrize("cpu", [[], pytest.param(["Haswell", "EPYC"], marks=pytest.mark.long)], ids=["native", "all"])
def test_operations_of_every_library_and_a_typeset_table_are_the_same_on_other_processors(
    cpu: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT.root)
    status = main(PROJECT, Namespace(targets=["reports/ledger.pdf"], cpu=cpu, operations=not cpu, pins=False))
    said = capsys.readouterr().out
    assert status == 0, said
    assert f"  {'native':<10}" in said
    for name in cpu:
        assert f"  {name:<10}AVX2 FMA3; torch AVX2, numpy X86_V3, MKL COMPATIBLE" in said
    assert said.endswith(f"the same bytes on {', '.join(['native', *cpu])}\n")
