"""The ledger in its four formats: everything is in each, nothing is read as markup, pages hold it, bytes repeat."""

import csv
import io
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from polygrain.cli.main import main
from polygrain.config.ledger import Line, read_ledger
from polygrain.config.project import Project
from polygrain.provenance.errors import UserError
from polygrain.report.ledger import (
    LEGEND,
    build_ledger,
    footer,
    pdf_source,
    render_csv,
    render_latex,
    render_markdown,
    render_pdf,
    value_text,
)

PROJECT = Project(Path(__file__).resolve().parents[2])
AWKWARD = 'a_b & 50% #x $y [z] <w> | *v* \\ "q" {r} ~ ^ `s`'


def arm(says: str, value: Any, where: str = "section 1 (text)") -> dict[str, Any]:
    return {"says": says, "where": where, "value": value}


def line(method: str, name: str, **more: Any) -> Line:
    about = {"method": method, "id": name, "what": f"About {name}.", "switch": f"method.values.{name}"}
    return {**about, **more}


def small() -> list[Line]:
    deviation = line("one", "keys_grad", kind="deviation", described=arm("Both.", True), released=arm("One.", None))
    ours = line("one", "crops", kind="reconstructed", described=None, ours=arm("Four.", 4), other=arm("None.", 0))
    listed = line("two", "grains", kind="reconstructed", ours=arm("All.", ["a", "b"]), other=arm("Half.", ["a"]))
    return [deviation, {**ours, "with": {"pretrain.batch": 256, "method.values.x": "y"}}, listed]


def test_markdown_has_a_table_per_method_and_marks_what_is_ours() -> None:
    text = render_markdown(small())
    rows = [row for row in text.splitlines() if row.startswith("| ") and ":--" not in row]
    assert [row.split(" | ")[0] for row in rows] == [
        "| Place",
        "| About keys\\_grad.",
        "| About crops.<sup>‡</sup>",
        "| Place",
        "| About grains.<sup>‡</sup>",
    ]
    assert rows[1].split(" | ")[1:] == [
        "Both. (true)<br><sub>section 1 (text)</sub>",
        "One. (null)<br><sub>section 1 (text)</sub>",
        "method.values.keys\\_grad",
        "deviation |",
    ]
    assert rows[2].split(" | ")[1:] == [
        "*Ours:* Four. (4)<br><sub>section 1 (text)</sub>",
        "*Instead:* None. (0)<br><sub>section 1 (text)</sub>",
        "method.values.crops<br><sub>with method.values.x = y, pretrain.batch = 256</sub>",
        "reconstructed<sup>‡</sup> |",
    ]
    assert [row for row in text.splitlines() if row.startswith("### ")] == ["### one", "### two"]
    assert LEGEND in text
    assert f"<sub>{footer(small())}</sub>" in text


def test_csv_keeps_every_arm_in_columns_of_its_own() -> None:
    first, second, third = csv.DictReader(io.StringIO(render_csv(small())))
    assert (first["described"], first["described_value"], first["ours"], first["other_value"]) == (
        "Both.",
        "true",
        "",
        "",
    )
    assert (first["released_value"], first["released_where"]) == ("null", "section 1 (text)")
    assert (second["described"], second["ours"], second["ours_value"], second["other_value"]) == ("", "Four.", "4", "0")
    assert second["with"] == '{"method.values.x": "y", "pretrain.batch": 256}'
    assert (third["method"], third["id"], third["kind"], third["ours_value"]) == (
        "two",
        "grains",
        "reconstructed",
        '["a", "b"]',
    )


def test_the_order_of_keys_does_not_matter() -> None:
    """A job reads the lines from its configuration, whose keys are sorted."""
    for lines in (small(), read_ledger(PROJECT)):
        again = yaml.safe_load(yaml.safe_dump(lines, sort_keys=True))
        for render in (render_csv, render_markdown, render_latex, pdf_source):
            assert render(again) == render(lines)


def test_the_footer_counts_and_follows_the_content() -> None:
    assert footer(small()).startswith("deviations 1 · reconstructed 2 · ledger ")
    changed = small()
    changed[0]["what"] += "!"
    assert footer(changed) != footer(small())


@pytest.mark.parametrize(("value", "text"), [("swapped", "swapped"), (None, "null"), (0.5, "0.5"), ([1], "[1]")])
def test_values_are_those_of_the_yaml(value: Any, text: str) -> None:
    assert value_text(value) == text


def test_awkward_text_survives_everywhere() -> None:
    lines = small()
    lines[0] |= {"what": AWKWARD, "described": arm(AWKWARD, AWKWARD, AWKWARD)}
    bars = {len(re.findall(r"(?<!\\)\|", row)) for row in render_markdown(lines).splitlines() if row.startswith("| ")}
    assert bars == {6}
    assert AWKWARD in {row["described_where"] for row in csv.DictReader(io.StringIO(render_csv(lines)))}
    body = render_latex(lines).split("\\endhead")[1].split("\\bottomrule")[0]
    assert not re.search(r"(?<!\\)[#%]|\\\\\s*[\[*]", body)
    assert render_pdf(lines).startswith(b"%PDF-")
    with pytest.raises(UserError, match=r"params/ledger/one\.yaml, line 'keys_grad': invisible character U\+202E"):
        render_markdown([{**lines[0], "what": "a\u202eb"}])


def words_of(pdf: Path) -> list[tuple[list[float], list[float], str]]:
    """Each word with its box and its page's width and height."""
    text = subprocess.run(["pdftotext", "-bbox", pdf, "-"], capture_output=True, text=True, check=True).stdout
    found, page = [], [0.0]
    for row in text.splitlines():
        numbers = [float(number) for number in re.findall(r'"([\d.]+)"', row)]
        if "<page" in row:
            page = numbers
        elif "<word" in row:
            found.append((page, numbers, re.sub("<[^>]*>", "", row).strip()))
    return found


def test_the_ledger_of_the_repository_fits_its_pages_in_equal_bytes(tmp_path: Path) -> None:
    lines = read_ledger(PROJECT)
    outputs = [{kind: tmp_path / copy / f"l.{kind}" for kind in ("pdf", "csv", "md", "tex")} for copy in "ab"]
    for paths in outputs:
        build_ledger(lines, paths)
    for kind, path in outputs[0].items():
        assert path.read_bytes() == outputs[1][kind].read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()
    pdf = outputs[0]["pdf"].read_bytes()
    assert b"CreationDate" not in pdf
    assert b"ModDate" not in pdf
    words = words_of(outputs[0]["pdf"])
    margin = 14 / 25.4 * 72  # 14 mm
    for (width, height), (left, top, right, bottom), word in words:
        assert margin - 0.1 <= left < right <= width - margin + 0.1, word
        assert margin - 2 <= top < bottom <= height, word
    # every page says of which method its lines are: five heads, then the method
    pages = outputs[0]["pdf"].read_bytes().count(b"/Type /Page\n") or len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert [word for _, _, word in words].count("Place") == pages > 1


def test_columns_do_not_run_into_each_other(tmp_path: Path) -> None:
    """A key longer than its column ends its line at a dot or underscore."""
    lines = small()
    lines[0]["switch"] = "method.values." + "very_long_name_" * 6 + "end"
    path = tmp_path / "long.pdf"
    path.write_bytes(render_pdf(lines))
    key = [box for _, box, word in words_of(path) if "very_" in word]
    (kind,) = (box for _, box, word in words_of(path) if word == "deviation")
    assert len(key) > 2
    assert max(box[2] for box in key) < kind[0]
    assert "\\allowbreak{}" in render_latex(lines)


def test_a_method_is_named_again_on_its_next_page(tmp_path: Path) -> None:
    path = tmp_path / "two.pdf"
    path.write_bytes(render_pdf([{**small()[0], "id": f"line-{number}"} for number in range(40)]))
    names = [box[1] for _, box, word in words_of(path) if word == "one"]
    assert len(names) == 2
    assert "table.header(level: 2" in pdf_source(small())


def test_the_verb_prints_one_method_or_all(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT.root)
    assert main(["ledger", "wcl"]) == 0
    said = capsys.readouterr().out
    assert said == render_markdown(read_ledger(PROJECT, "wcl"))
    assert "### wcl" in said
    assert "### smog" not in said
    assert main(["ledger"]) == 0
    assert capsys.readouterr().out == render_markdown(read_ledger(PROJECT))
