import shutil
from pathlib import Path

import pytest

from polygrain.cli.claims import recorded_targets, show_in_headers
from polygrain.config.project import Project
from polygrain.provenance.code import tree_hash
from polygrain.provenance.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def lock(root: Path, *outputs: str) -> None:
    items = "".join(f"    - path: {path}\n      md5: {'f' * 32}\n" for path in outputs)
    (root / "dvc.lock").write_text(f"schema: '2.0'\nstages:\n  job:\n    cmd: make\n    outs:\n{items}")


def test_recorded_tables_are_those_of_the_lock_and_no_other_published_page(tmp_path: Path) -> None:
    published = tmp_path / "reports" / "published"
    published.mkdir(parents=True)
    (published / "determinism.md").write_text("no table\n")
    lock(tmp_path, "reports/table2.pdf", "reports/table2.csv", "runs/figure.pdf", "reports/smoke/table1.pdf")
    assert recorded_targets(Project(tmp_path)) == ["reports/smoke/table1.pdf", "reports/table2.pdf"]


def test_without_a_record_it_is_the_default_table(tmp_path: Path) -> None:
    assert recorded_targets(Project(tmp_path)) == ["reports/table1.pdf"]
    (tmp_path / "dvc.lock").write_text("stages: 3")
    with pytest.raises(UserError, match=r"dvc\.lock"):
        recorded_targets(Project(tmp_path))


HEADER = '"""A method.\n\nMeasured (reports/table1.pdf): nothing yet.\nLegend: B images.\n"""\n\nRATE = 1.0\n'


def test_a_methods_header_gets_the_numbers_of_its_row_and_its_code_hash_stays(tmp_path: Path) -> None:
    project = Project(tmp_path)
    methods = project.source / "polygrain/methods"
    methods.mkdir(parents=True)
    for name in ("simclr", "wcl"):
        (methods / f"{name}.py").write_text(HEADER)
    before = tree_hash(HEADER)
    shutil.copytree(ROOT / "params", tmp_path / "params")
    numbers = tmp_path / "reports/published/table1.csv"
    numbers.parent.mkdir(parents=True)
    lines = [
        "row,column_group,column,n,text",
        "SimCLR,Fashion-MNIST,linear,3,85.1 ± 0.2",
        "SimCLR,Fashion-MNIST,1 % labels,3,73.0 ± 0.8",
        "SimCLR,Animal-MNIST,linear,3,90.0 ± 0.0",
        "WCL,Fashion-MNIST,linear,0,—",
    ]
    numbers.write_text("\n".join(lines) + "\n", encoding="utf-8")
    show_in_headers(project, "reports/table1.pdf")
    header = (methods / "simclr.py").read_text(encoding="utf-8")
    assert "\nMeasured (reports/table1.pdf): Fashion-MNIST linear 85.1 ± 0.2, Animal-MNIST linear 90.0.\n" in header
    assert "\nLegend: B images.\n" in header
    assert tree_hash(header) == before
    assert (methods / "wcl.py").read_text() == HEADER  # its row has no number
    (methods / "simclr.py").write_text(HEADER)
    show_in_headers(project, "reports/smoke/table1.pdf")  # not the default table
    show_in_headers(project, "reports/ledger.pdf")  # a table without rows
    assert (methods / "simclr.py").read_text() == HEADER
