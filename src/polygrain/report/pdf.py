"""The same cells as a PDF of one page that fits its content, typeset by Typst with the fonts in its package.

The file holds no time, and neither fonts of the system nor packages from the network are used, so the bytes depend on
the cells and the version of Typst only.
"""

from collections.abc import Iterator

import typst as compiler

from polygrain.report.cells import ABSENT, TableContent, TableRow
from polygrain.report.chart import chart
from polygrain.report.escape import typst, typst_string
from polygrain.report.render import after, column_groups, head_marks, row_marks, width

_PREAMBLE = """\
#set document(title: {title}, date: none)
#set page(width: auto, height: auto, margin: (x: 16pt, y: 16pt))
#set text(font: "New Computer Modern", size: 9pt, lang: "en")
#set par(justify: true, leading: 0.55em, spacing: 0.5em)
#let thin = 0.4pt
#let thick = 0.8pt
#let spread(body) = text(size: 0.85em, fill: luma(70))[\u2009±\u2009#body]
#let mark(body) = super(typographic: false, size: 0.65em, baseline: -0.4em, body)
#let spanning(width, body) = table.cell(colspan: width, align: center, inset: (x: 4pt, top: 4pt, bottom: 0pt),
  stack(spacing: 4pt, box(body), line(length: 100%, stroke: thin)))
"""
_FRAME = """\
#context {
  let width = calc.max(measure(body).width, 300pt)
  block(width: width, below: 9pt, caption)
  drawn
  body
  block(width: width, above: 7pt, notes)
}
"""


def render_pdf(table: TableContent) -> bytes:
    """Typeset a table. Equal cells give equal bytes."""
    return bytes(compiler.compile(pdf_source(table).encode(), format="pdf", ignore_system_fonts=True))


def pdf_source(table: TableContent) -> str:
    """The Typst source of the page."""
    title = typst_string(f"{table.name}. {table.title}")
    heading = typst(f"{table.name}. {table.title}.")
    return "".join(
        [
            _PREAMBLE.replace("{title}", title),
            f"#let caption = [*{heading}* {typst(table.caption)}]\n",
            f"#let drawn = [{chart(table)}]\n",
            "#let body = table(\n",
            *(f"  {line}\n" for line in _table(table)),
            ")\n#let notes = {\n  set text(size: 7pt)\n  set par(justify: false)\n",
            *(f"  {line}\n" for line in _notes(table)),
            "}\n",
            _FRAME,
        ]
    )


def _table(table: TableContent) -> Iterator[str]:
    aligns, lefts, rights = ["left"], ["0pt"], ["8pt"]
    for column in table.columns:
        pair = column.measured
        aligns += ["right", "left"] if pair else ["left" if column.setting else "right"]
        lefts += ["6pt", "0pt"] if pair else ["6pt"]
        rights += ["0pt", "6pt"] if pair else ["6pt"]
    rights[-1] = "0pt"
    yield f"columns: {len(aligns)}, align: ({', '.join(aligns)}), stroke: none,"
    yield f"inset: (x, y) => (left: ({', '.join(lefts)}).at(x), right: ({', '.join(rights)}).at(x), y: 3.2pt),"
    yield "table.hline(stroke: thick),"
    yield from _heads(table)
    for group in table.groups:
        yield "table.hline(stroke: thin),"
        yield f"table.cell(colspan: {len(aligns)}, inset: (x: 0pt, top: 5pt, bottom: 2.5pt))[_{typst(group.label)}_],"
        for row in group.rows:
            yield " ".join(_row(table, row))
    yield "table.hline(stroke: thick),"


def _heads(table: TableContent) -> Iterator[str]:
    if any(column.group for column in table.columns):
        yield "[],"
        for label, members in column_groups(table.columns):
            span = width(members)
            yield f"spanning({span})[{typst(label)}]," if label else f"table.cell(colspan: {span})[],"
    yield "[],"
    for column in table.columns:
        mark = _mark(head_marks(table, column))
        align = "left" if column.setting else "center"
        yield (
            f"table.cell(colspan: {width([column])}, align: {align}, inset: (x: 6pt, y: 4pt))"
            f"[{typst(column.label)}{mark}],"
        )


def _mark(text: str) -> str:
    return f"#mark[{typst(text)}]" if text else ""


def _row(table: TableContent, row: TableRow) -> Iterator[str]:
    yield f"[{typst(row.label)}{_mark(row_marks(table, row))}],"
    for column, cell in zip(table.columns, row.cells, strict=True):
        main = f"*{typst(cell.main)}*" if cell.best else typst(cell.main)
        behind = "#h(1pt)".join(map(_mark, after(table, row, column, cell)))
        if not column.measured:
            yield f"[{main}{behind}],"
        elif cell.main == ABSENT:
            yield f"table.cell(colspan: 2, align: center)[{main}{behind}],"
        else:
            spread = f"#spread[{typst(cell.spread)}]" if cell.spread else ""
            yield f"[{main}], [{spread}{behind}],"


def _notes(table: TableContent) -> Iterator[str]:
    for text, mark in table.footnotes.items():
        yield f"par[{_mark(mark)}#h(1.5pt){typst(text)}]"
    yield "v(2pt)"
    for text in table.legend:
        yield f"par[{typst(text)}]"
    yield "v(2pt)"
    yield f"text(size: 6.5pt, fill: luma(90), ligatures: false)[{typst(table.footer.text)}]"
    yield "linebreak()"
    yield f"text(size: 4.5pt, fill: luma(90), ligatures: false)[{typst('claim ' + table.footer.claim_id)}]"
