"""The numbers that a method's header gives are those of the published table."""

import csv
import importlib
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = (("Fashion-MNIST", "linear"), ("Animal-MNIST", "linear"))

with (ROOT / "reports/published/table1.csv").open(encoding="utf-8", newline="") as stream:
    CELLS = {(row["row"], row["column_group"], row["column"]): row["text"] for row in csv.DictReader(stream)}
GROUPS = yaml.safe_load((ROOT / "params/table/table1.yaml").read_text())["groups"]
LABELS = {row["method"]: row["label"] for group in GROUPS for row in group["rows"] if "variant" not in row}
PUBLISHED = [method for method, label in LABELS.items() if (label, *COLUMNS[0]) in CELLS]


@pytest.mark.parametrize("method", PUBLISHED)
def test_a_header_gives_the_published_numbers(method: str) -> None:
    expected = [CELLS[LABELS[method], *column].removesuffix(" ± 0.0") for column in COLUMNS]
    header = importlib.import_module(f"polygrain.methods.{method}").__doc__ or ""
    measured = header.partition("Measured (reports/table1.pdf):")[2]
    assert re.findall(r"\d+\.\d(?: ± \d+\.\d)?", measured)[:2] == expected
