"""`restore` where several people and branches meet: switches, merges, ordinary users, a cache of other people."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from provenance_toy import (
    PUBLISHED,
    TABLE,
    call,
    commit_all,
    damage,
    dvc,
    edit,
    outputs,
    planned,
    problems,
    restored,
    snakemake,
    stored_object,
    toy_jobs,
)

from polygrain.provenance.errors import UserError
from polygrain.provenance.files import write_if_changed
from polygrain.provenance.hashes import md5_file
from polygrain.provenance.lock import read_lock
from polygrain.provenance.record import record

REPOSITORY = Path(__file__).resolve().parents[2]
RESTORE = """
import pathlib, provenance_toy, sys
from polygrain.provenance.errors import UserError
try:
    print(provenance_toy.restored(pathlib.Path(".")))
except UserError as error:
    sys.exit(str(error))
"""


def write_configurations(root: Path) -> None:
    """From the files that git holds, as the workflow does at its start."""
    for path in (root / "params").iterdir():
        write_if_changed(root / "inputs" / path.stem / "config.yaml", path.read_text())


def switch(root: Path, branch: str) -> None:
    call(root, "git", "checkout", "--quiet", branch)
    write_configurations(root)


def set_rate(root: Path, run: str, rate: str) -> None:
    edit(root, f"params/{run}.yaml", "0.05", rate)
    write_configurations(root)


def build_and_record(root: Path) -> dict[str, bytes]:
    snakemake(root)
    record(toy_jobs(), root, PUBLISHED)
    commit_all(root)
    return outputs(root)


def test_branches_are_switched_and_merged_without_training(recorded_project: Path) -> None:
    """The recipe of the README: merge, restore, build, record, commit."""
    root = recorded_project
    (root / "params").mkdir()
    for run in ("run-a", "run-b"):
        shutil.copy(root / "inputs" / run / "config.yaml", root / "params" / f"{run}.yaml")
    shutil.copy(REPOSITORY / ".gitattributes", root)
    commit_all(root)
    call(root, "git", "checkout", "--quiet", "-b", "main")
    first = outputs(root)
    call(root, "git", "checkout", "--quiet", "-b", "other")
    set_rate(root, "run-b", "0.2")
    other = build_and_record(root)
    switch(root, "main")
    restored(root)
    assert outputs(root) == first != other
    set_rate(root, "run-a", "0.1")
    mine = build_and_record(root)
    switch(root, "other")
    restored(root)
    assert outputs(root) == other
    assert planned(root) == set()

    switch(root, "main")
    merged = subprocess.run(["git", "merge", "other"], cwd=root, capture_output=True, text=True)
    assert merged.returncode == 1
    assert {"dvc.lock", "published/table1.md"} <= {line.rpartition("reports/")[2] for line in conflicts(root)}
    write_configurations(root)
    found = restored(root)
    assert found == {"toy": "in place", "run-a": "restored", "run-b": "in place", "table1": "stale"}
    assert planned(root) == {"table1"}
    both = build_and_record(root)
    assert both["runs/a/checkpoint.bin"] == mine["runs/a/checkpoint.bin"]
    assert both["runs/b/checkpoint.bin"] == other["runs/b/checkpoint.bin"]
    assert call(root, "git", "status", "--porcelain").stdout == ""
    assert len(call(root, "git", "rev-list", "--parents", "-1", "HEAD").stdout.split()) == 3
    assert problems(root) == []


def conflicts(root: Path) -> list[str]:
    return call(root, "git", "diff", "--name-only", "--diff-filter=U").stdout.splitlines()


def test_a_lock_with_conflict_markers_is_refused_and_either_side_will_do(recorded_project: Path) -> None:
    """What a repository without our .gitattributes gets."""
    root = recorded_project
    call(root, "git", "checkout", "--quiet", "-b", "main")
    for branch, value in (("one", "0.1"), ("two", "0.2")):
        call(root, "git", "checkout", "--quiet", "-b", branch, "main")
        edit(root, "dvc.lock", "lr: 0.05", f"lr: {value}")
        commit_all(root)
    assert subprocess.run(["git", "merge", "--quiet", "one"], cwd=root, capture_output=True).returncode == 1
    before = outputs(root)
    with pytest.raises(UserError, match=r"merge conflict markers; .*`git checkout --ours -- dvc.lock`"):
        restored(root)
    assert outputs(root) == before
    call(root, "git", "checkout", "--ours", "--", "dvc.lock")
    assert read_lock(root).stages["toy"].parameters["inputs/toy/config.yaml"]["optimizer.lr"] == "0.2"


def ordinary(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    """Run a command for which file modes count: root loses the capabilities that set them aside."""
    prefix = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search,-fowner", "--inh-caps", "-all"]
    path = f"{Path(__file__).parents[1]}:{REPOSITORY / 'src'}"
    return subprocess.run(
        [*(prefix if os.geteuid() == 0 else []), *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def test_an_ordinary_user_restores_and_rebuilds(recorded_project: Path, fresh: Path) -> None:
    """DVC's cached files are read-only; neither a link to one nor a copy of one may stop Snakemake."""
    (fresh / "locked").touch(0o444)
    assert ordinary(fresh, "sh", "-c", "echo x > locked").returncode != 0
    shared = recorded_project / ".dvc/cache"
    dvc(fresh, "cache", "dir", "--local", str(shared))
    dvc(fresh, "config", "--local", "cache.type", "symlink")
    done = ordinary(fresh, sys.executable, "-c", RESTORE)
    assert done.stdout.count("'restored'") == len(toy_jobs()), done.stdout + done.stderr
    assert (fresh / TABLE).is_symlink()
    before = {path: md5_file(path) for path in shared.rglob("*") if path.is_file()}
    edit(fresh, "inputs/run-a/config.yaml", "0.05", "0.1")
    done = ordinary(fresh, sys.executable, "-m", "snakemake", "--cores", "1", "all")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (fresh / TABLE).is_symlink()
    assert {path: md5_file(path) for path in shared.rglob("*") if path.is_file()} == before

    held = stored_object(shared, fresh, "runs/b/checkpoint.bin")
    damage(held)
    (fresh / "runs/b/checkpoint.bin").unlink()
    held.parent.chmod(0o555)
    done = ordinary(fresh, sys.executable, "-c", RESTORE)
    assert done.stderr.strip() == f"{held}: damaged, and you may not remove it; ask its owner to, then restore again"
    held.parent.chmod(0o755)


def test_an_archive_without_git_is_restored_once_dvc_is_told(recorded_project: Path) -> None:
    """The project with its cache, as an archive site gives it."""
    root, before = recorded_project, outputs(recorded_project)
    shutil.rmtree(root / ".git")
    for path in before:
        (root / path).unlink()
    with pytest.raises(UserError, match=r"run `dvc config --local core\.no_scm true`, then the same command again"):
        restored(root)
    dvc(root, "config", "--local", "core.no_scm", "true")
    assert set(restored(root).values()) == {"restored"}
    assert outputs(root) == before
