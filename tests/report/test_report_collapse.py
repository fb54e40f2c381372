"""A collapsed run is marked in its row, with its seeds and what was measured; nobody else is."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polygrain.evaluate.result import Result
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import write_text
from polygrain.report.build import filled_table
from polygrain.report.cells import TableContent
from polygrain.report.pdf import pdf_source, render_pdf
from polygrain.report.render import render_csv, render_latex, render_markdown

Config = dict[str, Any]
HEALTHY = {"spread": 0.98, "rank": 9.5, "loss": 1.0}
LEGEND = (
    "Collapsed (spread below 0.1, effective rank below 2 or less than 5 % of groups or prototypes in use, at the last"
    " step)."
)


def log(project: Path, method: str, seed: int, *lines: Any) -> None:
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    write_text(project / f"runs/cpu/toy/{method}/base/seed{seed}/metrics.jsonl", text)


def judged(table: TableContent) -> dict[str, str]:
    return {row.label: row.collapsed for group in table.groups for row in group.rows if row.collapsed}


def test_a_collapsed_seed_is_named_with_its_values_in_every_format(config: Config, project: Path) -> None:
    log(project, "plain", 0, {"spread": 0.01, "rank": 1.0}, HEALTHY)  # in the beginning only
    log(project, "plain", 1, HEALTHY, {"spread": 0.034, "rank": 1.17})
    log(project, "group", 0, HEALTHY)
    log(project, "group", 1, HEALTHY)
    table = filled_table(config, project)
    assert judged(table) == {"Plain": "seed 1 (spread 0.034, rank 1.2)"}
    assert f"† {LEGEND} Plain: seed 1 (spread 0.034, rank 1.2)." in table.legend
    assert "| Plain<sup>†,c</sup> |" in render_markdown(table)
    assert r"Plain\textsuperscript{\dag{},c}" in render_latex(table)
    assert '[#"Plain";#mark[#"†,c";]],' in pdf_source(table)
    assert render_pdf(table).startswith(b"%PDF-")
    notes = {line[1]: line[-1] for line in csv.reader(io.StringIO(render_csv(table)))}
    assert "Collapsed: seed 1 (spread 0.034, rank 1.2)." in notes["Plain"]
    assert not any("Collapsed" in note for label, note in notes.items() if label != "Plain")


@pytest.mark.parametrize(
    ("last", "collapsed"),
    [
        ({"spread": 0.1, "rank": 2.0}, False),
        ({"spread": 0.0999, "rank": 9.0}, True),
        ({"spread": 0.9, "rank": 1.999}, True),
        ({"rank": 1.0}, True),
        ({"spread": 0.9, "rank": 9.0, "occupancy": 0.05}, False),
        ({"spread": 0.9, "rank": 9.0, "occupancy": 0.0363}, True),
        ({"spread": 0.9}, False),
        ({"spread": float("nan"), "rank": 9.0}, True),
        ({"weak_spread": 0.0, "weak_rank": 0.0, "accuracy": 0.1}, False),
    ],
)
def test_the_limits(config: Config, project: Path, last: dict[str, float], collapsed: bool) -> None:
    log(project, "plain", 0, last)
    assert bool(judged(filled_table(config, project))) is collapsed


def test_who_logs_nothing_is_not_judged_and_the_table_stays_as_it_is(config: Config, project: Path) -> None:
    before = [
        render(filled_table(config, project)) for render in (render_csv, render_markdown, render_latex, pdf_source)
    ]
    log(project, "random", 0)
    log(project, "plain", 0, HEALTHY)
    after = [
        render(filled_table(config, project)) for render in (render_csv, render_markdown, render_latex, pdf_source)
    ]
    assert before == after


def test_several_rows_share_one_legend(config: Config, project: Path) -> None:
    for method in ("plain", "group"):
        for seed in (0, 1):
            log(project, method, seed, {"spread": 0.0, "rank": 0.0})
    both = "seed 0 (spread 0, rank 0), seed 1 (spread 0, rank 0)"
    table = filled_table(config, project)
    assert judged(table) == {"Plain": both, "Group": both}
    assert f"† {LEGEND} Plain: {both}; Group: {both}." in table.legend
    assert "†,‡" in render_markdown(table)


@pytest.mark.parametrize("line", ["{", "[1]", "3", '{"spread": "high"}', '{"rank": null}'])
def test_a_malformed_last_line_names_its_file(config: Config, project: Path, line: str) -> None:
    log(project, "plain", 1, HEALTHY, line)
    with pytest.raises(UserError, match=r"plain/base/seed1/metrics\.jsonl: its last line is malformed"):
        filled_table(config, project)


def test_a_row_below_the_floor_has_collapsed_and_every_one_of_its_cells_says_so(
    config: Config, project: Path, make_result: Callable[..., Result]
) -> None:
    config["floor"] = {"row": "Random", "column": "knn"}
    for seed, right in enumerate((9, 10, 11)):  # Random: 10, 12, 11 of 40
        make_result(right, "knn").save(project / f"runs/cpu/toy/cheap/base/seed{seed}/results", "knn")
    table = filled_table(config, project)
    assert judged(table) == {"Cheap": "Toy k-NN worse than Random"}
    assert any("; or Random is better). Cheap: Toy k-NN worse than Random." in line for line in table.legend)
    shown = [line for line in render_markdown(table).splitlines() if line.startswith("| Cheap<sup>†")]
    assert len(shown) == 1
    assert shown[0].count("collapsed") == 2  # k-NN and linear; not the passes, not the citation
    assert render_markdown(table).count("collapsed") == 2
    assert render_latex(table).count("collapsed") == 2
    assert pdf_source(table).count("collapsed") == 2


@pytest.mark.parametrize(("row", "column"), [("PCA", "knn"), ("Random", "linear")])
def test_no_row_is_below_a_floor_that_it_reaches_and_the_floors_own_group_is_not_judged(
    config: Config, project: Path, row: str, column: str
) -> None:
    config["floor"] = {"row": row, "column": column}  # PCA 14 of 40 is above Random's 11 in k-NN
    assert judged(filled_table(config, project)) == {}


def test_a_floor_must_be_a_row_and_a_column(config: Config, project: Path) -> None:
    config["floor"] = {"row": "Random", "column": "transfer"}
    with pytest.raises(UserError, match="floor: no column 'transfer'"):
        filled_table(config, project)
    config["floor"] = {"row": "Rondom", "column": "knn"}
    with pytest.raises(UserError, match="floor: no row 'Rondom'; did you mean 'Random'"):
        filled_table(config, project)
