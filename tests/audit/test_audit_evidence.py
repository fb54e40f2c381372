"""What files, records and dvc.lock say of each other in the toy project: tampering is a fault, honest work is not."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from provenance_toy import PREPARE, TABLE, call, snakefile, toy_jobs

from polygrain.audit.account import read_account
from polygrain.audit.evidence import Evidence
from polygrain.provenance.errors import UserError
from polygrain.provenance.stage import ancestry

JOBS = {job.name: job for job in toy_jobs()}
RUN, METRICS, CHECKPOINT = JOBS["run-a"], Path("runs/a/metrics.jsonl"), Path("runs/a/checkpoint.bin")


def evidence(root: Path, **more: object) -> Evidence:
    return Evidence(toy_jobs(), root, **more)  # type: ignore[arg-type]


def faults(root: Path) -> dict[str, list[str]]:
    found = evidence(root)
    return {job.name: lines for job in found.stages if (lines := found.faults(job))}


def overwrite(root: Path, path: Path, text: str) -> None:
    """As an editor does that replaces the file, so that a cache behind a link is not written to."""
    (root / path).unlink()
    (root / path).write_text(text)


def make_again(root: Path, name: str) -> None:
    """Run one job by hand, with its record."""
    rule = snakefile([JOBS[name]]).split("shell: '")[1].split("'")[0]
    call(root, *rule.split())


def test_a_build_agrees_with_its_records_before_and_after_it_is_recorded(built, recorded_project):
    assert faults(built) == faults(recorded_project) == {}
    before, after = (evidence(root).state(RUN, CHECKPOINT) for root in (built, recorded_project))
    assert (before.as_recorded, before.as_locked) == (True, None)
    assert (after.as_recorded, after.as_locked) == (True, True)
    assert not any(list(evidence(recorded_project).remarks(job)) for job in toy_jobs())


def test_an_edited_file_is_a_fault_at_its_job_and_where_it_was_used(recorded_project):
    overwrite(recorded_project, CHECKPOINT, "better")
    assert faults(recorded_project) == {
        "run-a": [f"{CHECKPOINT}: changed since it was made: records/run-a.json says another SHA-256"],
        "table1": [f"{TABLE}: was made from another {CHECKPOINT} than the one in place"],
    }
    assert evidence(recorded_project).faults(JOBS["table1"], inputs=[]) == []


def test_an_edited_file_whose_record_was_edited_too_is_caught_by_the_lock(recorded_project):
    overwrite(recorded_project, METRICS, "better")
    make_record_agree(recorded_project, "run-a", METRICS)
    assert faults(recorded_project) == {
        "run-a": [f"{METRICS}: other bytes than in dvc.lock, made from the same configuration and the same files"]
    }


def make_record_agree(root: Path, name: str, path: Path) -> None:
    sidecar = root / JOBS[name].sidecar
    said = json.loads(sidecar.read_text())
    content = evidence(root).content(path)
    assert content is not None
    said["outputs"][str(path)] = {"sha256": content.sha256, "bytes": content.size}
    sidecar.write_text(json.dumps(said))


def test_restored_files_are_judged_by_the_lock_alone(recorded_project):
    for job in toy_jobs():
        (recorded_project / job.sidecar).unlink()
    assert faults(recorded_project) == {}
    assert evidence(recorded_project).account(RUN) is None
    overwrite(recorded_project, METRICS, "better")
    assert faults(recorded_project) == {
        "run-a": [f"{METRICS}: is not the file of dvc.lock, and no record says how it was made"]
    }


def test_a_rebuild_from_another_configuration_is_a_remark(recorded_project):
    config = recorded_project / RUN.config_path
    config.write_text(config.read_text().replace("0.05", "0.1"))
    found = evidence(recorded_project)
    assert found.faults(RUN) == []
    assert list(found.remarks(RUN)) == [
        f"changed since this was made: {RUN.config_path}",
        "dvc.lock holds a build with another optimizer.lr",
    ]
    make_again(recorded_project, "run-a")
    found = evidence(recorded_project)
    assert found.faults(RUN) == []
    assert list(found.remarks(RUN)) == ["another build than in dvc.lock, which had another optimizer.lr"]
    assert found.faults(JOBS["table1"]) == [f"{TABLE}: was made from another {CHECKPOINT} than the one in place"]


def test_texts_stand_for_files_that_are_not_written(recorded_project):
    text = (recorded_project / RUN.config_path).read_text()
    (recorded_project / RUN.config_path).unlink()
    assert evidence(recorded_project).changes_since_lock(RUN) == []
    assert evidence(recorded_project, texts={RUN.config_path: text}).changes_since_lock(RUN) == []
    other = evidence(recorded_project, texts={RUN.config_path: text.replace("0.99", "0.999")})
    assert other.changes_since_lock(RUN) == ["optimizer.betas"]
    assert other.state(RUN, RUN.config_path).as_recorded is False


def test_a_number_and_a_text_are_different_values(recorded_project):
    text = (recorded_project / RUN.config_path).read_text().replace("0.05", "'0.05'")
    assert evidence(recorded_project, texts={RUN.config_path: text}).changes_since_lock(RUN) == ["optimizer.lr"]


def test_a_lock_that_contradicts_itself_is_a_fault_even_with_nothing_here(recorded_project):
    lock = recorded_project / "dvc.lock"
    made = evidence(recorded_project).lock.stages["toy"].outputs[PREPARE]
    head, _, tail = lock.read_text().rpartition(made)  # the last use; stages are sorted: run-a, run-b, table1, toy
    lock.write_text(head.replace(made, "f" * 32, 1) + made + tail)
    for folder in ("data", "runs", "records"):
        subprocess.run(["rm", "-r", str(recorded_project / folder)], check=True)
    assert faults(recorded_project) == {
        "run-a": [f"{CHECKPOINT}: by dvc.lock made from another {PREPARE} than toy made"]
    }


def test_ancestry_is_nearest_first_and_each_once(project):
    found = evidence(project)
    assert [job.name for job in ancestry(JOBS["table1"], found.makers)] == ["table1", "run-a", "run-b", "toy"]
    assert ancestry(JOBS["toy"], found.makers) == [JOBS["toy"]]


def test_a_published_account_must_tell_of_these_files(recorded_project):
    found = evidence(recorded_project)
    account = read_account(RUN, recorded_project)
    assert account is not None
    files = {path: replace(content, md5=found.content(Path(path)).md5) for path, content in account.files.items()}
    told = {"run-a": replace(account, source=Path("crate"), files=files)}
    assert set(found.matching(told)) == {"run-a"}
    (recorded_project / RUN.sidecar).unlink()
    restored = evidence(recorded_project, published=told)
    assert (restored.account(RUN), restored.has_record(RUN), restored.faults(RUN)) == (told["run-a"], False, [])
    overwrite(recorded_project, CHECKPOINT, "better")
    assert evidence(recorded_project).matching(told) == {}
    (recorded_project / CHECKPOINT).unlink()
    assert set(evidence(recorded_project).matching(told)) == {"run-a"}
    files[str(CHECKPOINT)] = replace(files[str(CHECKPOINT)], md5="0" * 32)
    assert evidence(recorded_project).matching(told) == {}
    wrong = evidence(recorded_project, published=told).faults(RUN)
    assert wrong == [f"{CHECKPOINT}: the published crate and dvc.lock describe different builds"]


@pytest.mark.parametrize("text", ["[]", "{}", '{"git": null, "command": []}', "{"])
def test_a_broken_record_is_named(project, text):
    (project / RUN.sidecar).write_text(text)
    with pytest.raises(UserError, match=r"records/run-a\.json: not "):
        read_account(RUN, project)


def test_an_account_is_flat_and_holds_both_formats(project):
    said = json.loads((project / RUN.sidecar).read_text())
    account = read_account(RUN, project)
    assert account is not None
    assert account.command.split()[0] == Path(said["command"][0]).name
    assert account.machine["pins.OMP_NUM_THREADS"] == said["machine"]["pins"]["OMP_NUM_THREADS"]
    assert account.machine["packages.numpy"] == said["machine"]["packages"]["numpy"]
    assert account.machine["instructions"].split() == said["machine"]["instructions"]
    assert set(account.files) == {str(RUN.config_path), *map(str, (*RUN.dependencies, *RUN.outputs))}
    said["format"] = 1
    for key in ("code", "environment", "data"):
        del said[key]
    (project / RUN.sidecar).write_text(json.dumps(said))
    assert read_account(RUN, project) == account
