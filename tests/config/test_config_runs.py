import re
from pathlib import Path

import pytest

from polygrain.config.runs import Run
from polygrain.config.tables import Table
from polygrain.provenance.errors import UserError, nearest


def test_a_run_is_its_path():
    run = Run("cpu", "fashion-mnist", "simclr", "tau-0.5", 12)
    assert run.path == Path("runs/cpu/fashion-mnist/simclr/tau-0.5/seed12")
    assert Run.parse(run.path) == run
    assert Run.parse(f"{run.path}/") == run


@pytest.mark.parametrize(
    "path",
    [
        "runs/cpu/fashion-mnist/simclr/seed0",
        "runs/cpu/fashion-mnist/simclr/base/0",
        "cpu/fashion-mnist/simclr/base/seed0",
        "runs/cpu/fashion-mnist/simclr/base/seed0/extra",
    ],
)
def test_what_is_no_run_is_refused_with_the_form(path):
    with pytest.raises(UserError, match="runs/SCALE/DATASET/METHOD/VARIANT/seedN"):
        Run.parse(path)


@pytest.mark.parametrize("name", ["2024", "null", "no", "my_photos", "MNIST", "..", "-x", "größe", "a b", "a[0]"])
def test_names_that_paths_or_yaml_cannot_hold_are_refused_at_the_door(name):
    with pytest.raises(
        UserError, match=rf"^runs/.*: dataset '{re.escape(name)}': rename it; a name begins with a letter"
    ):
        Run.parse(f"runs/cpu/{name}/simclr/base/seed0")


@pytest.mark.parametrize("seed", ["01", "1000000000", "x", "-1", "٣"])
def test_a_seed_is_written_in_one_way(seed):
    with pytest.raises(UserError, match="a seed is a whole number from 0 to 999999999 without leading zeros"):
        Run.parse(f"runs/cpu/fashion-mnist/simclr/base/seed{seed}")


def test_nearest_names_one_or_lists_all():
    assert nearest("simclt", ["simclr", "wcl"]) == "; did you mean 'simclr'?"
    assert nearest("zzz", ["wcl", "simclr"]) == "; known: simclr, wcl"


@pytest.mark.parametrize(
    ("path", "table"),
    [
        ("reports/table1.pdf", Table("table1")),
        ("reports/table1.csv", Table("table1")),
        ("reports/smoke/table1.pdf", Table("table1", "smoke")),
        ("reports/smoke-seeds1/table1.md", Table("table1", "smoke", 1)),
        ("reports/cpu-seeds2/table1.tex", Table("table1", "cpu", 2)),
    ],
)
def test_a_table_is_its_path(path, table):
    assert Table.parse(path) == table
    assert Path(path).parent == table.folder


@pytest.mark.parametrize(
    "path", ["reports/table1.html", "table1.pdf", "reports/a/b/table1.pdf", "reports/cpu-seeds0/t.pdf/x"]
)
def test_what_is_no_table_is_refused(path):
    with pytest.raises(UserError, match="not a table"):
        Table.parse(path)


def test_only_the_default_scale_with_all_seeds_has_the_default_name():
    others = [Table("table1", "smoke"), Table("table1", "cpu", 3), Table("table1", "smoke", 1)]
    assert Table("table1").folder == Path("reports")
    assert all(table.folder != Path("reports") for table in others)
