"""The record of a real build: dvc.yaml, dvc.lock and the published copies."""

import csv
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from polygrain.cli.claims import current_stages, recorded_targets, short_table
from polygrain.config.project import Project
from polygrain.config.tables import Table
from polygrain.provenance.checklock import is_marked_stale
from polygrain.provenance.pipeline import recorded_entries

SMOKE = "reports/smoke-seeds1/table1.pdf"
RUN = "runs/smoke/fashion-mnist/simclr/base/seed0"
REPOSITORY = Project(Path(__file__).resolve().parents[2])

pytestmark = pytest.mark.workflow


@pytest.fixture
def copied(recorded, tmp_path):
    """A private copy of the recorded checkout."""
    return type(recorded)(Path(shutil.copytree(recorded.root, tmp_path / "recorded", symlinks=True)))


def test_dvc_yaml_lists_the_jobs_that_snakemake_reports(recorded):
    """Compared with Snakemake's own summary, not with the code that generated the file."""
    summary = recorded.run("snakemake", "--detailed-summary", SMOKE).stdout
    reported = {}
    for row in csv.DictReader(io.StringIO(summary), delimiter="\t"):
        reported[row["output_file"]] = set(row["input-file(s)"].split(",")) - {"-", ""}
    # dvc.lock holds the stages as DVC itself resolved them from dvc.yaml
    locked = yaml.safe_load((recorded.root / "dvc.lock").read_text())["stages"]
    stages = {name: stage for name, stage in locked.items() if "deps" in stage}
    kept = {output["path"] for name, stage in locked.items() if name not in stages for output in stage["outs"]}
    assert kept == {path for stage in stages.values() for path in stage["params"]}
    # the other recorded tables of this repository stay on record
    stages = {name: stage for name, stage in stages.items() if stage["outs"][0]["path"] in reported}
    assert {output["path"] for stage in stages.values() for output in stage["outs"]} == set(reported)
    for stage in stages.values():
        inputs = {*(file["path"] for file in stage["deps"]), *stage["params"]}
        for output in stage["outs"]:
            assert reported[output["path"]] == inputs, output["path"]


def test_recording_leaves_nothing_to_do_and_touches_no_git_file_but_its_own(recorded):
    assert recorded.planned() == {}
    changed = recorded.run("git", "status", "--porcelain", "--untracked-files=all").stdout.splitlines()
    stale = is_marked_stale(REPOSITORY.root / "reports/published/table1.md")  # then the own tables are dropped
    own_copy = re.compile(r"README\.md|reports/published/(curves/cpu/.*|[a-z0-9-]+\.[a-z]+)")
    names = [line[3:] for line in changed if not (stale and own_copy.fullmatch(line[3:]))]
    copies = [f"reports/published/smoke-seeds1/table1.{kind}" for kind in ("csv", "md", "pdf", "tex")]
    crate = "reports/published/smoke-seeds1/ro-crate-metadata.json"
    trainings = ("mgc", "mncl", "mugs", "simclr", "smog", "supervised", "wcl")
    curves = [f"reports/published/curves/smoke/fashion-mnist/{method}/base/seed0.csv" for method in trainings]
    assert sorted(names) == sorted(["dvc.lock", "dvc.yaml", *copies, *curves, crate])
    # the repository's own table stays on record, though nothing of it is here
    stages = yaml.safe_load((recorded.root / "dvc.lock").read_text())["stages"]
    own = {name for name, stage in stages.items() if "/smoke/" in stage["cmd"] or "smoke-seeds1" in stage["cmd"]}
    told = recorded.run("dvc", "status").stdout.splitlines()
    changed = {line.rstrip(":") for line in told if line.endswith(":") and not line.startswith("\t")}
    assert len(own) > 40
    assert not changed & own
    assert stale or "table1-reports" in changed
    assert recorded.run("polygrain", "check-lock", SMOKE).stdout.strip().endswith("holds")


def test_with_symlinks_to_the_cache_nothing_runs_again_either(copy_of_built):
    checkout = copy_of_built()
    checkout.run("dvc", "config", "cache.type", "symlink")
    checkout.run("polygrain", "record", SMOKE)
    assert (checkout.root / RUN / "checkpoint.safetensors").is_symlink()
    assert checkout.planned() == {}


def test_a_result_edited_by_hand_is_noticed(copied):
    path = copied.root / RUN / "results/linear.json"
    text = path.read_text()
    path.unlink()
    path.write_text(text.replace("0.", "0.9", 1))
    done = copied.run("polygrain", "record", SMOKE, check=False)
    assert done.returncode == 2
    assert f"{RUN}/results/linear.json: edited by hand" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    done = copied.run("polygrain", "check-lock", SMOKE, check=False)
    assert done.returncode == 1
    assert f"{RUN}/results/linear.json: edited by hand" in done.stdout


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("params/method/simclr.yaml", "temperature: 0.2", "temperature: 0.7", "temperature"),
        (
            "src/polygrain/methods/simclr.py",
            "METHOD = SimCLR",
            "CHANGED = 1\nMETHOD = SimCLR",
            "code/pretrain.json changed",
        ),
        ("requirements.lock", "torch==", "torch==9.", "environment/pretrain.json changed"),
    ],
)
def test_a_change_since_the_record_is_told_without_training(copied, file, old, new, words):
    path = copied.root / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    done = copied.run("polygrain", "check-lock", SMOKE, check=False)
    assert done.returncode == 1
    assert words in done.stdout


def test_a_stale_table_is_marked_and_the_mark_goes_with_the_change(copied):
    path = copied.root / "params/method/simclr.yaml"
    text = path.read_text()
    path.write_text(text.replace("temperature: 0.2", "temperature: 0.7"))
    marked = copied.run("polygrain", "check-lock", "--mark", SMOKE)
    assert marked.stdout.strip().endswith("marked stale")
    table = copied.root / "reports/published/smoke-seeds1/table1.md"
    assert table.read_text().startswith("> **Stale:**")
    path.write_text(text)
    copied.run("polygrain", "check-lock", "--mark", SMOKE)
    assert not table.read_text().startswith("> **Stale:**")
    assert copied.run("polygrain", "check-lock", SMOKE).stdout.strip().endswith("holds")


def test_a_published_copy_that_is_not_the_recorded_output_is_told(copied):
    path = copied.root / "reports/published/smoke-seeds1/table1.csv"
    path.write_text(path.read_text().replace("SimCLR", "SimCLR+"))
    done = copied.run("polygrain", "check-lock", SMOKE, check=False)
    assert done.returncode == 1
    assert "published/smoke-seeds1/table1.csv" in done.stdout


def test_the_readme_shows_the_published_table():
    readme = (REPOSITORY.root / "README.md").read_text()
    shown = readme.partition("<!-- table1 -->\n")[2].partition("<!-- /table1 -->")[0]
    assert shown == short_table(REPOSITORY, Table("table1"))
    assert sum("±" in line for line in shown.splitlines()) == 6  # five methods and SimCLR


def test_the_claim_in_this_repository_stands():
    """The published table belongs to the code and params beside it, or says that it is stale."""
    command = [sys.executable, "-m", "polygrain.cli.main", "check-lock"]
    done = subprocess.run(command, cwd=REPOSITORY.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lock = yaml.safe_load((REPOSITORY.root / "dvc.lock").read_text())
    if not is_marked_stale(REPOSITORY.root / "reports/published/table1.md"):
        jobs = current_stages(REPOSITORY, recorded_targets(REPOSITORY))
        assert set(lock["stages"]) == {name for name, _ in recorded_entries(jobs)}
