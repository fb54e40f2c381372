from pathlib import Path

import pytest

from polygrain.cli.claims import recorded_targets
from polygrain.config.project import Project
from polygrain.provenance.errors import UserError


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
