"""The four formats against golden files, awkward labels, equal bytes, atomic writing, no torch."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from polygrain.provenance.errors import UserError
from polygrain.report.build import build_table, filled_table
from polygrain.report.escape import latex, markdown, typst
from polygrain.report.pdf import pdf_source, render_pdf
from polygrain.report.render import CSV_HEADER, render_csv, render_latex, render_markdown

Config = dict[str, Any]
GOLDEN = Path(__file__).parent / "golden"
AWKWARD = 'a_b & 50% #x $y [z] <w> | *v* \\ "q" {r} ~ ^ `s`'


@pytest.mark.parametrize(
    ("name", "render"),
    [("small.csv", render_csv), ("small.md", render_markdown), ("small.tex", render_latex), ("small.typ", pdf_source)],
)
def test_golden(config: Config, project: Path, name: str, render: Any) -> None:
    (project / "runs/cpu/toy/pca/base/seed1/results/linear.json").unlink()
    assert render(filled_table(config, project)) == (GOLDEN / name).read_text()


def test_build_writes_all_formats_twice_the_same(config: Config, project: Path) -> None:
    outputs = {
        copy: {kind: project / copy / f"table9.{kind}" for kind in ("pdf", "csv", "md", "tex")}
        for copy in ("one", "two")
    }
    for paths in outputs.values():
        build_table(config, project, paths)
    for kind, path in outputs["one"].items():
        assert path.read_bytes() == outputs["two"][kind].read_bytes()
    assert sorted(path.name for path in (project / "one").iterdir()) == [
        f"table9.{k}" for k in ("csv", "md", "pdf", "tex")
    ]


def test_pdf_is_one_and_has_no_time(config: Config, project: Path) -> None:
    pdf = render_pdf(filled_table(config, project))
    assert pdf.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 1
    assert b"CreationDate" not in pdf
    assert b"ModDate" not in pdf
    assert b"NewCM10" in pdf


def test_no_output_holds_the_place_it_was_made_in(config: Config, project: Path) -> None:
    outputs = {kind: project / f"out.{kind}" for kind in ("pdf", "csv", "md", "tex")}
    build_table(config, project, outputs)
    for path in outputs.values():
        assert str(project).encode() not in path.read_bytes()


def test_nothing_is_written_when_a_result_is_malformed(config: Config, project: Path) -> None:
    (project / "runs/cpu/toy/plain/base/seed0/results/knn.json").write_text("{")
    outputs = {kind: project / "out" / f"t.{kind}" for kind in ("pdf", "csv", "md", "tex")}
    with pytest.raises(UserError, match=r"knn\.json"):
        build_table(config, project, outputs)
    assert not (project / "out").exists()


def test_unknown_format(config: Config, project: Path) -> None:
    with pytest.raises(UserError, match="no output format 'pdff'; did you mean 'pdf'"):
        build_table(config, project, {"pdff": project / "x"})


@pytest.mark.parametrize(
    ("fault", "message"),
    [("manifest", r"manifest\.json: not found"), ("inputs", "lacks the hashes of"), ("hash", "no SHA-256")],
)
def test_identity_is_never_guessed(config: Config, project: Path, fault: str, message: str) -> None:
    row = config["groups"][0]["rows"][0]
    if fault == "manifest":
        (project / "data/toy/manifest.json").unlink()
    elif fault == "inputs":
        row["inputs"] = {}
    else:
        row["inputs"] = {run: {**hashes, "code": "new"} for run, hashes in row["inputs"].items()}
    with pytest.raises(UserError, match=message):
        build_table(config, project, {"csv": project / "t.csv"})


def test_escapes() -> None:
    assert markdown(AWKWARD) == (
        'a\\_b &amp; 50% \\#x <span>$</span>y \\[z\\] &lt;w&gt; \\| \\*v\\* \\\\ "q" {r} \\~ ^ \\`s\\`'
    )
    assert latex(AWKWARD) == (
        "a\\_b \\& 50\\% \\#x \\$y {[}z{]} \\textless{}w\\textgreater{} \\textbar{} {*}v{*} \\textbackslash{} "
        "\\textquotedbl{}q\\textquotedbl{} \\{r\\} \\textasciitilde{} \\textasciicircum{} `s`"
    )
    assert typst('a\\b "c" #d') == '#"a\\\\b \\"c\\" #d";'


def test_awkward_labels_survive_everywhere(config: Config, project: Path) -> None:
    """Wherever a person writes text; the table stays a table and the page compiles."""
    config |= {"title": AWKWARD, "caption": AWKWARD, "footnotes": [AWKWARD]}
    config["groups"][1]["label"] = AWKWARD
    config["groups"][1]["rows"][2] |= {"label": AWKWARD, "note": AWKWARD, "reconstructed": AWKWARD}
    config["columns"][0] |= {"label": AWKWARD, "group": AWKWARD, "note": AWKWARD}
    table = filled_table(config, project)
    lines = list(csv.reader(io.StringIO(render_csv(table))))
    assert {len(line) for line in lines} == {len(CSV_HEADER)}
    assert AWKWARD in {line[1] for line in lines}
    unescaped_bars = {
        len(re.findall(r"(?<!\\)\|", line)) for line in render_markdown(table).splitlines() if line.startswith("|")
    }
    assert unescaped_bars == {len(table.columns) + 2}
    body = render_latex(table).split("\\toprule")[1].split("\\bottomrule")[0]
    assert not re.search(r"(?<!\\)[#%]|\\\\\s*[\[*]", body)
    assert render_pdf(table).startswith(b"%PDF-")


def test_typst_prints_labels_literally(config: Config, project: Path) -> None:
    import typst as compiler

    config["groups"][0]["rows"][0]["label"] = "#sys.version; *v* @x $y$"
    config["compare"] = None
    source = pdf_source(filled_table(config, project))
    marked = source.replace('[#"#sys.version; *v* @x $y$";]', '[#"#sys.version; *v* @x $y$";<probe>]')
    assert marked != source
    found = compiler.query(marked.encode(), "<probe>", field="text", ignore_system_fonts=True)
    assert json.loads(found) == ["#sys.version; *v* @x $y$"]


def test_a_table_without_groups_and_comparisons(config: Config, project: Path) -> None:
    for column in config["columns"]:
        column.pop("group", None)
    del config["compare"]
    table = filled_table(config, project)
    assert "cmidrule" not in render_latex(table)
    assert "↑" not in render_markdown(table)
    assert render_pdf(table).startswith(b"%PDF-")


def test_the_report_room_needs_no_torch() -> None:
    code = "import sys, polygrain.report.build; print(sorted({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_fonts_of_the_machine_are_not_used(config: Config, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A glyph that the packaged fonts lack would be taken from whatever the machine has."""
    given: dict[str, Any] = {}
    monkeypatch.setattr("polygrain.report.pdf.compiler.compile", lambda source, **options: given.update(options) or b"")
    render_pdf(filled_table(config, project))
    assert given["ignore_system_fonts"] is True
    assert "font_paths" not in given
