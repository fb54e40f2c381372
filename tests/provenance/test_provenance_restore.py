"""`restore` in real clones with real DVC and Snakemake: what comes back, what is left to run, and what it refuses."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from provenance_toy import (
    PREPARE,
    PUBLISHED,
    TABLE,
    damage,
    dvc,
    edit,
    outputs,
    planned,
    restored,
    snakemake,
    stored_object,
    toy_jobs,
)

from polygrain.provenance.errors import UserError
from polygrain.provenance.judge import Finding
from polygrain.provenance.record import record
from polygrain.provenance.restore import restore

CONFIG = "inputs/run-a/config.yaml"
CHECKPOINT = "runs/a/checkpoint.bin"
NAMES = {job.name for job in toy_jobs()}


def add_remote(root: Path, store: Path) -> Path:
    dvc(root, "remote", "add", "--default", "--local", "store", str(store))
    return root


def test_where_dvc_fails_its_reason_is_told(recorded_project: Path) -> None:
    """Here another process of DVC holds its lock."""
    (recorded_project / CHECKPOINT).unlink()
    with (recorded_project / ".dvc/tmp/lock").open("a+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"dvc \w+( \w+)? failed \(ERROR: .*lock"):
            restored(recorded_project)


@pytest.mark.parametrize("cache_type", ["copy", "symlink"])
def test_a_clone_gets_the_recorded_bytes_and_trains_nothing(
    recorded_project: Path, fresh: Path, store: Path, cache_type: str
) -> None:
    add_remote(fresh, store)
    dvc(fresh, "config", "--local", "cache.type", cache_type)
    assert restored(fresh) == dict.fromkeys(NAMES, "restored")
    assert outputs(fresh) == outputs(recorded_project)
    assert (fresh / CHECKPOINT).is_symlink() == (cache_type == "symlink")
    assert planned(fresh) == set()
    # nothing of the work is left behind
    assert not list(fresh.glob("polygrain-restore*"))
    lock = (fresh / "dvc.lock").read_bytes()
    record(toy_jobs(), fresh, PUBLISHED)
    assert (fresh / "dvc.lock").read_bytes() == lock
    assert planned(fresh) == set()
    edit(fresh, CONFIG, "0.05", "0.1")
    assert planned(fresh) == {"run-a", "table1"}


def test_after_dvc_pull_alone_content_decides(recorded_project: Path, fresh: Path, store: Path) -> None:
    """Outputs pulled by hand carry the time of the download, and a later edit of theirs is no secret."""
    add_remote(fresh, store)
    dvc(fresh, "pull", "--quiet")
    (fresh / "runs/b/metrics.jsonl").write_text("better")
    found = restored(fresh)
    assert found == {"toy": "in place", "run-a": "in place", "run-b": "restored", "table1": "in place"}
    assert outputs(fresh) == outputs(recorded_project)
    assert planned(fresh) == set()


def test_what_the_remote_lost_or_spoiled_is_missing_and_the_rest_comes(
    recorded_project: Path, fresh: Path, own_store: Path
) -> None:
    add_remote(fresh, own_store)
    stored_object(own_store, fresh, CHECKPOINT).unlink()
    damage(stored_object(own_store, fresh, "runs/b/metrics.jsonl"))
    found = restore(toy_jobs(), fresh, lambda: None)
    assert {name: result.outcome for name, result in found.items()} == {
        "toy": "restored",
        "run-a": "missing",
        "run-b": "missing",
        "table1": "restored",
    }
    assert found["run-a"].reason == f"{CHECKPOINT} is not in remote 'store'"
    assert found["run-b"].reason == "runs/b/metrics.jsonl is damaged in remote 'store'"
    there = {str(path) for job in toy_jobs() for path in job.outputs if (fresh / path).is_file()}
    assert there == set(outputs(recorded_project)) - {CHECKPOINT, "runs/b/metrics.jsonl"}
    # the damaged object does not stay in the cache, where a later `dvc checkout` would trust it
    assert not stored_object(fresh / ".dvc/cache", fresh, "runs/b/metrics.jsonl").exists()
    # no table needs what is missing until something runs
    assert planned(fresh) == set()
    edit(fresh, "inputs/table1/config.yaml", "0.05", "0.1")
    assert planned(fresh) == {"run-a", "table1"}


def test_a_damaged_cache_passes_dvc_status_but_not_restore(recorded_project: Path, store: Path) -> None:
    root = recorded_project
    held = stored_object(root / ".dvc/cache", root, CHECKPOINT)
    whole = held.read_bytes()
    held.chmod(0o444)
    damage(held)
    (root / CHECKPOINT).unlink()
    dvc(root, "checkout", "--quiet", "run-a")
    assert (root / CHECKPOINT).read_bytes() != whole
    assert dvc(root, "status", "--json").strip() == "{}"
    for remote, verdict in (("", "missing"), (store, "restored")):
        if remote:
            add_remote(root, store)
        else:
            (root / "records/run-a.json").unlink()
        assert restored(root)["run-a"] == verdict
        assert (root / CHECKPOINT).is_file() == held.is_file() == bool(remote)
    assert (root / CHECKPOINT).read_bytes() == held.read_bytes() == whole


def test_without_a_remote_nothing_comes_and_all_is_left_to_run(fresh: Path) -> None:
    found = restore(toy_jobs(), fresh, lambda: None)
    assert {result.outcome for result in found.values()} == {"missing"}
    assert found["toy"].reason == f"{PREPARE} is not in the cache, and no remote is set"
    assert planned(fresh) == NAMES


def test_a_run_of_this_tree_stays_and_what_nobody_vouches_for_goes(recorded_project: Path) -> None:
    root = recorded_project
    dvc(root, "config", "--local", "cache.type", "symlink")
    edit(root, CONFIG, "0.05", "0.1")
    snakemake(root, "--until", "run_a")
    trained = (root / CHECKPOINT).read_bytes()
    assert restored(root) == {"toy": "in place", "run-a": "built here", "run-b": "in place", "table1": "stale"}
    assert (root / CHECKPOINT).read_bytes() == trained
    assert not (root / TABLE).exists()
    assert not (root / "records/table1.json").exists()
    assert planned(root) == {"table1"}
    edit(root, CONFIG, "0.1", "0.05")
    assert set(restored(root).values()) == {"in place", "restored"}
    assert (root / CHECKPOINT).read_bytes() != trained
    assert not (root / "records/run-a.json").exists()
    assert planned(root) == set()


def test_tables_that_were_not_asked_for_keep_their_order(recorded_project: Path) -> None:
    """The data set in place is in order, so it keeps its time: what else was made from it must not look outdated."""
    root, other = recorded_project, "rule other:\n    input: 'data/toy/images.npy'\n    output: 'reports/other.txt'\n"
    edit(root, "Snakefile", "rule toy:", other + "    shell: 'cp {input} {output}'\nrule toy:")
    edit(root, "Snakefile", "input: 'reports/table1.md'", "input: 'reports/table1.md', 'reports/other.txt'")
    snakemake(root)
    (root / TABLE).unlink()
    assert restored(root)["table1"] == "restored"
    assert planned(root) == set()


def test_two_clones_share_a_cache_of_links(recorded_project: Path, fresh: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    for root in (recorded_project, fresh):
        dvc(root, "cache", "dir", "--local", str(shared))
        dvc(root, "config", "--local", "cache.type", "symlink")
        dvc(root, "config", "--local", "cache.shared", "group")
    record(toy_jobs(), recorded_project, PUBLISHED)
    assert restored(fresh) == dict.fromkeys(NAMES, "restored")
    assert all((root / CHECKPOINT).resolve().is_relative_to(shared) for root in (recorded_project, fresh))
    before = outputs(recorded_project)
    edit(fresh, CONFIG, "0.05", "0.1")
    snakemake(fresh)
    assert outputs(recorded_project) == before != outputs(fresh)
    assert planned(recorded_project) == set()


def test_hard_links_are_refused_in_one_line(recorded_project: Path) -> None:
    dvc(recorded_project, "config", "--local", "cache.type", "reflink,hardlink,copy")
    for act in (lambda: restored(recorded_project), lambda: record(toy_jobs(), recorded_project, PUBLISHED)):
        with pytest.raises(
            UserError, match=r"cache.type reflink,hardlink,copy: .*dvc config --local cache.type symlink"
        ):
            act()


def test_killed_in_the_middle_and_started_again(recorded_project: Path, fresh: Path, store: Path) -> None:
    add_remote(fresh, store)
    code = (
        "import pathlib, provenance_toy\nfrom polygrain.provenance.restore import restore\n"
        "restore(provenance_toy.toy_jobs(), pathlib.Path('.'), lambda: None)\n"
    )
    path = {"PYTHONPATH": f"{Path(__file__).parents[1]}:{Path(__file__).parents[2] / 'src'}"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=fresh, env={**os.environ, **path}, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not (fresh / "polygrain-restore.dvc").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert (fresh / "polygrain-restore.dvc").exists()
    assert set(restored(fresh).values()) == {"restored"}
    assert outputs(fresh) == outputs(recorded_project)
    assert not list(fresh.glob("polygrain-restore*"))
    assert planned(fresh) == set()


def test_a_job_that_was_killed_leaves_no_trace_after_it(recorded_project: Path) -> None:
    """Snakemake refuses to go on while it thinks that an output is half done; a restored one is whole."""
    root = recorded_project
    edit(root, CONFIG, "0.05", "0.1")
    edit(
        root, "job.py", "with recorded", "import os, signal\nos.path.exists('kill') and os.killpg(0, 9)\nwith recorded"
    )
    (root / "kill").touch()
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "all"]
    assert subprocess.run(command, cwd=root, capture_output=True, start_new_session=True).returncode == -signal.SIGKILL
    (root / "kill").unlink()
    for lock in (root / ".snakemake/locks").glob("*.lock"):
        lock.unlink()
    assert list((root / ".snakemake/incomplete").iterdir())
    edit(root, CONFIG, "0.1", "0.05")
    assert set(restored(root).values()) <= {"in place", "restored"}
    assert planned(root) == set()


def test_nothing_changes_while_something_else_works_in_the_tree(recorded_project: Path) -> None:
    (recorded_project / CHECKPOINT).write_text("edited")

    def busy() -> None:
        raise UserError("busy")

    with pytest.raises(UserError, match="busy"):
        restore(toy_jobs(), recorded_project, busy)
    assert (recorded_project / CHECKPOINT).read_text() == "edited"
    (recorded_project / "dvc.lock").unlink()
    with pytest.raises(UserError, match=r"dvc\.lock: missing or empty, so there is nothing to restore"):
        restored(recorded_project)
    assert (recorded_project / CHECKPOINT).read_text() == "edited"


def test_an_edit_while_it_works_is_not_stamped(recorded_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snakemake reads the params when it stamps, later than the judge did."""
    stamped: list[set[str]] = []

    def stamp(jobs: object, root: Path, findings: dict[str, Finding]) -> None:
        if not stamped:
            edit(root, CONFIG, "0.05", "0.1")
        stamped.append({name for name, finding in findings.items() if finding.claims})

    monkeypatch.setattr("polygrain.provenance.restore._stamp", stamp)
    found = restore(toy_jobs(), recorded_project, lambda: None)
    assert stamped == [NAMES, {"toy", "run-b"}]
    assert found["run-a"].outcome == "stale"
    assert found["run-a"].removed == (Path(CHECKPOINT), Path("runs/a/metrics.jsonl"))
    assert not (recorded_project / CHECKPOINT).exists()
