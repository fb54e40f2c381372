"""What a job leaves behind when something happened to it, or to what it works from."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest

from polygrain.provenance.errors import UserError
from polygrain.provenance.unchanged import hashed, remove_leftovers, unchanged


def job(inputs: Sequence[Path], output: Path, change: Callable[[], object]) -> None:
    """Make an output from the first input, which changes meanwhile."""
    with unchanged(inputs, [output, output.with_name("absent")]):
        output.write_text("made from a", encoding="utf-8")
        change()


def test_a_job_whose_input_changed_meanwhile_leaves_no_output(tmp_path):
    config, data, output = tmp_path / "config.yaml", tmp_path / "data.npy", tmp_path / "checkpoint"
    for change in (lambda: config.write_text("b"), config.unlink, lambda: data.write_text("longer")):
        config.write_text("a")
        data.write_text("a")
        with pytest.raises(UserError, match=r"(config.yaml|data.npy): changed while a job used it; the outputs"):
            job([config, data], output, change)
        assert not output.exists()


def test_an_input_that_was_only_written_again_is_no_change(tmp_path):
    config, output = tmp_path / "config.yaml", tmp_path / "checkpoint"
    config.write_text("a")
    with unchanged([config], [output]):
        output.write_text("made from a")
        config.unlink()
        config.write_text("a")
        os.utime(config, (1, 1))
    assert output.read_text() == "made from a"


def test_what_dead_writers_left_is_removed_and_nothing_else(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {
        f".a.bin.{dead.pid}.tmp": False,  # a killed process wrote it
        f".a.bin.{os.getpid()}.tmp": True,  # its writer lives
        f".b.bin.{dead.pid}.tmp": True,  # not a file of this job
        ".a.bin.tmp": True,
        "a.bin": True,
    }
    for name in names:
        (tmp_path / name).write_text("")
    assert remove_leftovers([tmp_path / "a.bin", tmp_path / "absent/c.bin"]) == [tmp_path / f".a.bin.{dead.pid}.tmp"]
    assert {path.name for path in tmp_path.iterdir()} == {name for name, stays in names.items() if stays}


def test_a_job_that_loads_code_which_was_not_hashed_leaves_no_output(tmp_path, monkeypatch):
    code, output = tmp_path / "code.json", tmp_path / "checkpoint"
    for known, loaded, fine in (
        ("{}", "polygrain.views.loud", False),
        ('{"polygrain.views.loud": "0"}', "polygrain.views.loud", True),
        ("{}", "numpy.loud", True),
    ):
        code.write_text(known)
        refused = nullcontext() if fine else pytest.raises(UserError, match=f"^{loaded}: ")
        with monkeypatch.context() as patch, refused, hashed(code, [output, tmp_path / "absent"]):
            output.write_text("made")
            patch.setitem(sys.modules, loaded, None)
        assert output.exists() is fine
