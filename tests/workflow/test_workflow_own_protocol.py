"""The section 'Add your own protocol' of evaluate/README.md, done to the letter in a copy of a built checkout."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from polygrain.report.statistics import difference

REPOSITORY = Path(__file__).resolve().parents[2]
SECTION = (REPOSITORY / "src/polygrain/evaluate/README.md").read_text().split("\n## Add your own protocol\n")[1]
FILES = dict(re.findall(r"^`([\w/.-]+)`\n\n```(?:python|yaml)\n(.*?)```", SECTION, re.DOTALL | re.MULTILINE))
COLUMNS = re.findall(r"^- (\{id: .*\})$", SECTION, re.MULTILINE)
TABLE = """\
# Three rows and the section's columns.
# Cost: seconds.
name: Own
title: Own
caption: Two protocols of our own.
dataset: fashion-mnist
seeds: [0, 1, 2]
groups:
  - label: Controls
    rows:
      - {label: Random, method: random}
  - label: Learned
    best: true
    rows:
      - {label: SimCLR, method: simclr}
      - {label: WCL, method: wcl}
columns:
  - {id: knn, label: k-NN, protocol: knn, value: fashion-mnist/top1}
"""
COMPARE = "compare: {columns: [means, tuned], reference: [Random], level: 0.05}\n"
METHODS = {"Random": "random", "SimCLR": "simclr", "WCL": "wcl"}

pytestmark = pytest.mark.workflow


@pytest.fixture
def project(copy_of_built):
    checkout = copy_of_built()
    for name, text in FILES.items():
        assert not (checkout.root / name).exists(), f"{name} is in the package already: take another example"
        (checkout.root / name).write_text(text)
    columns = "".join(f"  - {column}\n" for column in COLUMNS)
    (checkout.root / "params/table/own.yaml").write_text(TABLE + columns + COMPARE)
    return checkout


def test_two_protocols_of_two_files_each_are_printed_as_they_say(project):
    assert sorted(FILES) == [
        "params/evaluate/class-means.yaml",
        "params/evaluate/finetune.yaml",
        "src/polygrain/evaluate/class_means.py",
        "src/polygrain/evaluate/finetune.py",
    ]
    code = [name for name in FILES if name.endswith(".py")]
    project.run("bash", "-c", f"ruff check {' '.join(code)} && ruff format --check {' '.join(code)} && lint-imports")
    assert project.planned() == {}, "protocols that no column uses ask for nothing"
    one_seed = "reports/smoke-seeds1/own.pdf"
    assert project.planned(one_seed) == {"evaluate": 6, "table": 1}, "nothing but the new protocols"
    table = "reports/smoke/own.pdf"  # differences need three seeds
    project.build(table)
    assert project.planned(table) == {}

    cells = read_cells(project.root / "reports/smoke/own.csv")
    for label in METHODS:
        error, likelihood = cells[label, "class means"], cells[label, "fine-tuned"]
        wrong = 100 * scores(project, label, "class-means", "error").mean(axis=1)
        assert (error["unit"], error["text"]) == ("%", f"{wrong.mean():.2f} ± {wrong.std(ddof=1):.2f}")
        found = scores(project, label, "finetune", "likelihood").mean(axis=1)
        assert (likelihood["unit"], likelihood["text"]) == ("nats", f"{found.mean():.3f} ± {found.std(ddof=1):.3f}")
        assert found.mean() < 0
    measured = (("class means", -1, "class-means", "error"), ("fine-tuned", 1, "finetune", "likelihood"))
    for column, sign, protocol, metric in measured:
        numbers = {label: sign * float(cells[label, column]["mean"]) for label in ("SimCLR", "WCL")}
        bold = {label for label in numbers if cells[label, column]["best"] == "1"}
        alike = difference(*(scores(project, label, protocol, metric) for label in numbers)).p >= 0.05
        assert bold == (set(numbers) if alike else {max(numbers, key=lambda label: numbers[label])})
        for label in numbers:
            own = cells[label, column]
            assert own["reference"] == "Random"
            gap = float(own["mean"]) - float(cells["Random", column]["mean"])
            assert float(own["difference"]) == pytest.approx(gap, abs=2e-4)
            arrow = "" if float(own["p_holm"]) >= 0.05 else "↑" if sign * gap > 0 else "↓"
            assert arrow in shown(project, label)[column]
            assert {"↑": "↓", "↓": "↑", "": "↑"}[arrow] not in shown(project, label)[column]
    text = (project.root / "reports/smoke/own.md").read_text()
    assert "class means in %: lower is better; Fashion-MNIST fine-tuned in nats: higher is better." in text


def read_cells(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return {(line["row"], line["column"]): line for line in csv.DictReader(stream)}


def scores(project, label: str, protocol: str, metric: str) -> np.ndarray:
    """What each seed scored on each test image of the one data set; its mean is the number."""
    found = []
    for seed in (0, 1, 2):
        folder = project.root / f"runs/smoke/fashion-mnist/{METHODS[label]}/base/seed{seed}/results"
        number = json.loads((folder / f"{protocol}.json").read_text())["values"][f"fashion-mnist/{metric}"]
        with np.load(folder / f"{protocol}.npz") as arrays:
            found.append(arrays[f"fashion-mnist/{metric}.score"].astype(float))
            assert found[-1].mean() == pytest.approx(number)
            assert len(arrays["fashion-mnist.index"]) == 512
    return np.stack(found)


def shown(project, label: str) -> dict[str, str]:
    """A row of the Markdown table by the last line of its column heads."""
    lines = [line for line in (project.root / "reports/smoke/own.md").read_text().splitlines() if line.startswith("|")]
    heads, row = lines[0].split("|"), next(line for line in lines if line.startswith(f"| {label}"))
    return {head.rpartition("<br>")[2].strip(): cell for head, cell in zip(heads, row.split("|"), strict=True)}
