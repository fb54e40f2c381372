"""Cells: means, bold, arrows, missing values, and faults that name the file."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from polygrain.evaluate.result import ACCURACY, Examples, Measure, Number, Result
from polygrain.provenance.claim import claim_id
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import canonical_json, sha256_bytes, sha256_file, write_bytes, write_text
from polygrain.provenance.npz import npz_bytes
from polygrain.report.build import filled_table
from polygrain.report.cells import Cell, TableContent, letters
from polygrain.report.render import render_markdown
from polygrain.report.table import count

Config = dict[str, Any]


def cell(table: TableContent, label: str, column: str) -> Cell:
    place = [known.id for known in table.columns].index(column)
    return next(row.cells[place] for group in table.groups for row in group.rows if row.label == label)


def results(project: Path, method: str, seed: int) -> Path:
    return project / f"runs/cpu/toy/{method}/base/seed{seed}/results"


def test_mean_and_spread_in_percent(config: Config, project: Path) -> None:
    found = cell(filled_table(config, project), "Plain", "knn")
    assert (found.text, found.n, found.unit) == ("80.0 ± 5.0", 3, "%")
    assert (found.mean, found.sd) == (pytest.approx(80.0), pytest.approx(5.0))


def test_a_row_without_a_number_in_a_column_says_why_and_is_neither_bold_nor_compared(
    config: Config, project: Path
) -> None:
    config["groups"][1]["rows"][1]["without"] = {"linear": "It saw the labels."}
    table = filled_table(config, project)
    found = cell(table, "Group", "linear")
    assert (found.main, found.mean, found.n, found.notes) == ("—", None, 0, ("It saw the labels.",))
    assert not found.best
    assert found.comparison is None
    assert cell(table, "Group", "knn").n == 3
    config["groups"][1]["rows"][1]["without"] = {"lineal": "It saw the labels."}
    with pytest.raises(UserError, match="row 'Group': without: no column 'lineal'; did you mean 'linear'"):
        filled_table(config, project)


def test_bold_is_the_best_of_equal_compute_and_ties_share_it(config: Config, project: Path) -> None:
    """Cheap is better everywhere but spent half; Plain and Group tie on k-NN; controls are not ranked."""
    table = filled_table(config, project)
    bold = [
        (row.label, column.id)
        for group in table.groups
        for row in group.rows
        for column, found in zip(table.columns, row.cells, strict=True)
        if found.best
    ]
    assert bold == [("Plain", "knn"), ("Group", "knn"), ("Group", "linear")]
    assert "within 5 % of the median" in " ".join(table.legend)


def test_bold_is_every_row_that_cannot_be_told_from_the_best(
    config: Config, project: Path, make_result: Callable[..., Result]
) -> None:
    for seed, right in enumerate((29, 34, 32)):
        make_result(right, "linear").save(results(project, "plain", seed), "linear")
    assert cell(filled_table(config, project), "Plain", "linear").best
    assert cell(filled_table(config, project), "Plain", "linear").main < "82.5"
    config["compare"]["level"] = 0.9999
    assert not cell(filled_table(config, project), "Plain", "linear").best
    config["compare"] = None
    assert not cell(filled_table(config, project), "Plain", "linear").best


def test_one_comparable_row_is_not_bold(config: Config, project: Path) -> None:
    del config["groups"][1]["rows"][1:]
    assert not cell(filled_table(config, project), "Plain", "knn").best


def test_arrows_against_the_best_reference_of_the_column(config: Config, project: Path) -> None:
    table = filled_table(config, project)
    assert [cell(table, "Plain", name).arrow for name in ("knn", "linear")] == ["↑", ""]
    better, tied = cell(table, "Plain", "knn").comparison, cell(table, "Plain", "linear").comparison
    assert better is not None
    assert tied is not None
    assert (better.reference, tied.reference) == ("PCA", "Random")
    assert better.difference.estimate == pytest.approx(80 - 35)
    assert better.p_adjusted >= better.difference.p
    assert tied.p_adjusted > 0.2
    assert cell(table, "Random", "knn").comparison is None
    assert any("6 comparisons" in line for line in table.legend)


def test_a_worse_row_points_down(config: Config, project: Path) -> None:
    config["compare"]["reference"] = ["Cheap"]
    assert cell(filled_table(config, project), "Random", "linear").arrow == "↓"


def test_one_seed_has_no_spread_and_says_so(config: Config, project: Path) -> None:
    config["seeds"] = [0]
    for group in config["groups"]:
        for row in group["rows"]:
            row["runs"] = row["runs"][:1]
    table = filled_table(config, project)
    assert cell(table, "Plain", "knn").text == "75.0"
    assert table.legend[0] == "Numbers are from the single seed 0; their spread is unknown."
    assert table.legend[1] == "No difference is tested: that needs 3 seeds."
    assert cell(table, "Plain", "knn").comparison is None
    assert cell(table, "Group", "knn").best


def test_a_group_may_stay_untested(config: Config, project: Path) -> None:
    config["compare"]["reference"] = ["Plain"]
    config["groups"][0]["tested"] = False
    table = filled_table(config, project)
    assert cell(table, "Random", "knn").comparison is None
    assert cell(table, "Cheap", "linear").comparison is not None
    assert any(
        line.endswith("over 4 comparisons; t test over seeds and test images. Not tested: “Controls”.")
        for line in table.legend
    )


def test_a_row_without_spread_is_not_compared_with_three_seeds(
    config: Config, project: Path, make_result: Callable[..., Result]
) -> None:
    for seed in (0, 1, 2):
        make_result(30, "knn").save(results(project, "plain", seed), "knn")
    (note,) = cell(filled_table(config, project), "Plain", "knn").notes
    assert note == (
        "Not compared: one of the two rows has no spread over seeds, and the other 3 seeds; such a test needs 5."
    )


def test_what_can_be_found_is_said(config: Config, project: Path) -> None:
    """The median over the column's tests of (t at the level of Holm's first step + t of 80 %) standard errors."""
    table, sizes = filled_table(config, project), {}
    for name in ("knn", "linear"):
        found = [cell(table, label, name).comparison for label in ("Plain", "Group", "Cheap")]
        contrasts = [comparison.difference for comparison in found if comparison]
        quantiles = [stats.t.ppf(1 - 0.05 / 6 / 2, c.degrees) + stats.t.ppf(0.8, c.degrees) for c in contrasts]
        sizes[name] = np.median([c.error * t for c, t in zip(contrasts, quantiles, strict=True)])
    line = f"if it is the largest: Toy k-NN {sizes['knn']:.1f}, Toy linear {sizes['linear']:.1f}."
    assert any(known.endswith(line) for known in table.legend)


def test_a_missing_seed_makes_the_cell_missing(config: Config, project: Path) -> None:
    (results(project, "plain", 1) / "knn.json").unlink()
    table = filled_table(config, project)
    found = cell(table, "Plain", "knn")
    assert (found.text, found.n, found.mean, found.comparison) == ("—", 0, None, None)
    assert found.notes == ("Missing: no knn result for seed 1.",)
    assert cell(table, "Plain", "linear").text == "42.5 ± 2.5"
    assert "Missing: no knn result for seed 1." in table.footnotes


def test_a_whole_run_missing(config: Config, project: Path) -> None:
    for seed in (0, 1, 2):
        shutil.rmtree(results(project, "plain", seed))
    assert cell(filled_table(config, project), "Plain", "knn").notes == ("Missing: no knn result for seeds 0, 1, 2.",)


def test_a_missing_value_names_it(config: Config, project: Path) -> None:
    config["columns"][0]["value"] = "toy/1%/top1"
    table = filled_table(config, project)
    assert cell(table, "PCA", "knn").notes == ("Missing: knn gave no toy/1%/top1 for seeds 0, 1, 2.",)
    assert cell(table, "Plain", "knn").arrow == ""


def test_a_missing_reference_leaves_its_column_uncompared(config: Config, project: Path) -> None:
    (results(project, "pca", 0) / "knn.npz").unlink()
    table = filled_table(config, project)
    assert cell(table, "Group", "knn").comparison is None
    assert cell(table, "Group", "linear").comparison is not None


def test_missing_scores_are_a_note_not_a_fault(config: Config, project: Path) -> None:
    for seed in (0, 1, 2):
        Result({"toy/top1": Number(0.75, ACCURACY)}).save(results(project, "plain", seed), "knn")
    found = cell(filled_table(config, project), "Plain", "knn")
    assert (found.text, found.comparison) == ("75.0 ± 0.0", None)
    assert found.notes == ("Not compared: knn kept no score per test example for toy/top1.",)


def test_remarks_of_a_protocol_are_footnotes_of_their_data_set(
    config: Config, project: Path, make_result: Callable[..., Result]
) -> None:
    for seed, right in ((0, 30), (1, 34), (2, 32)):
        note = "toy: the encoder has collapsed; other: something"
        make_result(right, "knn", note=note).save(results(project, "plain", seed), "knn")
    assert cell(filled_table(config, project), "Plain", "knn").notes == (
        "Seeds 0, 1, 2, toy: the encoder has collapsed.",
    )


def test_facts_and_reported_values(config: Config, project: Path) -> None:
    table = filled_table(config, project)
    assert [cell(table, label, "passes").text for label in ("Random", "Group", "Cheap")] == ["0", "1.20 M", "600 k"]
    cited = cell(table, "Plain", "cited")
    assert cited.text == "84.60"
    assert cited.notes == ("Reported: Plain, RN-50, Big, linear evaluation, top-1: Some README, table 2.",)
    assert cell(table, "PCA", "cited").notes == ("Missing: no source at hand reports such a number.",)
    assert not cited.best


def test_footnote_marks_follow_reading_order(config: Config, project: Path) -> None:
    marks = list(filled_table(config, project).footnotes.items())
    assert [mark for _, mark in marks] == ["a", "b", "c", "d"]
    assert [text.split()[0] for text, _ in marks] == ["Not", "Missing:", "A", "Reported:"]
    assert [letters(number) for number in (0, 25, 26, 52)] == ["a", "z", "aa", "ba"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (640, "640"), (999.6, "1.00 k"), (9_216, "9.22 k"), (99_960, "100 k"), (999_600, "1.00 M")],
)
def test_counts_have_three_digits(value: float, text: str) -> None:
    assert count(value) == text


def test_footer_names_data_and_claim(config: Config, project: Path) -> None:
    footer = filled_table(config, project).footer
    manifest = "data/toy/manifest.json"
    data = sha256_bytes(canonical_json({manifest: sha256_file(project / manifest)}).encode())
    rows = [row for group in config["groups"] for row in group["rows"]]
    runs = {run: {**hashes, "data": data} for row in rows for run, hashes in row["inputs"].items()}
    assert footer.claim_id == claim_id(runs)
    assert footer.text == f"scale cpu · seeds 0, 1, 2 · data {data[:12]} · claim {footer.claim_id[:16]}"


def test_claim_follows_the_data(config: Config, project: Path) -> None:
    before = filled_table(config, project).footer
    write_text(project / "data/toy/manifest.json", '{"name": "other"}\n')
    after = filled_table(config, project).footer
    assert before.data_hash != after.data_hash
    assert before.claim_id != after.claim_id


def spoil_json(folder: Path, value: Any) -> None:
    about = json.loads((folder / "knn.json").read_text())
    about["values"]["toy/top1"] = value
    write_text(folder / "knn.json", json.dumps(about))


@pytest.mark.parametrize("value", [1.5, -0.1, "0.5", True, None, float("nan")])
def test_a_value_that_is_no_fraction(config: Config, project: Path, value: Any) -> None:
    spoil_json(results(project, "plain", 1), value)
    with pytest.raises(UserError, match=r"seed1/results/knn\.json: toy/top1 must be a fraction"):
        filled_table(config, project)


def test_a_value_that_disagrees_with_its_predictions(config: Config, project: Path) -> None:
    spoil_json(results(project, "plain", 1), 0.5)
    with pytest.raises(UserError, match=r"seed1/results/knn\.npz: disagrees"):
        filled_table(config, project)


@pytest.mark.parametrize(("name", "content"), [("knn.json", "{"), ("knn.json", "[1]"), ("knn.npz", "no zip")])
def test_a_damaged_file(config: Config, project: Path, name: str, content: str) -> None:
    write_text(results(project, "plain", 0) / name, content)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        filled_table(config, project)


def test_rows_tested_on_other_images(config: Config, project: Path, make_result: Callable[..., Result]) -> None:
    for seed in (0, 1, 2):
        make_result(20, "knn", images=50).save(results(project, "plain", seed), "knn")
    with pytest.raises(UserError, match="tested on other examples"):
        filled_table(config, project)


def test_order_of_test_images_is_matched_by_index(config: Config, project: Path) -> None:
    before = cell(filled_table(config, project), "Plain", "knn").comparison
    folder = results(project, "plain", 0)
    loaded = Result.load(folder, "knn")
    order = np.random.default_rng(0).permutation(40)
    rows = loaded.examples["toy"]
    shuffled = Examples(
        rows.index[order], {"top1": rows.scores["top1"][order]}, rows.predicted[order], rows.label[order]
    )
    Result(loaded.values, {}, {"toy": shuffled}).save(folder, "knn")
    assert cell(filled_table(config, project), "Plain", "knn").comparison == before


def test_an_example_that_occurs_twice(config: Config, project: Path) -> None:
    folder = results(project, "plain", 0)
    with np.load(folder / "knn.npz") as archive:
        arrays = dict(archive)
    write_bytes(folder / "knn.npz", npz_bytes({**arrays, "toy.index": np.zeros_like(arrays["toy.index"])}))
    with pytest.raises(UserError, match=r"knn\.npz: toy: a test example occurs twice"):
        filled_table(config, project)


SURPRISE = {"random": 2.5, "pca": 2.25, "plain": 1.0, "group": 1.03, "cheap": 3.0}


def surprised(project: Path, measure: Measure, method: str = "") -> None:
    """A protocol `own` in every run, or in those of one method: a float per test example around the method's level."""
    for name in (method,) if method else SURPRISE:
        for seed in (0, 1, 2):
            noise = np.random.default_rng(seed).normal(size=40)
            score = SURPRISE[name] + 0.1 * (noise - noise.mean()) + 0.01 * seed
            rows = Examples(np.arange(40), {"surprise": score})
            values = {"toy/surprise": Number(float(score.mean()), measure)}
            Result(values, {}, {"toy": rows}).save(results(project, name, seed), "own")


@pytest.fixture
def own(config: Config) -> Config:
    """The table with a column for that protocol, in the comparison."""
    config["columns"][1] = {"id": "own", "group": "Toy", "label": "own", "protocol": "own", "value": "toy/surprise"}
    config["compare"]["columns"] = ["own"]
    return config


def test_lower_is_better_in_bits(own: Config, project: Path) -> None:
    surprised(project, Measure("bits", "lower", 2))
    table = filled_table(own, project)
    found = cell(table, "Plain", "own")
    assert (found.text, found.unit, found.arrow, found.best) == ("1.01 ± 0.01", "bits", "↑", True)
    assert found.comparison is not None
    assert found.comparison.reference == "PCA"  # the lower of the two controls
    assert found.comparison.difference.estimate == pytest.approx(1.0 - 2.25)
    assert cell(table, "Cheap", "own").arrow == "↓"
    assert cell(table, "Group", "own").best is False
    assert any(line == "Toy own in bits: lower is better." for line in table.legend)
    assert any(line.startswith("Bold: best mean within") for line in table.legend)


def test_decimals_decide_what_is_printed_and_who_shares_the_bold(own: Config, project: Path) -> None:
    surprised(project, Measure("1", "lower", 1))
    table = filled_table(own, project)
    assert [cell(table, label, "own").main for label in ("Plain", "Group")] == ["1.0", "1.0"]
    assert all(cell(table, label, "own").best for label in ("Plain", "Group"))
    assert "Toy own: lower is better." in table.legend
    assert (cell(table, "Plain", "own").unit, cell(table, "Plain", "own").decimals) == ("", 4)


def selected(project: Path, method: str, shares: tuple[float, float, float]) -> None:
    """Let a method's seeds have selected a setting of the linear probe by these validation accuracies."""
    for seed, share in enumerate(shares):
        folder = results(project, method, seed)
        found = Result.load(folder, "linear")
        replace(found, selected={"toy": {"rate": 0.1, "validation_top1": share}}).save(folder, "linear")


def test_validation_values_their_mean_and_the_order_of_rows(config: Config, project: Path) -> None:
    for method, share in (("plain", 0.5), ("group", 0.7)):
        selected(project, method, (share, share + 0.02, share + 0.04))
    config["columns"][0] |= {"id": "val", "protocol": "linear", "split": "validation"}
    config["columns"].insert(2, {"id": "score", "label": "score", "mean_of": ["val", "linear"]})
    config |= {"compare": None, "order_by": "score"}
    table = filled_table(config, project)
    assert [row.label for row in table.groups[1].rows] == ["Group", "Plain", "Cheap"]
    assert [row.label for row in table.groups[0].rows] == ["Random", "PCA"]
    found = cell(table, "Group", "score")
    by_seed = [(0.7 + 0.02 * seed + right / 40) / 2 for seed, right in enumerate((30, 36, 33))]
    assert cell(table, "Group", "val").text == "72.0 ± 2.0"
    assert (found.mean, found.sd) == (
        pytest.approx(100 * np.mean(by_seed)),
        pytest.approx(100 * np.std(by_seed, ddof=1)),
    )
    note = ("Missing: linear gave no toy/top1 for seeds 0, 1, 2.",)
    assert cell(table, "Cheap", "val").notes == cell(table, "Cheap", "score").notes == note
    assert "| **72.0** ± 2.0 | **82.5** ± 7.5 | **77.2** ± 4.3 |" in render_markdown(table)


def test_a_mean_of_unlike_columns_is_refused(own: Config, project: Path) -> None:
    surprised(project, Measure("bits", "lower", 2))
    own["columns"].append({"id": "mix", "label": "mix", "mean_of": ["knn", "own"]})
    with pytest.raises(UserError, match="'mix' is the mean of columns that differ in unit or direction"):
        filled_table(own, project)


def test_where_no_side_is_better_nothing_is_marked(own: Config, project: Path) -> None:
    surprised(project, Measure("bits", "none", 2))
    with pytest.raises(UserError, match="the numbers of 'own' have no better side; leave it out"):
        filled_table(own, project)
    own["compare"]["columns"] = ["knn"]
    table = filled_table(own, project)
    assert not any(cell(table, label, "own").best for label in ("Plain", "Group"))
    assert "Toy own in bits: neither side is better." in table.legend


@pytest.mark.parametrize(
    "other", [Measure("nats", "lower", 2), Measure("bits", "higher", 2), Measure("bits", "lower", 3)]
)
def test_rows_that_disagree_in_what_a_number_is(own: Config, project: Path, other: Measure) -> None:
    surprised(project, Measure("bits", "lower", 2))
    surprised(project, other, "group")
    message = (
        r"group/base/seed0/results/own\.json: toy/surprise has unit .* but unit bits, direction lower, 2 decimals in"
    )
    with pytest.raises(UserError, match=message):
        filled_table(own, project)


def test_a_missing_number_has_the_unit_of_its_column(own: Config, project: Path) -> None:
    surprised(project, Measure("bits", "lower", 2))
    (results(project, "random", 0) / "own.json").unlink()
    found = cell(filled_table(own, project), "Random", "own")
    assert (found.text, found.unit) == ("—", "bits")
