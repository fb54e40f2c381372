"""The section 'Add your own protocol' of evaluate/README.md, done to the letter in a copy of a built checkout."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

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
seeds: [0]
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
    table = "reports/smoke/own.pdf"
    assert project.planned(table) == {"evaluate": 6, "table": 1}, "nothing but the new protocols"
    project.build(table)
    assert project.planned(table) == {}

    cells = read_cells(project.root / "reports/smoke/own.csv")
    for label in METHODS:
        error, likelihood = cells[label, "class means"], cells[label, "fine-tuned"]
        assert (error["unit"], error["text"]) == ("%", f"{100 * value(project, label, 'class-means', 'error'):.2f}")
        found = value(project, label, "finetune", "likelihood")
        assert (likelihood["unit"], likelihood["text"]) == ("nats", f"{found:.3f}")
        assert found < 0
    for column, sign in (("class means", -1), ("fine-tuned", 1)):
        numbers = {label: sign * float(cells[label, column]["text"]) for label in ("SimCLR", "WCL")}
        bold = {label for label in numbers if cells[label, column]["best"] == "1"}
        assert bold == {label for label, number in numbers.items() if number == max(numbers.values())}
        for label in numbers:  # arrows, which need three seeds: tests/report/test_report_table.py
            assert cells[label, column]["reference"] == ""
            assert not {"↑", "↓"} & set(shown(project, label)[column])
    text = (project.root / "reports/smoke/own.md").read_text()
    assert "No difference is tested: that needs 3 seeds." in text
    assert "class means in %: lower is better; Fashion-MNIST fine-tuned in nats: higher is better." in text


def read_cells(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return {(line["row"], line["column"]): line for line in csv.DictReader(stream)}


def value(project, label: str, protocol: str, metric: str) -> float:
    """The number of the one data set, which is the mean of the scores of its test images."""
    folder = project.root / f"runs/smoke/fashion-mnist/{METHODS[label]}/base/seed0/results"
    number = json.loads((folder / f"{protocol}.json").read_text())["values"][f"fashion-mnist/{metric}"]
    with np.load(folder / f"{protocol}.npz") as arrays:
        assert arrays[f"fashion-mnist/{metric}.score"].mean() == pytest.approx(number)
        assert len(arrays["fashion-mnist.index"]) == 512
    return float(number)


def shown(project, label: str) -> dict[str, str]:
    """A row of the Markdown table by the last line of its column heads."""
    lines = [line for line in (project.root / "reports/smoke/own.md").read_text().splitlines() if line.startswith("|")]
    heads, row = lines[0].split("|"), next(line for line in lines if line.startswith(f"| {label}"))
    return {head.rpartition("<br>")[2].strip(): cell for head, cell in zip(heads, row.split("|"), strict=True)}
