"""`record` with real git, DVC and Snakemake: true, complete, and nothing re-runs after it."""

import hashlib
import os
import sys
from pathlib import Path

import pytest
from provenance_toy import PREPARE, PUBLISHED, TABLE, Toy, call, commit_all, dvc, edit, outputs, toy_jobs

from polygrain.provenance.checklock import find_problems
from polygrain.provenance.errors import UserError
from polygrain.provenance.hashes import md5_file
from polygrain.provenance.lock import read_lock
from polygrain.provenance.pipeline import dvc_yaml
from polygrain.provenance.record import objection_to_keeping, record
from polygrain.provenance.stage import Stage
from polygrain.provenance.yaml12 import load_yaml

OUTPUTS = [path for job in toy_jobs() for path in job.outputs]


def _times(root: Path) -> dict[Path, int]:
    return {path: (root / path).lstat().st_mtime_ns for path in OUTPUTS}


def _git(root: Path) -> tuple[str, bytes, str]:
    index = hashlib.sha256((root / ".git/index").read_bytes()).digest()
    return call(root, "git", "log", "--format=%H").stdout, index, call(root, "git", "stash", "list").stdout


def test_lock_and_published_copies_hold_what_was_built(recorded_project: Path) -> None:
    root, lock = recorded_project, read_lock(recorded_project)
    assert list(lock.stages) == sorted(job.name for job in toy_jobs())
    for job in toy_jobs():
        stage = lock.stages[job.name]
        assert stage.command == job.command
        assert stage.outputs == {str(path): md5_file(root / path) for path in job.outputs}
        assert stage.dependencies == {str(path): md5_file(root / path) for path in job.dependencies}
        values = {"name": f'"{job.name}"', "optimizer.betas": "[0.9, 0.99]", "optimizer.lr": "0.05"}
        assert stage.parameters == {str(job.config_path): values}
    for source, copy in PUBLISHED.items():
        assert (root / copy).read_bytes() == (root / source).read_bytes()
        assert not (root / copy).is_symlink()


@pytest.mark.parametrize("cache_type", ["copy", "symlink"])
def test_nothing_runs_again_after_it(project: Path, cache_type: str) -> None:
    with (project / ".dvc/config").open("a") as stream:
        stream.write(f"[cache]\n    type = {cache_type}\n")
    commit_all(project)
    times, git = _times(project), _git(project)
    record(toy_jobs(), project, PUBLISHED)
    assert _times(project) == times
    assert _git(project) == git
    assert (project / PREPARE).is_symlink() == (cache_type == "symlink")
    # both times of a link count, and the oldest output shares its cached file with the newest
    assert all((project / path).stat().st_mtime_ns <= time for path, time in times.items())
    # large checkpoints are compared by time only: without this, Snakemake compares small files by content
    dry = call(project, sys.executable, "-m", "snakemake", "--dry-run", "--max-checksum-file-size", "0", "all")
    assert "Nothing to be done" in dry.stdout + dry.stderr
    assert dvc(project, "status", "--json").strip() == "{}"
    # DVC wrote no .gitignore beside the outputs, and only the claim is new to git
    changes = call(project, "git", "status", "--porcelain", "--untracked-files=all").stdout.split()
    assert changes[1::2] == ["dvc.lock", "dvc.yaml", "reports/published/table1.md"]
    folders = ("data", "runs", "reports", "inputs")
    assert not [path for folder in folders for path in (project / folder).rglob(".gitignore")]


def test_recording_again_changes_no_byte_and_drops_what_is_no_job_any_more(recorded_project: Path) -> None:
    root = recorded_project
    lock, pipeline = (root / "dvc.lock").read_bytes(), (root / "dvc.yaml").stat().st_mtime_ns
    text = lock.decode().replace("  run-a:\n", "  gone:\n    cmd: old\n  run-a:\n", 1)
    (root / "dvc.lock").write_text(text)
    record(toy_jobs(), root, PUBLISHED)
    assert (root / "dvc.lock").read_bytes() == lock
    assert (root / "dvc.yaml").stat().st_mtime_ns == pipeline
    assert call(root, "git", "status", "--porcelain").stdout == ""


def _edit(path: Path, content: str) -> None:
    """Change a file's bytes and nothing that its size or time gives away."""
    before = path.stat()
    path.write_text(content[: before.st_size].ljust(before.st_size), encoding="utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("output", [TABLE, "runs/b/metrics.jsonl", PREPARE])
def test_an_output_edited_by_hand_is_refused(project: Path, output: str) -> None:
    _edit(project / output, "better")
    with pytest.raises(UserError, match=rf"^{output}: edited by hand .*--force {output}`$"):
        record(toy_jobs(), project, PUBLISHED)
    assert not (project / "dvc.lock").exists()
    assert not (project / "dvc.yaml").exists()
    assert not (project / "reports/published").exists()


@pytest.mark.parametrize("edited", ["config.yaml", "code.json"])
def test_an_output_of_other_inputs_is_refused(project: Path, edited: str) -> None:
    path = project / "inputs/run-a" / edited
    path.write_text(path.read_text().replace("0", "1"))
    with pytest.raises(UserError, match=rf"runs/a/checkpoint.bin: was made from another inputs/run-a/{edited}"):
        record(toy_jobs(), project, PUBLISHED)


def test_missing_outputs_and_records_are_named(project: Path) -> None:
    (project / "records/run-a.json").unlink()
    with pytest.raises(UserError, match=r"runs/a/checkpoint\.bin: its record records/run-a\.json is missing"):
        record(toy_jobs(), project, PUBLISHED)
    (project / "runs/a/metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"runs/a/metrics\.jsonl: not built"):
        record(toy_jobs(), project, PUBLISHED)


def test_a_refusal_by_dvc_is_one_line_and_keeps_the_times(project: Path) -> None:
    times = _times(project)
    (project / ".dvc/config").write_text("[core]\n    nonsense = 1\n")
    with pytest.raises(UserError, match=r"dvc commit failed .*nonsense") as caught:
        record(toy_jobs(), project, PUBLISHED)
    assert "\n" not in str(caught.value)
    assert _times(project) == times


@pytest.mark.parametrize("folder", ["runs", "data/toy"])
def test_a_folder_that_is_a_link_out_of_the_repository_is_refused_before_anything_is_written(
    project: Path, tmp_path: Path, folder: str
) -> None:
    disk = (project / folder).rename(tmp_path / "disk")
    (project / folder).symlink_to(disk)
    with pytest.raises(UserError, match=rf"^{folder}: a link to {disk}, and DVC records nothing .*symlink`$"):
        record(toy_jobs(), project, PUBLISHED)
    assert not (project / "dvc.lock").exists()
    assert not (project / "dvc.yaml").exists()
    assert not (project / ".dvc/cache").exists()


def test_a_link_within_the_repository_is_as_good_as_a_folder(project: Path) -> None:
    (project / "runs").rename(project / "data/runs")
    (project / "runs").symlink_to("data/runs")
    record(toy_jobs(), project, PUBLISHED)
    assert "run-a" in read_lock(project).stages


def _second_table(root: Path) -> list[Stage]:
    """A table of run b alone, built; with what is behind it."""
    paths = tuple(map(Path, ("runs/b/checkpoint.bin", "reports/table2.md")))
    table = Toy("table", "table2", Path("reports"), {}, (), paths[:1], paths[1:])
    (root / table.config_path).parent.mkdir(exist_ok=True)
    (root / table.config_path).write_text("name: table2\n")
    (root / table.code_path).write_text("{}\n")
    _build(root, table)
    return [table, *(job for job in toy_jobs() if job.name in ("run-b", "toy"))]


def _build(root: Path, job: Stage) -> None:
    files = [",".join(map(str, paths)) for paths in (job.dependencies, job.outputs)]
    call(root, sys.executable, "job.py", job.name, str(job.sidecar), str(job.config_path), *files)


def test_what_one_table_recorded_stays_beside_the_next(recorded_project: Path) -> None:
    root, before = recorded_project, load_yaml(recorded_project / "dvc.lock")["stages"]
    second = _second_table(root)
    first = [job for job in toy_jobs() if job.name in ("table1", "run-a")]
    for job in first:  # nothing of it needs to be here
        for path in job.outputs:
            (root / path).unlink()
    assert objection_to_keeping(toy_jobs(), second, root) is None
    record(second, root, {}, first)
    now = load_yaml(root / "dvc.lock")["stages"]
    both = [*toy_jobs(), second[0]]
    assert (root / "dvc.yaml").read_text() == dvc_yaml(both, root)
    assert list(read_lock(root).stages) == sorted(job.name for job in both)
    shared = "configurations-reports"
    assert {name: entry for name, entry in now.items() if name not in ("table2", shared)} == {
        name: entry for name, entry in before.items() if name != shared
    }
    assert [out["path"] for out in now[shared]["outs"]] == ["inputs/table1/config.yaml", "inputs/table2/config.yaml"]
    dvc(root, "checkout", "--force")
    assert dvc(root, "status", "--json").strip() == "{}"
    # each table is judged with the other beside it, in either order of recording
    assert find_problems(toy_jobs(), root, PUBLISHED, beside=second) == []
    assert find_problems(second, root, {}, beside=first) == []
    lock = (root / "dvc.lock").read_bytes()
    record(toy_jobs(), root, PUBLISHED, second[:1])
    assert (root / "dvc.lock").read_bytes() == lock


def test_a_table_that_was_made_from_what_is_recorded_anew_cannot_stay(recorded_project: Path) -> None:
    root = recorded_project
    second = _second_table(root)
    edit(root, "inputs/run-b/config.yaml", "0.05", "0.1")
    before = outputs(root)
    for job in reversed(second[:2]):
        _build(root, job)
    assert outputs(root) != before
    assert objection_to_keeping(toy_jobs(), second, root) == f"{TABLE} was made from another runs/b/checkpoint.bin"
    # nor one that is another table by now than the one on record
    assert objection_to_keeping(second, toy_jobs()[1:], root) == (
        "reports/table2.md is not on record as params and src describe it now"
    )
