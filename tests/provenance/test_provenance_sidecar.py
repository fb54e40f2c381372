"""Records: complete after success, absent after failure, never about other bytes."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from provenance_toy import call

from polygrain.provenance import sidecar
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import canonical_json
from polygrain.provenance.machine import INSTRUCTIONS
from polygrain.provenance.pins import PINS
from polygrain.provenance.sidecar import commit_date, git_state, recorded
from polygrain.provenance.stage import Stage

MADE, READ = (Path("data", name, "manifest.json") for name in ("made", "read"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    stage = _stage()
    decisive = {stage.config_path: "a: 1\n", stage.code_path: "{}", stage.environment_path: "[]"}
    for path, text in (decisive | {Path("in.bin"): "in"}).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def _stage(*outputs: Path, datasets: Sequence[str] = ()) -> Stage:
    return Stage("table", "x", Path(), {}, (), (Path("in.bin"),), outputs, tuple(datasets))


def _read(stage: Stage) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(stage.sidecar.read_text(encoding="utf-8"))
    return record


def _job(seconds: float = 0.0) -> dict[str, Any]:
    stage = _stage(Path("out.bin"))
    with recorded(stage):
        assert not stage.sidecar.exists()
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
        Path("out.bin").write_bytes(b"out")
    return _read(stage)


def _entry(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def test_holds_what_was_done(folder: Path) -> None:
    record = _job(seconds=0.2)
    assert record["stage"] == "x"
    assert record["command"] == sys.argv
    assert record["inputs"] == {"in.bin": _entry(b"in"), **record["code"], **record["environment"]}
    assert record["outputs"] == {"out.bin": _entry(b"out")}
    assert record["config"] == {"config/x/x.yaml": _entry(b"a: 1\n")}
    assert record["code"] == {"code/x/x.json": _entry(b"{}")}
    assert record["environment"] == {"environment/x/x.json": _entry(b"[]")}
    assert record["git"] is None
    assert 0.2 <= record["cpu_seconds"] < 2
    assert 0.19 <= record["wall_seconds"] < 20
    assert 10 < record["peak_memory_mib"] < 100_000
    assert record["started"] < record["finished"]
    assert record["started"].endswith("+00:00")
    machine = record["machine"]
    assert machine["python"] == ".".join(map(str, sys.version_info[:3]))
    assert machine["threads"] == 1
    assert machine["pins"] == PINS
    assert machine["processor"]
    assert machine["packages"]["numpy"]
    assert record["format"] == 2
    assert record["data"] is None


def test_the_command_and_threads_come_from_this_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["polygrain", "train", "--seed", "3"])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    record = _job()
    assert record["command"] == ["polygrain", "train", "--seed", "3"]
    assert record["machine"]["threads"] == 7


def test_a_failure_leaves_no_record_not_even_the_old_one(folder: Path) -> None:
    _job()
    with pytest.raises(RuntimeError), recorded(_stage()):
        raise RuntimeError
    assert list(Path("records").iterdir()) == []


def test_inputs_are_described_as_they_were_at_the_start(folder: Path) -> None:
    with recorded(_stage()):
        Path("in.bin").write_bytes(b"changed by somebody")
    assert _read(_stage())["inputs"]["in.bin"] == _entry(b"in")


def test_missing_files_are_named_and_leave_no_record(folder: Path) -> None:
    stage = _stage(Path("nothing.bin"))
    with pytest.raises(UserError, match=r"nothing\.bin: not found"), recorded(stage):
        pass
    assert not stage.sidecar.exists()


def test_the_data_hash_is_that_of_the_manifests_read_or_made(folder: Path) -> None:
    """Its formula is the one of a table's footer, so the two can be compared."""

    def data(*datasets: str) -> Any:
        with recorded(_stage(MADE, datasets=datasets)):
            MADE.write_text("made", encoding="utf-8")
            READ.write_text("changed by somebody", encoding="utf-8")
        return _read(_stage())["data"]

    for path in (MADE, READ):
        path.parent.mkdir(parents=True)
    READ.write_text("read", encoding="utf-8")
    found = data("read", "made")
    assert found["manifests"] == {str(MADE): _entry(b"made"), str(READ): _entry(b"read")}
    hashes = {name: entry["sha256"] for name, entry in found["manifests"].items()}
    assert found["sha256"] == hashlib.sha256(canonical_json(hashes).encode()).hexdigest()
    assert data("read", "gone") is None
    assert data() is None


def test_what_kernels_were_chosen_for_is_told_apart_from_what_the_processor_offers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = _job()["machine"]
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("flags", 1)[1].split("\n", 1)[0].split()
    assert machine["instructions"] == [name for name in INSTRUCTIONS if name in flags]
    assert "avx2" in machine["instructions"]
    assert machine["vendor"]
    assert machine["capability"]["torch"] == "AVX2"
    assert "X86_V4" not in machine["capability"]["numpy"]
    assert any("MKL-DNN" in line for line in machine["libraries"])
    assert machine["libc"]
    monkeypatch.delitem(sys.modules, "torch")
    machine = _job()["machine"]
    assert machine["capability"]["torch"] is None
    assert machine["libraries"] is None


def _commit(folder: Path) -> str:
    call(folder, "git", "init", "--quiet")
    (folder / "first").touch()
    call(folder, "git", "add", "first")
    call(folder, "git", "commit", "--quiet", "--message", "first")
    return call(folder, "git", "rev-parse", "HEAD").stdout.strip()


def test_git_state_follows_the_repository(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    call(tmp_path, "git", "init", "--quiet")
    (tmp_path / "first").touch()
    call(tmp_path, "git", "add", "first")
    assert git_state(tmp_path) is None
    commit = _commit(tmp_path)
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    assert commit_date(tmp_path) == call(tmp_path, "git", "show", "-s", "--format=%cs").stdout.strip()
    (tmp_path / "new").touch()
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}


def test_git_state_is_that_of_the_folder_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of a repository around it, nor of one that a hook's environment names; another owner is no obstacle."""
    outer, inner, unpacked = tmp_path / "outer", tmp_path / "inner", tmp_path / "outer/unpacked"
    inner.mkdir()
    unpacked.mkdir(parents=True)
    _commit(outer)
    commit = _commit(inner)
    (unpacked / "file").touch()
    monkeypatch.setenv("GIT_DIR", str(outer / ".git"))
    assert git_state(inner) == {"commit": commit, "dirty": False}
    assert git_state(unpacked) is None
    (inner / "\udcb1\udcca.txt").touch()  # a name that is no UTF-8
    assert git_state(inner) == {"commit": commit, "dirty": True}
    if os.geteuid() == 0:
        os.chown(inner, 1234, 1234)
        os.chown(inner / ".git", 1234, 1234)
        assert git_state(inner) == {"commit": commit, "dirty": True}


def test_a_broken_repository_is_no_missing_one(tmp_path: Path) -> None:
    _commit(tmp_path)
    (tmp_path / ".git/index").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"git ls-files failed: .*index"):
        git_state(tmp_path)


def test_git_state_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None
    assert sidecar.git_state() is None
