"""The audit on a repository with a real past: every commit of the example was built by Snakemake and recorded."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

TARGET = "reports/smoke/lessons.pdf"
RUN = "runs/smoke/fashion-mnist/simclr/base/seed0"
RESULT = f"{RUN}/results/linear.json"
TAGS = ["1-start", "2-parameter", "3-comment", "4-merge", "5-bug", "6-fix", "7-tampered"]

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def lessons(built: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The example repository; packed data and the two runs are those of the built checkout."""
    folder = tmp_path_factory.mktemp("example") / "lessons"
    said = built.run("polygrain", "example", str(folder)).stdout
    assert all(f"  {tag} " in said for tag in TAGS)
    return type(built)(folder)


@pytest.fixture
def cloned(lessons: Any, tmp_path: Path) -> Callable[..., Any]:
    """A clone at a tag, without data or results: all that the audit of a history needs."""

    def clone(tag: str, *options: str) -> Any:
        checkout = type(lessons)(tmp_path / "clone")
        source = f"file://{lessons.root}"
        command = ["git", "clone", "--quiet", "--branch", tag, *options, source, str(checkout.root)]
        subprocess.run(command, check=True, capture_output=True)
        checkout.run("git", "config", "user.name", "tester")
        checkout.run("git", "config", "user.email", "tester@localhost")
        return checkout

    return clone


def _sections(audit: str) -> dict[str, list[str]]:
    """Subject of a commit -> the lines about it."""
    sections: dict[str, list[str]] = {}
    subject = ""
    for line in audit.splitlines():
        if line.startswith("    "):
            sections[subject].append(line.strip())
        else:
            subject = line.split(" ", 2)[2] if line[8:10] == "20" else ""
            sections.setdefault(subject, [])
    return sections


def test_the_example_trained_only_what_its_lessons_changed(lessons: Any) -> None:
    assert lessons.run("git", "tag").stdout.split() == TAGS
    assert lessons.run("git", "status", "--porcelain").stdout == ""
    assert lessons.planned(TARGET) == {}
    logs = {str(path.relative_to(lessons.root / "logs")) for path in lessons.root.glob("logs/**/*.log")}
    random = "runs/smoke/fashion-mnist/random/base/seed0/linear.log"
    simclr = {f"{RUN}/{verb}.log" for verb in ("pretrain", "features", "knn", "linear")}
    assert logs == {random, "reports/smoke/lessons.log", *simclr}


def test_an_honest_past_is_explained_to_the_last_commit(cloned: Any) -> None:
    done = cloned("6-fix").run("polygrain", "audit")
    told = _sections(done.stdout)
    assert done.stdout.splitlines()[-1] == "every change is explained"
    assert "Say what METHOD is for" not in told  # a comment decides nothing
    assert any(
        "results/{linear.json,linear.npz}: values.iterations 300 -> 3" in line
        for line in told["A shorter linear probe"]
    )
    assert any("taken from the side of" in line for line in told["Merge the shorter probe"])
    code = "checkpoint.safetensors,metrics.jsonl}: code/pretrain.json (src/polygrain/methods/simclr.py)"
    assert any(code in line for line in told["Tidy up the loss of SimCLR"])
    fixed = told["Compare the two views of an image again"]
    assert all(line.startswith("returned ") for line in fixed[1:])
    assert fixed[0].endswith("11 returned")
    assert not any("random/base" in line for line in fixed)


def test_a_result_that_was_improved_with_all_its_hashes_is_found(lessons: Any) -> None:
    assert lessons.run("polygrain", "check-lock").stdout.strip().endswith("holds")
    assert lessons.run("dvc", "status").stdout.strip().endswith("up to date.")
    done = lessons.run("polygrain", "audit", check=False)
    assert done.returncode == 1
    told = _sections(done.stdout)["Polish the table"]
    (unexplained,) = [line for line in told if line.startswith("UNEXPLAINED")]
    assert unexplained.startswith(f"UNEXPLAINED {RESULT}: ")
    assert any(line.endswith("results/linear.json (itself UNEXPLAINED)") for line in told)
    assert f"1 output changed and unexplained; HEAD still holds {RESULT}" in done.stdout


def test_a_reason_that_was_forged_under_a_real_edit_is_found_by_the_commits_own_check(cloned: Any) -> None:
    """The code really changed, but the hash in the lock is not its hash, and the result is not what it gives."""
    checkout = cloned("6-fix", "--depth", "1")
    lock = checkout.root / "dvc.lock"
    content = yaml.safe_load(lock.read_text())
    stage = content["stages"]["pretrain-smoke-fashion-mnist@simclr-base-seed0"]
    for entries, name in (("deps", "code/pretrain.json"), ("outs", "checkpoint.safetensors")):
        next(entry for entry in stage[entries] if entry["path"] == f"{RUN}/{name}")["md5"] = "c" * 32
    lock.write_text(yaml.safe_dump(content, sort_keys=False))
    source = checkout.root / "src/polygrain/methods/simclr.py"
    source.write_text(source.read_text() + "\nFASTER = True\n")
    checkout.run("git", "commit", "--quiet", "--all", "--message", "Faster")
    alone = checkout.run("polygrain", "audit", check=False)
    reason = "code/pretrain.json (src/polygrain/methods/simclr.py)"
    assert f"explained {RUN}/checkpoint.safetensors: {reason}" in alone.stdout
    done = checkout.run("polygrain", "audit", "--checkout", check=False)
    assert done.returncode == 1
    own = [line for line in done.stdout.splitlines() if "by its own check-lock: " in line]
    assert own[0].endswith("the recorded claim holds")
    assert own[-1].endswith("the recorded claim fails")
    assert any(f"{RUN}/code/pretrain.json changed since dvc.lock was written" in line for line in own)


def test_stored_objects_of_every_commit_are_hashed_again(lessons: Any) -> None:
    done = lessons.run("polygrain", "audit", "--cache")
    assert done.stdout.strip().endswith("0 corrupt, 0 missing")
    victim = max((lessons.root / ".dvc/cache/files/md5").glob("*/*"), key=lambda path: path.stat().st_size)
    content = victim.read_bytes()
    victim.chmod(0o644)
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = lessons.run("polygrain", "audit", "--cache", check=False)
    victim.write_bytes(content)
    assert done.returncode == 1
    assert f"CORRUPT {victim.parent.name}{victim.name} " in done.stdout
    assert f"rm -f {victim}" in done.stdout


def test_a_rebuild_tells_an_honest_stage_from_an_edited_one(lessons: Any) -> None:
    table = lessons.run("polygrain", "audit", "--rebuild", TARGET)
    assert table.stdout.splitlines()[-1] == f"{TARGET}: identical"
    (lessons.root / "notes").write_text("of my own")
    done = lessons.run("polygrain", "audit", "--rebuild", RESULT, check=False)
    (lessons.root / "notes").unlink()
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert "this tree has changes of its own" in lines[0]
    assert f"{RUN}/results/linear.npz: identical" in lines
    assert f"{RESULT}: different" in lines
    assert any(line.startswith("    values.fashion-mnist/top1: recorded 0.") for line in lines)
    assert "every input is as in dvc.lock" in lines
    assert any(line.startswith("threads, pins, versions, processor are as recorded") for line in lines)


def test_a_number_is_followed_through_the_past(lessons: Any, tmp_path: Path) -> None:
    figure = tmp_path / "linear.png"
    cell = ("--row", "simclr", "--column", "linear")
    lines = lessons.run("polygrain", "history", TARGET, *cell, "--plot", str(figure)).stdout.splitlines()
    assert lines[0] == f"{TARGET}: SimCLR, Fashion-MNIST linear (%)"
    texts, reasons = [line.split()[2] for line in lines[1:-1:2]], [line.strip() for line in lines[2:-1:2]]
    start, shorter, merged, broken, fixed, polished = map(float, texts)
    assert merged == shorter == fixed
    assert broken < shorter - 3
    assert lines[-3].split()[3] == "+6.25"
    assert polished == pytest.approx(fixed + 6.25, abs=0.11)
    assert start != shorter
    assert reasons[0] == "first recorded"
    assert "iterations 300 -> 3" in reasons[1]
    assert reasons[3] == "code/pretrain.json (src/polygrain/methods/simclr.py)"
    assert "again those of" in reasons[4]
    assert reasons[5].startswith("UNEXPLAINED ")
    assert figure.read_bytes().startswith(b"\x89PNG")
    wrong = lessons.run("polygrain", "history", TARGET, "--row", "simclrr", "--column", "linear", check=False)
    assert wrong.returncode == 2
    assert "did you mean 'simclr'?" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1


def test_a_shallow_clone_is_audited_as_far_as_it_goes(cloned: Any) -> None:
    done = cloned("6-fix", "--depth", "1").run("polygrain", "audit")
    assert "shallow clone: nothing before" in done.stdout
