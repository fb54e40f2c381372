"""The comparison of processors: what it says, what its children get, and, where marked, the emulated truth."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from polygrain.cli.claims import stages_of
from polygrain.cli.main import main
from polygrain.cli.portability import run as portability_run
from polygrain.cli.portability.children import children
from polygrain.cli.portability.compare import Outcome, Seen, differences, job_lines, operation_lines, read_operations
from polygrain.cli.portability.pins import lines
from polygrain.cli.portability.processor import NATIVE, Processor, command, processor, variables
from polygrain.cli.portability.run import phases, portability, words_of
from polygrain.config.project import Project
from polygrain.provenance.errors import UserError
from polygrain.provenance.pins import PINS

PROJECT = Project(Path(__file__).resolve().parents[2])
OPERATIONS = {"MKL": {"mm": "a1", "svd": "b2"}, "torch": {"sum": "c3"}}


def seen(vendor: str, **changed: str) -> Seen:
    operations = {
        library: {name: changed.get(name, digest) for name, digest in group.items()}
        for library, group in OPERATIONS.items()
    }
    return Seen(Processor(vendor, "model", ("AVX2",)), {"torch": "AVX2", "MKL": "COMPATIBLE"}, operations, 12.3)


def outcome(**files: str) -> Outcome:
    made = Outcome()
    made.add("pretrain-a", 2.0, {"checkpoint": files.get("checkpoint", "1"), "metrics": "2"})
    made.add("table", 1.0, {"table.pdf": files.get("pdf", "3")})
    return made


def test_identical_bytes_are_called_so_on_every_processor() -> None:
    all_seen = {NATIVE: seen("A"), "Haswell": seen("B"), "EPYC": seen("C")}
    outcomes = {name: outcome() for name in all_seen}
    assert differences(all_seen, outcomes) == []
    lines = operation_lines(all_seen)
    assert lines[2] == "  Haswell   B, model, AVX2; torch AVX2, MKL COMPATIBLE; 12 s"
    assert [line.split() for line in lines[-3:-1]] == [
        ["MKL", "2", "identical", "identical"],
        ["torch", "1", "identical", "identical"],
    ]
    table = [line.split() for line in job_lines(["pretrain-a", "table"], outcomes)]
    assert table[1] == ["pretrain-a", "2", "2", "s", "identical", "2", "s", "identical", "2", "s"]
    assert table[-1] == ["all", "3", "3", "s", "3", "s", "3", "s"]


def test_a_difference_names_the_operation_the_file_and_the_processor() -> None:
    all_seen = {NATIVE: seen("A"), "Haswell": seen("B", svd="other"), "EPYC": seen("C")}
    outcomes = {NATIVE: outcome(), "Haswell": outcome(), "EPYC": outcome(checkpoint="other", pdf="another")}
    assert differences(all_seen, outcomes) == [
        "different on Haswell: MKL, svd",
        "different on EPYC: checkpoint",
        "different on EPYC: table.pdf",
    ]
    assert "1 differ" in operation_lines(all_seen)[-3]
    assert [line.count("1 differ") for line in job_lines(["pretrain-a", "table"], outcomes)[1:3]] == [1, 1]
    del all_seen["EPYC"].operations["torch"]["sum"]
    assert "different on EPYC: torch, sum" in differences(all_seen, {}), (
        "an operation that is missing is none that agrees"
    )


def test_a_difference_is_exit_1_and_leaves_what_was_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portability_run, "emulator", lambda: "qemu")
    monkeypatch.setattr(portability_run.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    monkeypatch.setattr(portability_run, "look", lambda *_: {NATIVE: seen("A"), "EPYC": seen("B", mm="other")})
    assert portability(PROJECT, [], ["EPYC"], jobs=False) == 1
    assert f"different on EPYC: MKL, mm\neverything that was made lies in {tmp_path}\n" in capsys.readouterr().out
    assert tmp_path.is_dir()
    monkeypatch.setattr(portability_run, "look", lambda *_: {NATIVE: seen("A"), "EPYC": seen("B")})
    assert portability(PROJECT, [], ["EPYC"], jobs=False) == 0
    assert capsys.readouterr().out.endswith("the same bytes on native, EPYC\n")
    assert not tmp_path.exists()


def test_without_the_emulator_one_line_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT.root)
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["portability"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "polygrain portability: qemu-x86_64 is not installed; on Debian and Ubuntu: apt-get install qemu-user\n"
    )


def test_children_run_the_interpreter_itself_with_every_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portability_run.shutil, "which", lambda name: f"/bin/{name}")
    emulated = command("EPYC", "module", "word")
    assert emulated[:3] == ["/bin/qemu-x86_64", "-cpu", "EPYC"]
    assert emulated[3:] == command(NATIVE, "module", "word")
    assert not Path(emulated[3]).is_symlink(), "a launcher starts another process, which no emulator follows"
    monkeypatch.setenv("MKL_CBWR", "AUTO")
    code = "import os, polygrain, torch; print({n: os.environ[n] for n in sorted(os.environ)}, polygrain.__file__)"
    done = subprocess.run([emulated[3], "-c", code], env=variables(PROJECT.source), capture_output=True, text=True)
    assert all(f"'{name}': {value!r}" in done.stdout for name, value in PINS.items()), done.stderr
    assert str(PROJECT.source) in done.stdout


def test_a_job_on_another_processor_than_expected_does_not_start(tmp_path: Path) -> None:
    here = processor()
    assert here.vendor in ("AuthenticAMD", "GenuineIntel", "HygonGenuine", "CentaurHauls")
    assert {"AVX2", "FMA"} <= set(here.features)
    for expected, environment, words in (
        ("GenuineIntel, 80386", variables(PROJECT.source), "UserError: expected GenuineIntel, 80386 with all pins"),
        (str(here), {**variables(PROJECT.source), "MKL_CBWR": "AUTO"}, "pinned: False"),
    ):
        job = command(NATIVE, "polygrain.cli.portability.child", expected, "ledger", "mgc")
        with children() as several, pytest.raises(UserError, match=words):
            several.run(job, PROJECT.root, environment, tmp_path / "log")
    with children() as several:
        job = command(NATIVE, "polygrain.cli.portability.child", str(here), "ledger", "mgc")
        several.run(job, PROJECT.root, variables(PROJECT.source), tmp_path / "log")
    assert "| " in (tmp_path / "log").read_text()


def test_the_first_failure_ends_the_other_children(tmp_path: Path) -> None:
    def start(name: str, code: str) -> None:
        several.run([sys.executable, "-c", code], tmp_path, dict(os.environ), tmp_path / name)

    wait = "import time; time.sleep(60); open('survived', 'w')"
    fail = "import os, signal; print('first\\nlast words', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
    with pytest.raises(UserError, match="ended by SIGSEGV: last words"), children() as several:
        for _ in several.each({"b": lambda: start("b", fail), "a": lambda: start("a", wait)}):
            pass
    assert not (tmp_path / "survived").exists()
    with pytest.raises(UserError, match="stopped"):
        start("c", "")


def test_data_is_packed_first_natively_and_the_table_comes_last() -> None:
    stages = stages_of(PROJECT, ["reports/smoke-seeds1/table1.pdf"])
    order = phases(stages, [NATIVE, "EPYC"])
    assert [{(name, stage.verb) for name, chain in phase for stage in chain} for phase in order] == [
        {(NATIVE, "prepare")},
        {("EPYC", "prepare")},
        {(name, verb) for name in (NATIVE, "EPYC") for verb in ("pretrain", "features", "evaluate")},
        {(NATIVE, "table1"), ("EPYC", "table1")},
    ]
    assert all([stage.verb for stage in chain] == ["pretrain", "features", "evaluate"] for _, chain in order[2])
    assert words_of(stages[0]) == ("prepare", "--workflow", "data/fashion-mnist")
    assert words_of(stages[-1]) == ("table", "--workflow", "reports/smoke-seeds1/table1.pdf")
    assert sum(len(chain) for phase in order for _, chain in phase) == 2 * len(stages)


def test_what_a_child_printed_is_read_and_a_silent_one_refused(tmp_path: Path) -> None:
    said, mkl = tmp_path / "said", tmp_path / "mkl"
    said.write_text(
        "qemu-x86_64: warning\n"
        '{"vendor": "V", "model": "M", "features": ["AVX2"], "torch": "AVX2", "numpy": "X86_V3"}\n'
        '["MKL", "mm", "a1"]\n["torch", "sum", "c3"]\n'
    )
    with pytest.raises(UserError, match="MKL reported none of its calls"):
        read_operations(said, mkl, 1.0)
    mkl.write_text("MKL_VERBOSE oneMKL 2024\nMKL_VERBOSE SGEMM(N,N) 1us CNR:COMPATIBLE Dyn:0\n")
    found = read_operations(said, mkl, 1.0)
    assert found.processor == Processor("V", "M", ("AVX2",))
    assert found.chosen == {"torch": "AVX2", "numpy": "X86_V3", "MKL": "COMPATIBLE"}
    assert found.operations == {"MKL": {"mm": "a1"}, "torch": {"sum": "c3"}}


def test_what_a_pin_is_for_is_counted_by_library() -> None:
    sides = {"ONE": seen("A"), "OTHER=x": seen("A", mm="other", sum="other")}
    head, _, _, _, one, other = lines(seen("A"), sides)
    assert head == "A, model, AVX2"
    assert one == "| ONE | 0 | none | torch AVX2, MKL COMPATIBLE |"
    assert other == "| OTHER=x in place of its value | 2 | MKL: 1; torch: 1 | torch AVX2, MKL COMPATIBLE |"
    del sides["ONE"].operations["torch"]["sum"]
    assert "| 1 | torch: 1 |" in lines(seen("A"), sides)[4], "an operation that is missing is none that agrees"


@pytest.mark.workflow
def test_operations_of_every_library_and_a_typeset_table_are_the_same_on_other_processors(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT.root)
    status = main(["portability", "reports/ledger.pdf"])
    said = capsys.readouterr().out
    assert status == 0, said
    assert "GenuineIntel, Intel Core Processor (Haswell), AVX2 FMA; torch AVX2, numpy X86_V3, MKL COMPATIBLE" in said
    assert "AuthenticAMD, AMD EPYC Processor, AVX2 FMA; torch AVX2, numpy X86_V3, MKL COMPATIBLE" in said
    assert said.endswith("the same bytes on native, Haswell, EPYC\n")
