"""Columns that print a setting of the runs, and comparisons within a group."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from polygrain.provenance.errors import UserError
from polygrain.report.build import filled_table
from polygrain.report.cells import Cell, TableContent
from polygrain.report.pdf import pdf_source, render_pdf
from polygrain.report.render import render_csv, render_latex, render_markdown
from polygrain.report.spec import parse
from polygrain.report.table import setting_text

Config = dict[str, Any]


def cells(table: TableContent, column: str) -> dict[str, Cell]:
    place = [known.id for known in table.columns].index(column)
    return {row.label: row.cells[place] for group in table.groups for row in group.rows}


@pytest.fixture
def with_grains(config: Config) -> Config:
    config["columns"].insert(0, {"id": "grains", "label": "grains", "setting": "method.grains"})
    settings = {"Random": [], "PCA": None, "Plain": ["instance"], "Group": ["local-group", "weak_class"]}
    for group in config["groups"]:
        for row in group["rows"]:
            if row["label"] in settings:
                row["settings"] = {"method.grains": settings[row["label"]]}
    return config


def test_a_setting_is_printed_as_text(with_grains: Config, project: Path) -> None:
    found = cells(filled_table(with_grains, project), "grains")
    assert {label: cell.text for label, cell in found.items()} == {
        "Random": "—",
        "PCA": "none",
        "Plain": "instance",
        "Group": "local-group, weak_class",
        "Cheap": "—",
    }
    assert found["Random"].notes == ()
    assert found["Cheap"].notes == ("Missing: the run has no method.grains.",)
    assert not any(cell.best or cell.comparison or cell.mean for cell in found.values())


def test_text_stands_left_and_is_escaped(with_grains: Config, project: Path) -> None:
    table = filled_table(with_grains, project)
    assert "\n| :-- | :-- | --: | --: | --: | --: |\n" in render_markdown(table)
    assert "local-group, weak\\_class" in render_markdown(table)
    assert r"\begin{tabular}{@{}llr@{}lr@{}lrr@{}}" in render_latex(table)
    assert r"local-group, weak\_class" in render_latex(table)
    assert "align: (left, left, right, left, right, left, right, right)" in pdf_source(table)
    assert render_pdf(table).startswith(b"%PDF-")
    lines = [line for line in csv.DictReader(io.StringIO(render_csv(table))) if line["column"] == "grains"]
    assert [(line["unit"], line["mean"], line["text"]) for line in lines][2:4] == [
        ("", "", "instance"),
        ("", "", "local-group, weak_class"),
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(True, "on"), (False, "off"), (None, "none"), (0.5, "0.5"), ([1, [2, 3]], "1, 2, 3"), ([], "")]
)
def test_settings_for_people(value: Any, text: str) -> None:
    assert setting_text(value) == text


def test_a_column_has_one_kind_of_content(with_grains: Config) -> None:
    with_grains["columns"][0]["fact"] = "images_seen"
    with pytest.raises(UserError, match="column 'grains' needs exactly one of"):
        parse(with_grains)


def test_rows_are_compared_within_their_group(config: Config, project: Path) -> None:
    config["compare"] |= {"reference": ["PCA", "Cheap"], "by_group": True}
    table = filled_table(config, project)
    found = cells(table, "knn")
    references = {label: cell.comparison.reference for label, cell in found.items() if cell.comparison}
    assert references == {"Random": "PCA", "Plain": "Cheap", "Group": "Cheap"}
    assert cells(table, "linear")["Plain"].arrow == "↓"
    line = next(line for line in table.legend if line.startswith("↑ ↓"))
    assert "worse than the reference row of its group (PCA; Cheap), p < 0.05" in line
    assert "6 comparisons" in line


def test_the_rule_for_bold_names_groups_or_says_each(config: Config, project: Path) -> None:
    rule = (
        "and every row that the same test cannot tell from it (level 0.05, Holm in its column), among at least two rows"
    )
    assert any(f"within “Methods”, {rule}" in line for line in filled_table(config, project).legend)
    config["groups"][0]["best"] = True
    assert any(f"within each group, {rule}" in line for line in filled_table(config, project).legend)
    config["compare"] = None
    assert any("within each group, among" in line for line in filled_table(config, project).legend)


def test_a_group_without_reference_is_not_compared(config: Config, project: Path) -> None:
    config["compare"] |= {"reference": ["Cheap"], "by_group": True}
    found = cells(filled_table(config, project), "knn")
    assert {label for label, cell in found.items() if cell.comparison} == {"Plain", "Group"}


def test_a_group_has_one_reference_at_most(config: Config) -> None:
    config["compare"]["by_group"] = True
    with pytest.raises(UserError, match="by_group, but 'Controls' has several reference rows; keep one"):
        parse(config)
