"""A recorded run at smoke scale, and what attesting says when the code under it changes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from packing import pack_noise
from written_past import entry, lock_text

from polygrain.attest.evidence import last_step
from polygrain.attest.run import Verdict, attest
from polygrain.config.project import Project
from polygrain.config.stages import stage_of, stages_behind
from polygrain.provenance.attestations import FILE, attested, read_attestations
from polygrain.provenance.hashes import md5_file
from polygrain.provenance.lock import read_lock
from polygrain.provenance.yaml12 import load_yaml
from polygrain.report.cells import Footer

HERE = Path(__file__).resolve().parents[2]
RUN = "runs/smoke/fashion-mnist/simclr/base/seed0"
LOSS, LOOP = "src/polygrain/nn/contrastive.py", "src/polygrain/train/run.py"


def git(root: Path, *arguments: str) -> str:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    return subprocess.run(
        ["git", *arguments], cwd=root, env=environment, check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A repository with one run on record, and its outputs in place."""
    root = tmp_path_factory.mktemp("recorded") / "project"
    for name in ("src", "params", "workflow"):
        shutil.copytree(HERE / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("Snakefile", "requirements.lock"):
        shutil.copy2(HERE / name, root / name)
    (root / ".gitignore").write_text("__pycache__\n/data\n/runs\n/records\n/logs\n/.snakemake\n")
    pack_noise(root / "data/fashion-mnist")
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    command = [sys.executable, "-m", "polygrain.cli.main", "pretrain", RUN]
    subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True)
    stage = stage_of(Project(root), "pretrain", RUN)
    files = [*stage.inputs, stage.code_path, stage.environment_path]
    content = {
        "cmd": f"snakemake --cores all {stage.outputs[0]}",
        "deps": [entry(str(path), md5_file(root / path)) for path in files],
        "params": {str(stage.config_path): _dotted(load_yaml(root / stage.config_path))},
        "outs": [entry(str(path), md5_file(root / path)) for path in stage.outputs],
    }
    (root / "dvc.lock").write_text(lock_text({stage.name: content}))
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "--message", "state")
    return Project(root)


def _dotted(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    leaves: dict[str, object] = {}
    for key, value in values.items():
        leaves |= _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return leaves


def judged(project: Project, *edits: tuple[str, str, str]) -> Verdict:
    """What is said of the run after edits of the sources: file, old text, new text; a new file has no old text."""
    for path, old, new in edits:
        text = (project.root / path).read_text() if old else ""
        assert old in text
        (project.root / path).write_text(text.replace(old, new, 1) if old else new)
    (verdict,) = attest(project, [stage_of(project, "pretrain", RUN)], commit="", least=5, jobs=2)
    return verdict


@pytest.fixture(autouse=True)
def _clean(recorded: Project) -> Iterator[None]:
    yield
    git(recorded.root, "checkout", "--quiet", ".")
    git(recorded.root, "clean", "--quiet", "--force", "-d")


def test_what_was_not_changed_is_current_and_what_else_changed_is_refused(recorded):
    assert judged(recorded).state == "current"
    metrics = recorded.root / RUN / "metrics.jsonl"
    content = metrics.read_bytes()
    metrics.write_bytes(content + b"\n")
    assert "not in place as recorded" in judged(recorded, (LOSS, ".mean()", ".mean() * 1")).objections[0]
    metrics.write_bytes(content)
    verdict = judged(recorded, ("params/scale/smoke.yaml", "state_every: 2", "state_every: 3"))
    assert verdict.objections == [f"pretrain.state_every in {RUN}/config/pretrain.yaml changed"]
    assert not (recorded.root / FILE).exists()


def test_a_refactoring_is_attested_once_and_then_counts(recorded):
    verdict = judged(
        recorded,
        ("src/polygrain/nn/stepping.py", "", "def next_step(step: int) -> int:\n    return step + 1\n"),
        (LOOP, "import Clock\n", "import Clock\nfrom polygrain.nn.stepping import next_step\n"),
        (LOOP, "self.step += 1", "self.step = next_step(self.step)"),
    )
    assert (verdict.state, verdict.objections) == ("attested", [])
    (said,) = read_attestations(recorded.root)
    assert said.commit == git(recorded.root, "rev-parse", "HEAD").strip()
    assert said.evidence["first_steps"] == 13
    assert said.evidence["steps"] > 13
    assert said.evidence["changed_lines"] == 2
    stage = stage_of(recorded, "pretrain", RUN)
    locked = read_lock(recorded.root).stages[stage.name]
    now = {str(path): md5_file(recorded.root / path) for path in (stage.code_path, stage.environment_path)}
    assert attested([said], locked.outputs, locked.dependencies, now) == set(now)
    table = stages_behind(recorded, ["reports/smoke-seeds1/table1.pdf"])[-1]
    assert table.config["attestations"] == 1
    again = judged(recorded)
    assert (again.state, again.attestation) == ("attested", None)


def test_another_loss_and_a_path_that_the_first_steps_do_not_reach_are_refused(recorded):
    late = "        if self.step == 10**6:\n            self.step = 0\n"
    verdict = judged(
        recorded,
        (LOSS, "- positive_R).mean()", "- 1.0001 * positive_R).mean()"),
        (LOOP, "        self.step += 1\n", f"        self.step += 1\n{late}"),
    )
    assert verdict.state == "refused"
    said = "\n".join(verdict.objections)
    assert f"{RUN}/checkpoint.safetensors: the new code makes other bytes than the old code" in said
    assert f"{RUN}/metrics.jsonl: from step 0 on the new code gives other values" in said
    assert "`self.step = 0` (changed in Training.take_step): changed, and never ran" in said
    assert not (recorded.root / FILE).exists()


def test_the_first_steps_end_at_a_line_behind_an_epoch():
    settings = {"images": 12000, "batch": 128, "log_every": 50}
    assert last_step({"pretrain": settings}, 10) == 100
    assert last_step({"pretrain": settings}, 101) == 150
    assert last_step({"pretrain": {**settings, "log_every": 1}}, 10) == 94


def test_a_footer_counts_attestations_where_there_are_any():
    footer = Footer("cpu", (0, 1), "d" * 64, "c" * 64)
    assert replace(footer, attestations=27).text == f"{footer.text} · 27 attested"
