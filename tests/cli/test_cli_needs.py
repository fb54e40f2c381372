"""What `doctor` says of a user and a machine that a build cannot work with."""

import os
import pwd
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from polygrain.cli.needs import missing
from polygrain.data.raw import cache_folder
from polygrain.provenance.errors import UserError

Usage = namedtuple("Usage", "total used free")


def _nobody(number: int) -> None:
    raise KeyError(f"getpwuid(): uid not found: {number}")


def test_a_numeric_user_is_told_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME", "POLYGRAIN_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 1e12))
    assert missing(tmp_path) == []
    monkeypatch.setattr(pwd, "getpwuid", _nobody)
    assert [line.partition(";")[0] for line in missing(tmp_path)] == [
        "this user has no home folder",
        "this user has no name",
    ]
    with pytest.raises(UserError, match="export POLYGRAIN_CACHE=FOLDER"):
        cache_folder()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USER", "someone")
    assert missing(tmp_path) == []


def test_space_and_folders_that_may_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("POLYGRAIN_CACHE", str(tmp_path / "file/cache"))
    (line,) = missing(tmp_path)
    assert line.startswith(f"{tmp_path / 'file'}: you may not write here, where raw data are kept")
    monkeypatch.delenv("POLYGRAIN_CACHE")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 1.2e9))
    (line,) = missing(tmp_path)
    assert line == f"{tmp_path}: 1.2 GB are free, table 1 needs 3; free space, or work elsewhere"
    monkeypatch.undo()
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)
    assert missing(tmp_path) == [f"{tmp_path}: you may not write here; work in a clone of your own"]
