"""The profile: scaled scores by a second computation, their coverage, no scale, the claim, the drawing."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from polygrain.evaluate.result import ACCURACY, Measure
from polygrain.provenance.errors import UserError
from polygrain.report.build import filled_table
from polygrain.report.cells import ABSENT, Cell, TableContent
from polygrain.report.measured import Measured
from polygrain.report.pdf import pdf_source, render_pdf
from polygrain.report.profile import Scale
from polygrain.report.render import render_csv, render_markdown

Config = dict[str, Any]
LOWER = Measure("bits", "lower")


def measured(*values: float, measure: Measure = ACCURACY) -> Measured:
    return Measured(values, measure, ())


@pytest.fixture
def profiled(config: Config) -> Config:
    """The toy table between Random (0) and Plain (1), tested against PCA."""
    config["columns"] = config["columns"][:2]
    config["reported"], config["compare"]["reference"] = [], ["PCA"]
    return config | {"profile": {"zero": "Random", "one": "Plain"}}


def scaled(table: TableContent, label: str, column: str) -> Cell:
    place = [known.id for known in table.columns].index(column)
    groups = [group for group in table.groups if group.label.endswith(", scaled")]
    return next(row.cells[place] for group in groups for row in group.rows if row.label == label)


def test_a_scaled_score_and_its_interval_by_numpy_and_scipy() -> None:
    zero, one, row = [0.25, 0.3, 0.275], [0.75, 0.85, 0.8], [0.6, 0.7, 0.62]
    q = (np.mean(row) - np.mean(zero)) / (np.mean(one) - np.mean(zero))
    gradient = np.array([1, q - 1, -q]) / (np.mean(one) - np.mean(zero))  # by the means of row, zero and one
    variances = gradient**2 * [np.var(values, ddof=1) / 3 for values in (row, zero, one)]
    degrees = variances.sum() ** 2 / (variances**2 / 2).sum()
    found = Scale(measured(*zero), measured(*one)).of(measured(*row))
    assert found.value == pytest.approx(q, rel=1e-12)
    assert found.half == pytest.approx(stats.t.ppf(0.975, degrees) * np.sqrt(variances.sum()), rel=1e-9)


def test_the_interval_covers_the_true_score() -> None:
    """Of 2,000 simulated tables of three seeds; nominal 95 %."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        zero, one, row = (measured(*rng.normal(mean, 0.02, 3)) for mean in (0.3, 0.8, 0.7))
        found = Scale(zero, one).of(row)
        assert found.half is not None
        inside += abs(found.value - 0.8) <= found.half
    print(f"covered {inside / 2000:.3f}")
    assert 0.93 <= inside / 2000 <= 0.985


def test_the_rows_of_the_scale_are_0_and_1_without_interval(profiled: Config, project: Path) -> None:
    table = filled_table(profiled, project)
    assert [scaled(table, label, "knn").text for label in ("Random", "Plain")] == ["0.00", "1.00"]
    assert scaled(table, "Group", "knn").text.startswith("1.00 ± ")


def test_lower_may_be_better() -> None:
    scale = Scale(measured(4.0, 4.1, measure=LOWER), measured(2.0, 2.1, measure=LOWER))
    assert scale.sound()
    assert scale.of(measured(1.0, 1.1, measure=LOWER)).value == pytest.approx(1.5)
    assert not Scale(measured(2.0, 2.1, measure=LOWER), measured(4.0, 4.1, measure=LOWER)).sound()


def test_no_scale_where_the_end_is_not_better_beyond_the_scatter(profiled: Config, project: Path) -> None:
    """Plain has 16, 17, 18 right under linear, Random 16, 15, 17."""
    table = filled_table(profiled, project)
    found = scaled(table, "Cheap", "linear")
    assert (found.main, found.notes) == (
        ABSENT,
        ("No scale: Plain is not better than Random beyond the scatter of their seeds.",),
    )
    assert "no scale" in pdf_source(table)
    assert not Scale(measured(0.5), measured(0.5)).sound()
    assert Scale(measured(0.5), measured(0.6)).sound()


def test_numbers_as_measured_stand_below_the_scaled_ones(profiled: Config, project: Path) -> None:
    labels = [group.label for group in filled_table(profiled, project).groups]
    assert labels == ["Controls, scaled", "Methods, scaled", "Controls, as measured", "Methods, as measured"]
    plain = filled_table({key: value for key, value in profiled.items() if key != "profile"}, project)
    for ours, theirs in zip(filled_table(profiled, project).groups[2:], plain.groups, strict=True):
        assert ours.rows == theirs.rows


@pytest.mark.parametrize(
    ("right", "holds"), [(True, "It holds for Plain, Group, Cheap."), (False, "It holds for none")]
)
def test_the_claim_can_hold_and_fail(
    profiled: Config, project: Path, right: bool, holds: str, make_result: Any
) -> None:
    """Against PCA (14 and 12 of 40): more right in both columns, or fewer in one of them."""
    profiled["groups"][0]["tested"] = False
    for method in ("plain", "group", "cheap"):
        for seed in (0, 1, 2):
            folder = project / f"runs/cpu/toy/{method}/base/seed{seed}/results"
            make_result(39 + seed % 2, "linear").save(folder, "linear")
            make_result((39 if right else 0) + seed % 2, "knn").save(folder, "knn")
    claim = next(line for line in filled_table(profiled, project).legend if line.startswith("The claim"))
    assert holds in claim
    words = "better in Toy k-NN, Toy linear; worse in none" if right else "better in Toy linear; worse in Toy k-NN"
    assert claim.count(words) == 3


@pytest.mark.parametrize(
    ("right", "said"),
    [
        (8, "Better: Plain: no row. It holds for Plain."),
        (40, "Better: Plain: Group in Toy k-NN. It holds for none"),
        (32, "Better: Plain: no row. It holds for none"),
    ],
)
def test_the_claim_against_ablated_rows(
    profiled: Config, project: Path, right: int, said: str, make_result: Any
) -> None:
    """Plain is the whole method, with 31, 32 and 33 of 40 right; of Group one seed has one less."""
    profiled["groups"][1]["rows"] = profiled["groups"][1]["rows"][:2]
    profiled["compare"] |= {"columns": ["knn"], "reference": ["Plain"], "by_group": True}
    for method, counts in (("plain", (31, 32, 33)), ("group", (right - 1, right, right))):
        for seed, count in enumerate(counts):
            make_result(count, "knn").save(project / f"runs/cpu/toy/{method}/base/seed{seed}/results", "knn")
    claim = next(line for line in filled_table(profiled, project).legend if line.startswith("The claim"))
    assert said in claim


def test_one_seed_has_neither_interval_nor_claim(profiled: Config, project: Path) -> None:
    profiled["seeds"] = [0]
    for group in profiled["groups"]:
        for row in group["rows"]:
            row["runs"] = row["runs"][:1]
    table = filled_table(profiled, project)
    assert scaled(table, "Cheap", "knn").text == "1.40"
    assert not any(line.startswith("The claim") for line in table.legend)


def test_the_drawing_holds_a_mark_for_each_number_and_equal_numbers_give_equal_bytes(
    profiled: Config, project: Path
) -> None:
    table = filled_table(profiled, project)
    source = pdf_source(table)
    assert source.count("circle(") == 5  # of k-NN; linear has no scale
    across = [float(x) for x in re.findall(r"dx: ([\d.]+)pt, dy: [\d.]+pt, circle", source)]
    means = {label: scaled(table, label, "knn").mean for label in ("Random", "PCA", "Plain", "Group", "Cheap")}
    drawn = dict(zip(means, across, strict=True))
    one = drawn["Plain"] - drawn["Random"]
    assert all(
        drawn[label] == pytest.approx(drawn["Random"] + one * (mean or 0), abs=0.02) for label, mean in means.items()
    )
    assert render_pdf(table) == render_pdf(filled_table(profiled, project))
    assert "Controls, scaled" in render_csv(table)
    assert "**Methods, as measured**" in render_markdown(table)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("one", "Plane", "profile.one: no row 'Plane'; did you mean 'Plain'"),
        ("columns", None, "profile: column 'passes' is no value of a protocol"),
    ],
)
def test_a_profile_that_cannot_be_is_one_line(
    profiled: Config, project: Path, key: str, value: str | None, message: str
) -> None:
    if value is None:
        profiled["columns"].append({"id": "passes", "label": "passes", "fact": "encoder_passes"})
    else:
        profiled["profile"][key] = value
    with pytest.raises(UserError, match=message):
        filled_table(profiled, project)
