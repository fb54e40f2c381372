"""Scratch clones, whatever the user's own git settings say."""

from pathlib import Path

import pytest
from provenance_toy import call

from polygrain.provenance.scratch import clone, switch


def test_a_user_who_forbids_git_to_clone_from_folders_gets_a_scratch_clone_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "project"
    root.mkdir()
    call(root, "git", "init", "--quiet")
    (root / "file").write_text("content")
    call(root, "git", "add", "--all")
    call(root, "git", "commit", "--quiet", "--message", "start")
    settings = tmp_path / "gitconfig"
    settings.write_text('[protocol "file"]\n    allow = never\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    project = clone(root, scratch)
    switch(project, "HEAD")
    assert (project / "file").read_text() == "content"
