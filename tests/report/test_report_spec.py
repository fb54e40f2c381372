"""A wrong table configuration or reported file is one line that names the key; the table of the repository is right."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from polygrain.provenance.errors import UserError
from polygrain.report.reported import HEADER, read_reported
from polygrain.report.spec import clean, parse

Config = dict[str, Any]
PARAMS = Path(__file__).parents[2] / "params"


def rows(config: Config) -> list[Any]:
    return config["groups"][0]["rows"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("title"), "key 'title' is missing"),
        (lambda c: c.update(seeds="0"), "key 'seeds' must be a list, not '0'"),
        (lambda c: c.update(seeds=[True, False]), r"key 'seeds\.0' must be a whole number, not True"),
        (lambda c: c["columns"][0].update(lable="x"), r"unknown key 'columns\.0\.lable'; did you mean 'label'"),
        (lambda c: c["columns"][0].pop("value"), "column 'knn' needs exactly one of"),
        (lambda c: c["columns"][2].update(reported=True), "column 'passes' needs exactly one of"),
        (lambda c: c["columns"][1].update(id="knn"), "column id 'knn' occurs more than once"),
        (lambda c: rows(c)[1].update(label="Random"), "row label 'Random' occurs more than once"),
        (lambda c: rows(c)[0].update(runs=[]), "row 'Random' has 0 runs for 3 seeds"),
        (
            lambda c: rows(c)[0]["facts"].update(images_seen=-1),
            r"'groups\.0\.rows\.0\.facts\.images_seen' must be at least 0, not -1",
        ),
        (lambda c: c["compare"].update(reference=["Randon"]), "no row 'Randon'; did you mean 'Random'"),
        (lambda c: c["compare"].update(columns=["knm"]), "no column 'knm'; did you mean 'knn'"),
        (lambda c: c["compare"].update(columns=["passes"]), "'passes' is no test value of a protocol"),
        (lambda c: c["columns"][0].update(split="validation"), "'knn' is no test value of a protocol"),
        (lambda c: c["columns"][0].update(mean_of=["linear"]), "column 'knn' needs exactly one of"),
        (lambda c: c["columns"][2].update(fact="", mean_of=["lin"]), "'passes': mean_of: no column 'lin'"),
        (lambda c: c.update(order_by="knm"), "order_by: no column 'knm'; did you mean 'knn'"),
        (lambda c: c["compare"].update(level=2.0), r"'compare\.level' must be below 1, not 2.0"),
        (lambda c: c["compare"].update(columns=[]), r"'compare\.columns' must be a list of at least 1"),
        (lambda c: c["reported"][0].update(row="Plan"), "no row 'Plan'; did you mean 'Plain'"),
        (lambda c: c["reported"][0].update(column="knn"), "column 'knn' is measured"),
        (lambda c: c.update(groups=[3]), r"key 'groups\.0' must be keys with values, not 3"),
        (lambda c: c.update(caption="a\u202eb"), r"invisible character U\+202E"),
    ],
)
def test_what_is_wrong_is_named(config: Config, change: Callable[[Config], Any], message: str) -> None:
    change(config)
    with pytest.raises(UserError, match=message):
        parse(config)


def test_whitespace_of_folded_text_is_collapsed() -> None:
    assert clean("caption", " two\n  lines \t") == "two lines"
    with pytest.raises(UserError, match=r"U\+200B"):
        clean("caption", "a\u200bb")


GOOD = "a,A,RN,D,linear,top-1,71.20,%,README\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("row,method\n", "the first line must be row,method,backbone"),
        (",".join(HEADER) + "\na,b\n", "line 2: needs 9 filled columns"),
        (",".join(HEADER) + "\n" + GOOD.replace("README", ""), "line 2: needs 9 filled columns"),
        (",".join(HEADER) + "\n" + GOOD + GOOD, "line 3: a second record 'a'"),
        (",".join(HEADER) + "\n" + GOOD.replace("71.20", "high"), "line 2: value 'high'"),
        (",".join(HEADER) + "\n" + GOOD.replace("71.20", "NaN"), "line 2: value 'NaN'"),
        (",".join(HEADER) + "\n" + GOOD.replace("71.20", "712"), "line 2: value '712'"),
        (",".join(HEADER) + "\n" + GOOD.replace("%", "points"), "unit 'points'"),
    ],
)
def test_a_wrong_reported_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_reported([path])


def test_a_reported_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv: not found"):
        read_reported([tmp_path / "none.csv"])


def test_reported_values_keep_the_decimals_of_the_source(tmp_path: Path) -> None:
    path = tmp_path / "good.csv"
    path.write_text(",".join(HEADER) + "\n" + GOOD + "b,A,RN,D,linear,top-1,0.8460,fraction,README\n")
    assert {name: record.text for name, record in read_reported([path]).items()} == {"a": "71.20", "b": "84.60"}


@pytest.mark.parametrize("path", sorted((PARAMS / "table").glob("*.yaml")), ids=lambda path: path.stem)
def test_tables_of_the_repository(path: Path) -> None:
    """Every table parses once its runs are filled in, and every citation has its record."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    for group in config["groups"]:
        for row in group["rows"]:
            row |= {"runs": [f"seed{seed}" for seed in config["seeds"]], "inputs": {}, "facts": {}}
    spec = parse({**config, "scale": "cpu", "manifests": []})
    records = read_reported(PARAMS / "reported" / name for name in spec.reported_sources)
    assert {cited.record for cited in spec.reported} <= set(records)


def test_reported_files_of_the_repository() -> None:
    paths = sorted((PARAMS / "reported").glob("*.csv"))
    lines = sum(len(list(csv.reader(path.read_text().splitlines()))) - 1 for path in paths)
    assert len(read_reported(paths)) == lines > 0
