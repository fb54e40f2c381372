"""Cells by name: what a person types, what it stands for, and what is said when it stands for nothing."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from polygrain.audit.cells import find_cell, printed_cell
from polygrain.config.project import Project
from polygrain.config.tables import Table, rows, specification
from polygrain.provenance.checklock import is_marked_stale
from polygrain.provenance.errors import UserError

REPOSITORY = Project(Path(__file__).resolve().parents[2])
TABLE = """
    name: Toy
    title: Toy
    caption: Toy
    dataset: fashion-mnist
    seeds: [0, 1, 2]
    groups:
      - label: Controls
        rows:
          - {label: Principal   components, method: pca}
      - label: Learned
        rows:
          - {label: WCL, method: mugs, variant: odd}
          - {label: Two heads, method: wcl}
          - {label: One head, method: wcl, variant: nce-only, without: {images: It saw none.}}
    columns:
      - {id: knn, group: Own, label: k-NN, protocol: knn, value: fashion-mnist/top1}
      - {id: images, label: images, fact: images_seen}
      - {id: grains, label: grains, setting: method.grains}
      - {id: elsewhere, label: reported, reported: true}
    reported:
      - {row: Two heads, column: elsewhere, record: wcl-imagenet}
    """


def test_a_cell_that_the_table_leaves_out_is_refused_with_its_reason(project: Project) -> None:
    with pytest.raises(UserError, match=r"row 'One head' has no number in column 'images': It saw none"):
        find_cell(project, "reports/toy.pdf", "One head", "images")
    assert find_cell(project, "reports/toy.pdf", "One head", "knn").protocol == "knn"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "params/table").mkdir(parents=True)
    (tmp_path / "params/table/toy.yaml").write_text(textwrap.dedent(TABLE))
    (tmp_path / "workflow").symlink_to(REPOSITORY.root / "workflow")
    return Project(tmp_path)


@pytest.mark.parametrize(
    ("typed", "label"),
    [
        ("Two heads", "Two heads"),
        ("two  HEADS", "Two heads"),
        ("wcl/base", "Two heads"),
        ("WCL/nce-only", "One head"),
        ("pca", "Principal components"),
        ("principal components", "Principal components"),
        ("wcl", "WCL"),  # what the table prints goes before what a method is called
        ("mugs", "WCL"),
    ],
)
def test_a_row_is_its_label_or_its_method(project, typed, label):
    assert find_cell(project, "reports/toy.pdf", typed, "knn").row_label == label


def test_an_address_holds_the_place_the_value_and_a_run_per_seed(project):
    cell = find_cell(project, "reports/smoke-seeds2/toy.csv", "one head", "KNN")
    assert (cell.row_group, cell.row_label, cell.method, cell.variant) == ("Learned", "One head", "wcl", "nce-only")
    assert (cell.column, cell.column_group, cell.column_label) == ("knn", "Own", "k-NN")
    assert (cell.protocol, cell.value) == ("knn", "fashion-mnist/top1")
    assert (cell.fact, cell.setting, cell.reported, cell.record) == ("", "", False, "")
    runs = [f"runs/smoke/fashion-mnist/wcl/nce-only/seed{seed}" for seed in (0, 1)]
    assert [str(run.path) for run in cell.runs] == runs


def test_every_kind_of_column(project):
    def cell(row, column):
        return find_cell(project, "reports/toy.pdf", row, column)

    assert cell("pca", "images").fact == "images_seen"
    assert cell("pca", "grains").setting == "method.grains"
    assert cell("two heads", "elsewhere").record == "wcl-imagenet"
    assert cell("pca", "elsewhere").reported
    assert cell("pca", "elsewhere").record == ""


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [
        ("One hat", "knn", "no row 'One hat', did you mean 'One head'?; rows: Principal components (pca/base), WCL"),
        ("xyzzy", "knn", "no row 'xyzzy'; rows: "),
        ("pca", "k-nn", "no column 'k-nn', did you mean 'knn'?; columns: knn, images, grains, elsewhere"),
        ("pca/odd", "knn", "did you mean"),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(project, row, column, words):
    with pytest.raises(UserError) as error:
        find_cell(project, "reports/toy.pdf", row, column)
    assert words in str(error.value)


def test_a_method_of_several_rows_must_be_told_apart(project):
    table = project.params / "table/toy.yaml"
    table.write_text(table.read_text().replace("label: WCL,", "label: Odd,"))
    with pytest.raises(UserError, match="2 rows are called 'wcl'; say one of wcl/base, wcl/nce-only"):
        find_cell(project, "reports/toy.pdf", "wcl", "knn")


def test_a_column_of_two_kinds_is_refused(project):
    table = project.params / "table/toy.yaml"
    table.write_text(table.read_text().replace("fact: images_seen", "fact: images_seen, reported: true"))
    with pytest.raises(UserError, match="column 'images' needs exactly one of"):
        find_cell(project, "reports/toy.pdf", "One head", "images")


def test_the_ledger_has_no_cells():
    with pytest.raises(UserError, match="prints no measured cell"):
        find_cell(REPOSITORY, "reports/ledger.pdf", "mugs", "knn")


def test_the_printed_line_is_found_by_its_labels(project):
    cell = find_cell(project, "reports/toy.pdf", "wcl/base", "knn")
    head = "row_group,row,column_group,column,unit,text\n"
    line = "Learned,Two heads,Own,k-NN,%,81.1\n"
    others = "Learned,Two heads,Far,k-NN,%,1\nLearned,One head,Own,k-NN,%,2\n"
    found = printed_cell(head + others + line, cell)
    assert found is not None
    assert found["text"] == "81.1"
    assert printed_cell(head + others, cell) is None
    assert printed_cell(head + line + line, cell) is None
    assert printed_cell("", cell) is None


def test_every_cell_of_table_1_has_an_address_and_the_published_page_no_other():
    spec = specification(REPOSITORY, Table("table1"))
    texts = {}
    content = (REPOSITORY.root / "reports/published/table1.csv").read_text()
    for row in rows(spec):
        for column in spec["columns"]:
            name = f"{row['method']}/{row.get('variant', 'base')}"
            if column["id"] in row.get("without", {}):
                with pytest.raises(UserError, match="has no number in column"):
                    find_cell(REPOSITORY, "reports/table1.pdf", name, column["id"])
                continue
            address = find_cell(REPOSITORY, "reports/table1.pdf", name, column["id"])
            assert (address.row_label, address.column) == (row["label"], column["id"])
            texts[name, column["id"]] = printed_cell(content, address)
    if not is_marked_stale(REPOSITORY.root / "reports/published/table1.md"):
        assert None not in texts.values()
        without = sum(len(row.get("without", {})) for row in rows(spec))
        assert len(texts) + without == len(content.splitlines()) - 1


def test_finding_a_cell_loads_nothing_heavy():
    code = "import sys, polygrain.audit.cells\nassert not {'torch', 'numpy', 'pandas'} & set(sys.modules)\n"
    subprocess.run([sys.executable, "-c", code], check=True)
