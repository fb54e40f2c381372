"""The ledger of deviations as PDF, CSV, Markdown and LaTeX, from lines as `polygrain.config.ledger` reads them.

Unlike a table it is text, so the PDF has pages of A4 with a head on each. Equal lines give equal bytes.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typst as compiler

from polygrain.config.ledger import ARMS, Line, arms
from polygrain.provenance.files import canonical_json, sha256_bytes, write_bytes
from polygrain.report.escape import latex, markdown, typst
from polygrain.report.spec import clean

if TYPE_CHECKING:  # what a stage says of itself decides no output: it stays out of the code hash
    from polygrain.provenance.stage import Stage

TITLE = "Ledger of deviations"
CAPTION = (
    "Where a paper's text and its released code differ, with both behaviours, and what is reconstructed because no "
    "source says it. The switch is the key of a run's configuration that chooses between the two arms; a run takes the "
    "first unless its variant, or here the line, says otherwise."
)
LEGEND = (
    "‡ Reconstructed: ours, where no source says it, or a switch of an ablation grid; instead of described and "
    "released, what we do and what else the switch offers."
)
HEADS = ("Place", "Described", "Released", "Switch", "Kind")
MARK = "‡"


@dataclass(frozen=True)
class Arm:
    """One behaviour: its heading where the column's does not fit, what it does, its value, where that is written."""

    heading: str
    says: str
    value: str
    where: str


@dataclass(frozen=True)
class Entry:
    """One printed line."""

    method: str
    what: str
    arms: tuple[Arm, Arm]
    switch: str
    conditions: str
    """What both arms need besides, for the switch to show; may be empty."""
    kind: str

    @property
    def mark(self) -> str:
        """Behind the place and the kind of what is reconstructed."""
        return MARK if self.kind == "reconstructed" else ""


def entry(line: Line) -> Entry:
    """A line as it is printed. Raises UserError on invisible characters."""
    where = f"params/ledger/{line['method']}.yaml, line '{line['id']}'"
    headings = ("", "") if line["kind"] == "deviation" else ("Ours:", "Instead:")
    first, second = (
        Arm(heading, clean(where, arm["says"]), value_text(arm["value"]), clean(where, arm["where"]))
        for heading, arm in zip(headings, arms(line), strict=True)
    )
    conditions = ", ".join(f"{key} = {value_text(value)}" for key, value in sorted(line.get("with", {}).items()))
    return Entry(line["method"], clean(where, line["what"]), (first, second), line["switch"], conditions, line["kind"])


def value_text(value: Any) -> str:
    """A value as its YAML has it."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def run(stage: "Stage") -> None:
    """Write the table in every format."""
    build_ledger(stage.config["lines"], {path.suffix.lstrip("."): path for path in stage.outputs})


def build_ledger(lines: Sequence[Line], outputs: Mapping[str, Path]) -> None:
    """Write the ledger in the formats that `outputs` names, each atomically, none before all are rendered."""
    contents = {path: RENDERERS[kind](lines) for kind, path in outputs.items()}
    for path, content in contents.items():
        write_bytes(path, content)


def render_csv(lines: Sequence[Line]) -> str:
    """One line each, with every arm's text, place and value in columns of their own."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [name for kind in ARMS.values() for name in kind]
    arm_heads = [f"{name}{part}" for name in names for part in ("", "_where", "_value")]
    writer.writerow(["method", "id", "kind", "what", *arm_heads, "switch", "with"])
    for line in lines:
        cells: list[str] = []
        for name in names:
            arm = line.get(name)
            cells += [arm["says"], arm["where"], json.dumps(arm["value"], sort_keys=True)] if arm else ["", "", ""]
        conditions = json.dumps(line["with"], sort_keys=True) if line.get("with") else ""
        writer.writerow([line["method"], line["id"], line["kind"], line["what"], *cells, line["switch"], conditions])
    return buffer.getvalue()


def render_markdown(lines: Sequence[Line]) -> str:
    """GitHub Markdown: caption, a table per method, legend."""
    text = [f"**{TITLE}.** {markdown(CAPTION)}", ""]
    for method, entries in _by_method(lines):
        text += [f"### {markdown(method)}", "", f"| {' | '.join(HEADS)} |", f"|{' :-- |' * len(HEADS)}"]
        text += [f"| {' | '.join(_markdown_cells(entry))} |" for entry in entries]
        text.append("")
    return "\n".join([*text, markdown(LEGEND), "", f"<sub>{footer(lines)}</sub>"]) + "\n"


def _markdown_cells(entry: Entry) -> Iterator[str]:
    yield markdown(entry.what) + (f"<sup>{entry.mark}</sup>" if entry.mark else "")
    for arm in entry.arms:
        heading = f"*{arm.heading}* " if arm.heading else ""
        yield f"{heading}{markdown(arm.says)} ({markdown(arm.value)})<br><sub>{markdown(arm.where)}</sub>"
    yield markdown(entry.switch) + (f"<br><sub>with {markdown(entry.conditions)}</sub>" if entry.conditions else "")
    yield entry.kind + (f"<sup>{entry.mark}</sup>" if entry.mark else "")


def render_latex(lines: Sequence[Line]) -> str:
    """A `longtable` for a page in landscape; needs longtable, array and booktabs."""
    widths = (0.21, 0.25, 0.25, 0.16, 0.09)
    columns = "".join(rf">{{\raggedright\arraybackslash}}p{{{width}\linewidth}}" for width in widths)
    heads = " & ".join(HEADS) + r" \\"
    text = [
        r"% needs \usepackage{longtable,array,booktabs}",
        r"\begingroup\scriptsize\setlength{\tabcolsep}{3pt}",
        rf"\begin{{longtable}}{{{columns}}}",
        rf"\caption{{\textbf{{{TITLE}.}} {latex(CAPTION)}}}\label{{tab:ledger}} \\",
        rf"\toprule {heads} \midrule \endfirsthead",
        rf"\toprule {heads} \midrule \endhead",
    ]
    for method, entries in _by_method(lines):
        text.append(rf"\multicolumn{{{len(HEADS)}}}{{l}}{{\textit{{{latex(method)}}}}} \\ \midrule")
        text += [" & ".join(_latex_cells(entry)) + r" \\" for entry in entries]
        text.append(r"\midrule")
    text[-1] = r"\bottomrule"
    return (
        "\n".join([*text, r"\end{longtable}", rf"{latex(LEGEND)}\par", rf"\texttt{{{footer(lines)}}}\endgroup"]) + "\n"
    )


def _latex_cells(entry: Entry) -> Iterator[str]:
    mark = rf"\textsuperscript{{{latex(entry.mark)}}}" if entry.mark else ""
    yield latex(entry.what) + mark
    for arm in entry.arms:
        heading = rf"\textit{{{arm.heading}}} " if arm.heading else ""
        yield rf"{heading}{latex(arm.says)} (\texttt{{{latex(arm.value)}}}) [{latex(arm.where)}]"
    with_ = f" (with {latex(entry.conditions)})" if entry.conditions else ""
    yield latex(entry.switch).replace(".", r".\allowbreak{}").replace(r"\_", r"\_\allowbreak{}") + with_
    yield entry.kind + mark


_PREAMBLE = """\
#set document(title: "{title}", date: none)
#set page("a4", flipped: true, margin: (x: 14mm, top: 14mm, bottom: 16mm), footer: context {
  set text(size: 6.5pt, fill: luma(90), ligatures: false)
  [{footer} #h(1fr) #counter(page).display("1 / 1", both: true)]
})
#set text(font: "New Computer Modern", size: 8pt, lang: "en")
#set par(justify: false, leading: 0.5em, spacing: 0.5em)
#let thin = 0.4pt
#let thick = 0.8pt
#let mark(body) = super(typographic: false, size: 0.65em, baseline: -0.4em, body)
#let value(body) = text(font: "DejaVu Sans Mono", size: 0.8em, body)
#let source(body) = block(above: 3pt, text(size: 0.82em, fill: luma(90), body))
#let caption(body) = block(below: 8pt, body)
#let ledger(..cells) = table(
  columns: (1.15fr, 1.5fr, 1.5fr, 1.1fr, auto), stroke: none, align: left,
  inset: (x, y) => (left: if x == 0 { 0pt } else { 5pt }, right: if x == 4 { 0pt } else { 5pt }, y: 3.5pt), ..cells)
"""


def render_pdf(lines: Sequence[Line]) -> bytes:
    """Typeset the ledger. Equal lines give equal bytes."""
    return bytes(compiler.compile(pdf_source(lines).encode(), format="pdf", ignore_system_fonts=True))


def pdf_source(lines: Sequence[Line]) -> str:
    """The Typst source of the pages."""
    return "".join(
        [
            _PREAMBLE.replace("{title}", TITLE).replace("{footer}", typst(footer(lines))),
            f"#caption[*{typst(TITLE + '.')}* {typst(CAPTION)}]\n",
            "#ledger(\n  table.hline(stroke: thick),\n",
            f"  table.header({', '.join(f'[{typst(head)}]' for head in HEADS)}, table.hline(stroke: thin)),\n",
            *(f"  {row}\n" for row in _typst_rows(lines)),
            "  table.hline(stroke: thick),\n)\n",
            f"#text(size: 7pt)[{typst(LEGEND)}]\n",
        ]
    )


def _typst_rows(lines: Sequence[Line]) -> Iterator[str]:
    for number, (method, entries) in enumerate(_by_method(lines)):
        if number:
            yield "table.hline(stroke: thin),"
        # a head of the second level: on every page that has lines of the method, and never alone at the end of one
        heading = f"table.cell(colspan: 5, inset: (x: 0pt, top: 6pt, bottom: 2.5pt))[_{typst(method)}_]"
        yield f"table.header(level: 2, {heading}),"
        for entry in entries:
            yield " ".join(f"table.cell(breakable: false)[{cell}]," for cell in _typst_cells(entry))


def _typst_cells(entry: Entry) -> Iterator[str]:
    mark = f"#mark[{typst(entry.mark)}]" if entry.mark else ""
    yield typst(entry.what) + mark
    for arm in entry.arms:
        heading = f"_{typst(arm.heading)}_ " if arm.heading else ""
        value = f"#value[{typst(_breakable(arm.value))}]"
        yield f"{heading}{typst(arm.says)} {value}#source[{typst(arm.where)}]"
    conditions = f"#source[{typst('with ' + _breakable(entry.conditions))}]" if entry.conditions else ""
    yield f"#value[{typst(_breakable(entry.switch))}]{conditions}"
    yield typst(entry.kind) + mark


def _breakable(key: str) -> str:
    """A dotted key or a list that may end a line behind its separators."""
    for separator in "._,":
        key = key.replace(separator, f"{separator}\N{ZERO WIDTH SPACE}")
    return key


def footer(lines: Sequence[Line]) -> str:
    """How many lines, and a hash of them."""
    ours = sum(line["kind"] == "reconstructed" for line in lines)
    name = sha256_bytes(canonical_json(list(lines)).encode())[:16]
    return f"deviations {len(lines) - ours} · reconstructed {ours} · ledger {name}"


def _by_method(lines: Sequence[Line]) -> Iterator[tuple[str, list[Entry]]]:
    for method, members in groupby(lines, key=lambda line: str(line["method"])):
        yield method, [entry(line) for line in members]


RENDERERS: Mapping[str, Callable[[Sequence[Line]], bytes]] = {
    "pdf": render_pdf,
    "csv": lambda lines: render_csv(lines).encode(),
    "md": lambda lines: render_markdown(lines).encode(),
    "tex": lambda lines: render_latex(lines).encode(),
}
