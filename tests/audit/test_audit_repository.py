"""Repositories as people have them: cloned without old contents, and no longer in reach of the remote."""

from pathlib import Path

import pytest
from provenance_toy import call

from polygrain.audit.repository import Repository
from polygrain.provenance.errors import UserError


def test_a_clone_without_old_contents_says_how_to_get_them(tmp_path: Path) -> None:
    full, partial = tmp_path / "full", tmp_path / "partial"
    call(tmp_path, "git", "init", "--quiet", str(full))
    call(full, "git", "config", "uploadpack.allowFilter", "true")
    for text in ("old", "new"):
        (full / "file").write_text(text)
        call(full, "git", "add", "file")
        call(full, "git", "commit", "--quiet", "--message", text)
    call(tmp_path, "git", "clone", "--quiet", "--filter=blob:none", full.as_uri(), str(partial))
    with Repository(partial) as online:
        first, last = online.commits()
        assert [online.read(online.find(commit.id, "file") or "") for commit in (first, last)] == [b"old", b"new"]
    call(tmp_path, "git", "clone", "--quiet", "--filter=blob:none", full.as_uri(), str(tmp_path / "offline"))
    full.rename(tmp_path / "away")
    with Repository(tmp_path / "offline") as offline:
        assert offline.read(offline.find(last.id, "file") or "") == b"new"
        with pytest.raises(UserError, match="made with --filter, its other objects are at the remote: go online"):
            offline.find(first.id, "file")
