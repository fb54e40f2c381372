"""Records: complete after success, absent after failure, never about other bytes."""

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from provenance_toy import call

from polygrain.provenance import sidecar
from polygrain.provenance.errors import UserError
from polygrain.provenance.pins import PINS
from polygrain.provenance.sidecar import git_state, recorded


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("in.bin").write_bytes(b"in")
    Path("config.yaml").write_text("a: 1\n")
    return tmp_path


def _job(folder: Path, content: bytes = b"out", seconds: float = 0.0) -> dict[str, Any]:
    outputs = [folder / "out.bin"]
    with recorded(
        Path("records/x.json"),
        stage="x",
        inputs=[Path("in.bin")],
        outputs=outputs,
        config=Path("config.yaml"),
    ):
        assert not Path("records/x.json").exists()
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
        outputs[0].write_bytes(content)
    record: dict[str, Any] = json.loads(Path("records/x.json").read_text())
    return record


def _entry(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def test_holds_what_was_done(folder: Path) -> None:
    record = _job(folder, seconds=0.2)
    assert record["stage"] == "x"
    assert record["command"] == sys.argv
    assert record["inputs"] == {"in.bin": _entry(b"in")}
    assert record["outputs"] == {"out.bin": _entry(b"out")}
    assert record["config"] == {"config.yaml": _entry(b"a: 1\n")}
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


def test_the_command_and_threads_come_from_this_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["polygrain", "train", "--seed", "3"])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    record = _job(folder)
    assert record["command"] == ["polygrain", "train", "--seed", "3"]
    assert record["machine"]["threads"] == 7


def test_a_failure_leaves_no_record_not_even_the_old_one(folder: Path) -> None:
    _job(folder)
    with (
        pytest.raises(RuntimeError),
        recorded(Path("records/x.json"), stage="x", inputs=[], outputs=[], config=None),
    ):
        raise RuntimeError
    assert list(Path("records").iterdir()) == []


def test_inputs_are_described_as_they_were_at_the_start(folder: Path) -> None:
    with recorded(Path("x.json"), stage="x", inputs=[Path("in.bin")], outputs=[], config=None):
        Path("in.bin").write_bytes(b"changed by somebody")
    record = json.loads(Path("x.json").read_text())
    assert record["inputs"] == {"in.bin": _entry(b"in")}
    assert record["config"] is None


def test_missing_files_are_named_and_leave_no_record(folder: Path) -> None:
    with (
        pytest.raises(UserError, match=r"nothing\.bin: not found"),
        recorded(Path("x.json"), stage="x", inputs=[], outputs=[Path("nothing.bin")], config=None),
    ):
        pass
    assert not Path("x.json").exists()


def test_git_state_follows_the_repository(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    call(tmp_path, "git", "init", "--quiet")
    assert git_state(tmp_path) is None
    call(tmp_path, "git", "commit", "--quiet", "--allow-empty", "--message", "first")
    commit = call(tmp_path, "git", "rev-parse", "HEAD").stdout.strip()
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "new").touch()
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}


def test_git_state_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None
    assert sidecar.git_state() is None
