"""Cells computed again from their sources, and links as text."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from polygrain.audit.cells import CellAddress, find_cell, printed_cell
from polygrain.audit.evidence import Evidence
from polygrain.audit.trace.links import Printer, wrapped
from polygrain.audit.trace.values import recompute
from polygrain.config.budget import facts
from polygrain.config.project import Project
from polygrain.config.resolved import configuration
from polygrain.evaluate.result import ACCURACY, Number, Result, classified
from polygrain.provenance.checklock import is_marked_stale
from polygrain.provenance.files import canonical_json
from polygrain.provenance.stage import Stage
from polygrain.report.table import count

REPOSITORY = Project(Path(__file__).resolve().parents[2])
TABLE = "reports/table1.pdf"


def cell(row: str, column: str, target: str = TABLE) -> CellAddress:
    return find_cell(REPOSITORY, target, row, column)


def printed(address: CellAddress) -> str:
    line = printed_cell((REPOSITORY.root / "reports/published/table1.csv").read_text(), address)
    assert line is not None
    return line["text"]


@pytest.mark.parametrize(
    "row", ["random/base", "random/calibrated", "pca", "supervised", "simclr", "mgc", "mncl", "mugs", "wcl", "smog"]
)
def test_facts_and_reported_numbers_of_the_published_table_follow_from_their_sources(row):
    stale = is_marked_stale(REPOSITORY.root / "reports/published/table1.md")
    for column in ("images", "steps", "passes", "minutes", "elsewhere"):
        address = cell(row, column)
        found = recompute(REPOSITORY, address).text
        if address.fact:
            assert found == count(facts(configuration(REPOSITORY, address.runs[0]))[address.fact])
        if not stale:
            assert found == printed(address), column


def test_a_fact_names_the_keys_that_it_follows_from_with_file_and_line():
    lines = recompute(REPOSITORY, cell("mugs", "images")).lines
    batch = next(line for line in lines if line.startswith("pretrain.batch"))
    file, number = batch.split()[-1].split(":")
    assert "batch" in (REPOSITORY.root / file).read_text().splitlines()[int(number) - 1]
    assert lines[-1] == f"images_seen {67328}, by polygrain/config/budget.py"


def test_a_setting_is_followed_to_the_file_and_line_that_decides_it():
    """The method takes its grains from another key, which the variant sets."""
    found = recompute(REPOSITORY, cell("mugs/instance", "grains", "reports/table2.pdf"))
    assert found.text == "instance"
    file, number = found.lines[-1].split()[-1].split(":")
    assert file == "params/variant/mugs/instance.yaml"
    assert (REPOSITORY.root / file).read_text().splitlines()[int(number) - 1].strip() == "grains: [instance]"


def test_a_reported_number_names_its_line_and_source():
    found = recompute(REPOSITORY, cell("WCL", "elsewhere"))
    lines = (REPOSITORY.root / "params/reported/linear_evaluation.csv").read_text().splitlines()
    number = next(place for place, line in enumerate(lines, start=1) if line.startswith("wcl-imagenet,"))
    assert f"params/reported/linear_evaluation.csv, line {number}: 70.3 %" in found.lines
    assert any("mingkai-zheng/WCL README" in line for line in found.lines)
    assert "cites no record" in recompute(REPOSITORY, cell("pca", "elsewhere")).lines[0]


@pytest.fixture
def measured(tmp_path: Path) -> tuple[Project, CellAddress]:
    """Three seeds of Mugs that get 5, 6 and 8 of 10 images right."""
    address = cell("mugs", "linear")
    for run, right in zip(address.runs, (5, 6, 8), strict=True):
        label = np.arange(10)
        predicted = np.where(label < right, label, 99)
        values, rows = classified("fashion-mnist", predicted, label, label)
        values["mnist-5k/top1"] = Number(0.5, ACCURACY)
        Result(values, {}, {"fashion-mnist": rows}).save(tmp_path / run.path / "results", "linear")
    return Project(tmp_path), address


def test_a_measured_cell_is_its_seeds_with_mean_and_sample_deviation(measured):
    found = recompute(*measured)
    assert found.text == "63.3 ± 15.3"
    assert found.faults == []
    assert [line.split("  ")[:2] for line in found.lines[:3]] == [
        ["seed 0", "50.0000"],
        ["seed 1", "60.0000"],
        ["seed 2", "80.0000"],
    ]
    assert all("counted again from 10 test examples" in line for line in found.lines[:3])
    assert found.lines[3] == "mean 63.3333, sample standard deviation 15.2753: 63.3 ± 15.3"


def test_one_seed_has_no_spread(measured):
    project, address = measured
    assert recompute(project, replace(address, runs=address.runs[:1])).text == "50.0"


def test_a_value_that_its_predictions_do_not_give_is_a_fault(measured):
    project, address = measured
    path = address.runs[1].path / "results/linear.json"
    about = json.loads((project.root / path).read_text())
    about["values"]["fashion-mnist/top1"] = 0.9
    (project.root / path).write_text(canonical_json(about))
    assert recompute(project, address).faults == [f"{path}: says 0.9 where its test examples give 0.6"]


def test_missing_results_and_values_are_named(measured):
    project, address = measured
    shutil.rmtree(project.root / address.runs[0].path)
    found = recompute(project, replace(address, value="mnist-5k/macro"))
    assert found.text is None
    assert found.lines[0].startswith("seed 0  not here: ")
    assert found.lines[1].startswith('seed 1  no value "mnist-5k/macro" in ')
    assert "counted again" not in recompute(project, replace(address, value="mnist-5k/top1")).lines[1]


@pytest.fixture
def printer(tmp_path: Path) -> tuple[Printer, Stage]:
    stage = Stage("features", "features", Path("runs/r"), {}, (), (), (Path("runs/r/features.bin"),))
    texts = {stage.config_path: "a: 1\n", stage.code_path: "{}", stage.environment_path: "{}"}
    return Printer(Evidence([stage], tmp_path, texts), full=False), stage


def test_a_link_of_which_nothing_is_here_says_so_and_how_to_get_it(printer):
    shown, stage = printer
    lines = shown.link("features", stage, list(stage.outputs), [])
    assert lines[0] == "features    runs/r/features.bin"
    assert lines[1].strip() == "no hash is known  not here"
    assert "  made      unknown: no record here, and none is published" in lines
    assert "  rebuild   snakemake --cores all --force runs/r/features.bin" in lines
    assert "  fetch     not in dvc.lock; `polygrain record` puts it there" in lines
    assert (shown.verified, shown.absent, shown.faults) == (0, 1, [])


def test_a_file_of_which_nothing_is_known_is_not_called_verified(printer):
    shown, stage = printer
    (shown.evidence.root / "runs/r").mkdir(parents=True)
    (shown.evidence.root / stage.outputs[0]).write_text("x")
    lines = shown.link("features", stage, list(stage.outputs), [])
    assert "hashed; no record to compare with" in lines[1]
    assert "sha256 2d711642b726  md5 9dd4e461268c" in lines[1]
    assert shown.verified == 0
    full = Printer(shown.evidence, full=True)
    assert (
        "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
        in full.link("features", stage, list(stage.outputs), [])[1]
    )


def test_lines_fit_a_terminal_and_words_stay_whole():
    lines = wrapped("  note", " ".join(["word"] * 60 + ["snakemake-" + "x" * 130]))
    assert all(len(line) <= 120 for line in lines[:-1])
    assert lines[-1].strip() == "snakemake-" + "x" * 130
    assert all(line.startswith(" " * 12) for line in lines[1:])
