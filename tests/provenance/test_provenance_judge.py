"""Which outputs count, by content alone: the lock's word, the record's word, and nobody's."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from provenance_toy import PREPARE, TABLE, edit, toy_jobs

from polygrain.provenance.errors import UserError
from polygrain.provenance.hashes import Hashes, md5_file
from polygrain.provenance.judge import Finding, judge
from polygrain.provenance.lock import LOCK, read_lock
from polygrain.provenance.stage import to_run

CHECKPOINT = "runs/a/checkpoint.bin"


def judged(root: Path) -> dict[str, Finding]:
    return judge(toy_jobs(), root, [read_lock(root)], Hashes(root))


def states(root: Path) -> dict[str, str]:
    return {name: finding.state for name, finding in judged(root).items()}


def rerun(root: Path, *names: str) -> None:
    """Run jobs by hand, as Snakemake would."""
    for job in reversed(toy_jobs()):
        if job.name in names:
            groups = [",".join(map(str, paths)) for paths in (job.dependencies, job.outputs)]
            subprocess.run(
                [sys.executable, "job.py", job.name, job.sidecar, job.config_path, *groups], cwd=root, check=True
            )


def test_the_lock_vouches_without_any_record(recorded_project: Path) -> None:
    shutil.rmtree(recorded_project / "records")
    assert set(states(recorded_project).values()) == {"in place"}
    assert [str(path) for path in judged(recorded_project)["toy"].claims] == [PREPARE]


def test_what_is_gone_is_absent_and_takes_nothing_along(recorded_project: Path) -> None:
    (recorded_project / CHECKPOINT).unlink()
    found = judged(recorded_project)
    assert {name: finding.state for name, finding in found.items()} == {
        "toy": "in place",
        "run-a": "absent",
        "run-b": "in place",
        "table1": "in place",
    }
    assert found["run-a"].lacking == (Path(CHECKPOINT),)


@pytest.mark.parametrize(
    ("path", "old", "new", "reason"),
    [
        ("inputs/run-a/config.yaml", "0.05", "0.1", "optimizer.lr in inputs/run-a/config.yaml was 0.05, now it is 0.1"),
        ("inputs/run-a/code.json", '"0"', '"1"', "inputs/run-a/code.json changed since dvc.lock was written"),
        (str(LOCK), "all runs/a", "1 runs/a", "its command was"),
    ],
)
def test_an_edit_makes_its_chain_stale(recorded_project: Path, path: str, old: str, new: str, reason: str) -> None:
    if path != str(LOCK):  # the record of an edited lock still fits
        edit(recorded_project, path, old, new)
        assert states(recorded_project) == {"toy": "in place", "run-a": "stale", "run-b": "in place", "table1": "stale"}
        found = judged(recorded_project)
        assert found["run-a"].reason.startswith(reason)
        assert found["table1"].reason == f"made from {CHECKPOINT}, which is stale"
    else:
        edit(recorded_project, path, old, new)
        assert states(recorded_project)["run-a"] == "built here"
        shutil.rmtree(recorded_project / "records")
        assert judged(recorded_project)["run-a"].reason.startswith(reason)


def test_a_run_of_this_tree_counts_until_its_inputs_move_on(recorded_project: Path) -> None:
    root = recorded_project
    edit(root, "inputs/run-a/config.yaml", "0.05", "0.1")
    rerun(root, "run-a")
    assert states(root) == {"toy": "in place", "run-a": "built here", "run-b": "in place", "table1": "stale"}
    rerun(root, "table1")
    assert states(root)["table1"] == "built here"
    edit(root, "inputs/run-a/config.yaml", "0.1", "0.05")
    assert states(root) == {"toy": "in place", "run-a": "absent", "run-b": "in place", "table1": "absent"}


@pytest.mark.parametrize("spoil", ["output", "sidecar", "input"])
def test_a_record_that_does_not_fit_proves_nothing(recorded_project: Path, spoil: str) -> None:
    root = recorded_project
    (root / LOCK).write_text("schema: '2.0'\nstages:\n  other:\n    cmd: x\n")
    assert set(states(root).values()) == {"built here"}
    match spoil:
        case "output":
            (root / CHECKPOINT).write_text("edited")
        case "sidecar":
            (root / "records/run-a.json").write_text("{")
        case "input":  # the record says that it read other data
            edit(root, PREPARE, "same bytes", "diff bytes")
            (root / "records/toy.json").unlink()
    expected = {"toy": "built here", "run-a": "stale", "run-b": "built here", "table1": "stale"}
    assert states(root) == (expected if spoil != "input" else dict.fromkeys(expected, "stale"))


def test_a_run_on_data_that_nobody_vouches_for_does_not_count(recorded_project: Path) -> None:
    """Its record fits, but restoring the data takes its ground away."""
    root = recorded_project
    (root / PREPARE).write_text("edited")
    rerun(root, "run-a", "table1")
    assert states(root) == {"toy": "absent", "run-a": "absent", "run-b": "in place", "table1": "absent"}


def test_data_packed_again_to_the_recorded_bytes_stand_for_them(recorded_project: Path) -> None:
    """Content decides, not history: other code gave the same data, so no training is stale."""
    root = recorded_project
    edit(root, "inputs/toy/code.json", '"0"', '"1"')
    assert set(states(root).values()) == {"stale"}
    rerun(root, "toy")
    assert states(root) == {"toy": "built here", "run-a": "in place", "run-b": "in place", "table1": "in place"}


def test_a_rebuild_with_other_bytes_is_kept_and_told(recorded_project: Path) -> None:
    root = recorded_project
    edit(root, "job.py", "hashlib.sha256(read).hexdigest()", "hashlib.sha256(read).hexdigest()[::-1]")
    rerun(root, "run-a")
    found = judged(root)
    assert (found["run-a"].state, found["run-a"].reason) == (
        "built here",
        "other bytes than dvc.lock holds of equal inputs",
    )
    assert found["table1"].state == "stale"


def test_hashes_follow_the_content(tmp_path: Path) -> None:
    hashes, path = Hashes(tmp_path), tmp_path / "a"
    assert hashes.md5(Path("a")) is None
    path.write_text("one")
    before = hashes.md5(Path("a"))
    assert before == md5_file(path)
    path.write_text("two")
    os.utime(path, ns=(1, 1))
    assert hashes.md5(Path("a")) == md5_file(path) != before


def test_the_jobs_to_run_are_those_that_are_needed_and_all_below_them() -> None:
    jobs = toy_jobs()
    checkpoint, metrics = Path(CHECKPOINT), Path("runs/a/metrics.jsonl")
    assert to_run(jobs, set(), ["table1"]) == set()
    assert to_run(jobs, {checkpoint, Path(PREPARE)}, ["table1"]) == set()
    assert to_run(jobs, {Path(TABLE)}, ["table1"]) == {"table1"}
    assert to_run(jobs, {Path(TABLE), checkpoint}, ["table1"]) == {"run-a", "table1"}
    assert to_run(jobs, {Path(TABLE), metrics}, ["table1"]) == {"table1"}
    assert to_run(jobs, {Path(TABLE), checkpoint, Path(PREPARE)}, ["table1"]) == {"toy", "run-a", "run-b", "table1"}


def test_conflict_markers_are_told_with_the_way_out(recorded_project: Path) -> None:
    edit(recorded_project, str(LOCK), "stages:\n", "<<<<<<< HEAD\nstages:\n")
    with pytest.raises(UserError, match=r"merge conflict markers; take one side whole .*git checkout --ours"):
        read_lock(recorded_project)
