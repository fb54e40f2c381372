"""The section 'Add your own method', done to the letter in a copy of the project with the real verbs."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from packing import pack_noise
from safetensors.numpy import load_file

REPOSITORY = Path(__file__).resolve().parents[1]
SECTION = (
    (REPOSITORY / "src/polygrain/methods/README.md")
    .read_text()
    .split("\n## Add your own method\n")[1]
    .split("\n## ")[0]
)
FILES = dict(re.findall(r"^`([\w/.-]+)`[^\n]*\n\n```(?:python|yaml)\n(.*?)```", SECTION, re.DOTALL | re.MULTILINE))
COMMANDS = re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)[0].splitlines()
METHOD = "vicreg"
CPU, SMOKE = (f"runs/{scale}/fashion-mnist/{METHOD}/base/seed0" for scale in ("cpu", "smoke"))
YAML = f"params/method/{METHOD}.yaml"


@dataclass(frozen=True)
class Copy:
    """A copy of the project, and commands in it."""

    root: Path

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(self.root / "src")}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        return subprocess.run(
            ["bash", "-c", command], cwd=self.root, env=environment, capture_output=True, text=True, timeout=300
        )

    def good(self, command: str) -> str:
        done = self.run(command)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A copy with the section's files, and noise for data."""
    root = tmp_path_factory.mktemp("own") / "project"
    root.mkdir()
    for name in ("params", "src", "workflow", "tests"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("Snakefile", "pyproject.toml", "requirements.lock", "README.md"):
        shutil.copy2(REPOSITORY / name, root / name)
    for name, text in FILES.items():
        assert not (root / name).exists(), f"{name} is in the package already: take another example"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    pack_noise(root / "data" / "fashion-mnist")
    return Copy(root)


def test_it_takes_fewer_lines_than_it_says_and_a_hundred() -> None:
    assert sorted(FILES) == [
        "params/method/vicreg.yaml",
        "params/variant/vicreg/embedding-512.yaml",
        "src/polygrain/methods/vicreg.py",
    ]
    lines = sum(len(text.splitlines()) for text in FILES.values())
    assert lines < 100
    assert f"{lines} lines in all" in SECTION


def test_it_keeps_the_rules_of_the_package(project: Copy) -> None:
    path = "src/polygrain/methods/vicreg.py"
    project.good(f"ruff check {path} && ruff format --check {path} && lint-imports")
    for name in FILES:
        assert name.endswith(".py") or "# Cost" in (project.root / name).read_text()


def test_show_names_every_value_and_its_origin(project: Copy) -> None:
    said = project.good(COMMANDS[0])
    assert COMMANDS[0] == f"polygrain show {CPU}"
    for key, value in {
        "name": METHOD,
        "encoder_passes": "6",
        "values.hidden": "256",
        "values.covariance": "1.0",
    }.items():
        line = next(line for line in said.splitlines() if line.startswith(f"method.{key} "))
        assert value in line
        assert f"{YAML}:" in line
    cell = project.good(COMMANDS[0].replace("base", "embedding-512"))
    line = next(line for line in cell.splitlines() if line.startswith("method.values.embedding "))
    assert "512" in line
    assert "params/variant/vicreg/embedding-512.yaml:4" in line


def test_it_trains_with_the_real_verb(project: Copy) -> None:
    assert COMMANDS[1] == f"polygrain pretrain {SMOKE}"
    project.good(COMMANDS[1])
    run = project.root / SMOKE
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["instance"] == lines[-1]["loss"] < lines[0]["loss"]
    assert all(np.isfinite(list(line.values())).all() and line["gradient_norm"] > 0 for line in lines)
    names = load_file(run / "checkpoint.safetensors")
    assert any(name.startswith("backbone.") for name in names)
    assert any(name.startswith("head.") for name in names)
    code = json.loads((run / "code/pretrain.json").read_text())
    assert "polygrain.methods.vicreg" in code, "an edit of the method must make its runs stale"
    record = json.loads((project.root / "records" / SMOKE / "pretrain.json").read_text())
    assert "polygrain.methods.vicreg" in record["modules"]


@pytest.mark.workflow
def test_the_workflow_knows_its_jobs(project: Copy) -> None:
    assert COMMANDS[2].startswith("snakemake --cores all runs/cpu/fashion-mnist/vicreg/{base,embedding-512}/")
    said = project.good(COMMANDS[2].replace("--cores all", "--cores 1 -n"))
    jobs = dict(re.findall(r"^(pretrain|features|evaluate) +(\d+)$", said, re.MULTILINE))
    assert jobs == {"pretrain": "2", "features": "2", "evaluate": "2"}


@pytest.mark.workflow
def test_a_row_puts_it_into_the_table(project: Copy) -> None:
    row = re.search(r"^`(- \{label: VICReg.*\})`", SECTION, re.MULTILINE)
    assert row is not None
    before = project.good("polygrain plan reports/table1.pdf")
    table = project.root / "params/table/table1.yaml"
    text = table.read_text()
    neighbour = next(line for line in text.splitlines() if "method: simclr" in line)
    indent = neighbour[: len(neighbour) - len(neighbour.lstrip())]
    table.write_text(text.replace(neighbour, f"{neighbour}\n{indent}{row[1]}"))
    try:
        after = project.good("polygrain plan reports/table1.pdf")
    finally:
        table.write_text(text)
    jobs = [int(re.search(r"^pretrain +(\d+) ", said, re.MULTILINE)[1]) for said in (before, after)]  # type: ignore[index]
    assert jobs[1] == jobs[0] + 3, "one per seed"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "covariance: 1.0",
            "covarance: 1.0",
            "unknown key 'method.values.covarance'; did you mean 'covariance'?",
        ),
        (", covariance: 1.0", "", "key 'method.values.covariance' (float) is missing"),
        ("hidden: 256", "hidden: wide", "key 'method.values.hidden' must be int, not 'wide'"),
        ("grains: [instance]", "grains: [instances]", "instances"),
        ("name: vicreg", "name: vicre", "no module 'vicre' in polygrain.methods"),
    ],
)
def test_a_mistake_in_its_file_is_one_clear_line(project: Copy, old: str, new: str, words: str) -> None:
    path = project.root / YAML
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    try:
        done = project.run(f"polygrain show {SMOKE}")
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
        assert done.stderr.startswith("polygrain show: ")
        assert words in done.stderr
    finally:
        path.write_text(text)


@pytest.mark.workflow
def test_the_tests_for_any_method_find_it(project: Copy) -> None:
    assert COMMANDS[3] == f"pytest -k {METHOD} tests/train tests/methods/test_methods_backbones.py"
    said = project.good(f"{COMMANDS[3]} -p no:cacheprovider --verbose")
    passed = re.findall(rf"::(test_\w+)\[.*{METHOD}.*\] PASSED", said)
    for name in (
        "test_a_run_is_the_same_bits_twice_and_in_pieces",
        "test_labels_do_not_touch",
        "test_a_cell_takes_steps",
        "test_a_method_trains_either_family_on_small_images",
        "test_a_method_trains_either_family_at_224_px",
    ):
        assert any(each.startswith(name) for each in passed), name
