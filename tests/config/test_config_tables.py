"""The granularity ablation, columns of settings, and the metrics that a table reads."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from polygrain.config.project import Project
from polygrain.config.stages import stage_of
from polygrain.config.tables import Table, rows, specification
from polygrain.provenance.errors import UserError

PROJECT = Project(Path(__file__).resolve().parents[2])


@pytest.fixture(scope="module")
def ablation() -> dict[str, Any]:
    return stage_of(PROJECT, "table", "reports/smoke-seeds1/table2.pdf").config


def grains(config: dict[str, Any], method: str) -> list[list[str]]:
    return [row["settings"]["method.grains"] for row in rows(config) if row["method"] == method]


def test_every_method_is_ablated_grain_by_grain(ablation: dict[str, Any]) -> None:
    assert [{row["method"] for row in group["rows"]} for group in ablation["groups"]] == [
        {"mgc"},
        {"mncl"},
        {"mugs"},
        {"wcl"},
        {"smog"},
    ]
    three = {"patch", "region", "instance"}, {"instance", "local-group", "group"}
    for method, whole in zip(("mgc", "mugs"), three, strict=True):
        subsets = {frozenset(found) for found in grains(ablation, method)}
        assert len(grains(ablation, method)) == len(subsets) == 7
        assert max(subsets, key=len) == whole
    assert {frozenset(found) for found in grains(ablation, "mncl")} == {
        frozenset({"instance"}),
        frozenset({"region"}),
        frozenset({"instance", "region"}),
    }
    assert grains(ablation, "wcl")[:2] == [["instance"], ["weak-class"]]
    assert set(map(tuple, grains(ablation, "smog"))) == {("group",)}


def test_each_group_is_judged_against_its_whole_method(ablation: dict[str, Any]) -> None:
    for group in ablation["groups"]:
        (reference,) = (row for row in group["rows"] if row["label"] in ablation["compare"]["reference"])
        assert reference.get("variant", "base") == "base"
    assert ablation["compare"]["by_group"]


def test_rows_spend_the_same(ablation: dict[str, Any]) -> None:
    """A step of smoke scale is coarse: what is left over is less than one."""
    budget = yaml.safe_load((PROJECT.params / "scale/smoke.yaml").read_text())["pretrain"]["encoder_passes"]
    for row in rows(ablation):
        assert 0 <= budget - row["facts"]["encoder_passes"] < 16 * 64, row["label"]


@pytest.mark.parametrize("name", sorted(path.stem for path in (PROJECT.params / "table").glob("*.yaml")))
def test_a_table_reads_the_metrics_of_every_run(name: str) -> None:
    stage = stage_of(PROJECT, "table", f"reports/smoke-seeds1/{name}.pdf")
    runs = [run for row in rows(stage.config) for run in row["runs"]]
    assert {Path(run, "metrics.jsonl") for run in runs} <= set(stage.inputs)
    assert len(set(stage.inputs)) == len(stage.inputs)


def test_a_column_whose_setting_no_run_has_is_refused(tmp_path: Path) -> None:
    for name in ("params", "workflow", "src"):
        shutil.copytree(PROJECT.root / name, tmp_path / name)
    shutil.copy(PROJECT.root / "requirements.lock", tmp_path)
    project, path = Project(tmp_path), tmp_path / "params/table/table1.yaml"
    table = yaml.safe_load(path.read_text())
    for key in ("compare", "floor", "reported", "reported_sources"):
        table.pop(key, None)
    few = [row for row in rows(table) if row["method"] in ("simclr", "smog")]
    table["groups"] = [{"label": "Learned", "rows": few}]
    table["columns"].insert(0, {"id": "set", "label": "K", "setting": "method.values.groups"})
    text = yaml.safe_dump(table)
    path.write_text(text)
    settings = [row["settings"] for row in rows(stage_of(project, "table", "reports/smoke-seeds1/table1.pdf").config)]
    groups = [row.get("method.values.groups") for row in settings]
    assert (groups.count(None), groups.count(200)) == (len(settings) - 1, 1)
    path.write_text(text.replace("values.groups", "values.gruops"))
    with pytest.raises(UserError, match=r"table1\.yaml: column 'set': no run of this table has the key"):
        stage_of(project, "table", "reports/smoke-seeds1/table1.pdf")
    path.write_text(text.replace("method.values.groups", "groups"))
    with pytest.raises(UserError, match=r"key 'columns.0.setting' must be of the form .*, not 'groups'"):
        specification(project, Table("table1"))


def test_an_ablation_that_cannot_differ_from_its_base_is_refused(tmp_path: Path) -> None:
    for name in ("params", "workflow", "src"):
        shutil.copytree(PROJECT.root / name, tmp_path / name)
    shutil.copy(PROJECT.root / "requirements.lock", tmp_path)
    project, variant = Project(tmp_path), tmp_path / "params/variant/smog/reset-none.yaml"
    target = "reports/smoke-seeds1/table2.pdf"
    stage_of(project, "table", target)
    variant.write_text(variant.read_text().replace("reset: none", "reset: both"))
    with pytest.raises(UserError, match=r"are the same run at scale smoke: variant reset-none changes no value there"):
        stage_of(project, "table", target)
