"""Curves of trainings as files that `dvc plots` draws."""

import json
from itertools import pairwise
from pathlib import Path

from polygrain.provenance.curves import ROWS, curve_path, curve_table, plots, publish_curves
from polygrain.provenance.stage import Stage


def training(run: str, steps: int = 40) -> Stage:
    directory = Path("runs/smoke/fashion-mnist", run)
    outputs = (directory / "checkpoint.safetensors", directory / "metrics.jsonl")
    return Stage("pretrain", "pretrain", directory, {"steps": steps}, ("polygrain.train.run",), (), outputs)


def lines(steps: int) -> str:
    return "".join(json.dumps({"epoch": 0, "loss": 1 / 3 + step, "step": step}) + "\n" for step in range(steps))


def test_a_table_starts_with_the_step_and_rounds_to_six_digits():
    assert curve_table(lines(2)) == "step,epoch,loss\n0,0,0.333333\n1,0,1.33333\n"


def test_a_number_that_only_some_steps_have_is_empty_elsewhere():
    text = '{"loss": 2.0, "step": 0}\n{"loss": 1.0, "rank": 3.5, "step": 9}\n'
    assert curve_table(text) == "step,loss,rank\n0,2,\n9,1,3.5\n"


def test_a_long_curve_is_thinned_and_keeps_its_last_step():
    kept = [int(row.split(",")[0]) for row in curve_table(lines(3 * ROWS + 7)).splitlines()[1:]]
    assert len(kept) <= ROWS
    assert kept[-1] == 3 * ROWS + 6
    assert len({after - before for before, after in pairwise(kept)}) == 1


def test_seeds_share_a_plot_and_a_control_without_steps_has_none():
    stages = [training("wcl/base/seed1"), training("wcl/base/seed0"), training("pca/base/seed0", steps=0)]
    (plot,) = plots(stages)
    ((title, content),) = plot.items()
    assert title == "loss of smoke/fashion-mnist/wcl/base"
    assert list(content["y"]) == [f"reports/published/curves/smoke/fashion-mnist/wcl/base/seed{n}.csv" for n in (0, 1)]


def test_publishing_writes_the_curves_of_these_runs_and_removes_others(tmp_path: Path):
    stage = training("wcl/base/seed0")
    (tmp_path / stage.directory).mkdir(parents=True)
    (tmp_path / stage.directory / "metrics.jsonl").write_text(lines(2))
    left = tmp_path / curve_path(training("mgc/base/seed0"))
    left.parent.mkdir(parents=True)
    left.write_text("step\n")
    publish_curves([stage], tmp_path)
    assert (tmp_path / curve_path(stage)).read_text() == curve_table(lines(2))
    assert not left.exists()
