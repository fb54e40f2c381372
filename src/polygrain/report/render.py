"""The same cells as CSV, Markdown and LaTeX. The PDF is in `pdf.py`."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from polygrain.report.cells import ABSENT, Cell, TableContent, TableRow
from polygrain.report.escape import latex, markdown
from polygrain.report.spec import Column

CSV_HEADER = (
    *("row_group", "row", "column_group", "column", "unit", "mean", "sd", "n", "text", "best"),
    *("reference", "difference", "low", "high", "p", "p_holm", "by_seed", "note"),
)
RECONSTRUCTED, COLLAPSED = "‡", "†"


def marks(table: TableContent, notes: Sequence[str]) -> str:
    """The footnote marks of some notes, such as `a,b`."""
    known = table.footnotes
    return ",".join(known[note] for note in notes)


def row_marks(table: TableContent, row: TableRow) -> str:
    """The marks behind a row's label."""
    symbols = (COLLAPSED if row.collapsed else "", RECONSTRUCTED if row.reconstructed else "")
    return ",".join(part for part in (*symbols, marks(table, row.notes)) if part)


def column_groups(columns: Sequence[Column]) -> Iterator[tuple[str, list[Column]]]:
    """Neighbouring columns under one spanning header."""
    for label, members in groupby(columns, key=lambda column: column.group):
        yield label, list(members)


def width(columns: Iterable[Column]) -> int:
    """How many typeset columns these take: that of a protocol takes two, numbers, then spreads and marks."""
    return sum(2 if column.measured else 1 for column in columns)


def head_marks(table: TableContent, column: Column) -> str:
    """The mark behind the head of a column."""
    return marks(table, [column.note] if column.note else [])


def render_csv(table: TableContent) -> str:
    """Tidy CSV, one line per cell. Means, deviations and differences are in the unit of the line."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for group in table.groups:
        for row in group.rows:
            notes = [*row.notes, *(["Has reconstructed parts."] if row.reconstructed else [])]
            notes += [f"Collapsed: {row.collapsed}."] if row.collapsed else []
            for column, cell in zip(table.columns, row.cells, strict=True):
                place = (group.label, row.label, column.group, column.label)
                writer.writerow((*place, *_csv_cell(cell), " ".join([*notes, *cell.notes])))
    return buffer.getvalue()


def _csv_cell(cell: Cell) -> tuple[str | int, ...]:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.{cell.decimals}f}"

    compared: tuple[str, ...] = ("",) * 7
    if cell.comparison is not None:
        found = cell.comparison.difference
        p_values = (f"{value:.6f}" for value in (found.p, cell.comparison.p_adjusted))
        by_seed = " ".join(map(number, found.by_seed))
        interval = map(number, (found.estimate, found.low, found.high))
        compared = (cell.comparison.reference, *interval, *p_values, by_seed)
    return (cell.unit, number(cell.mean), number(cell.sd), cell.n, cell.text, int(cell.best), *compared)


def render_markdown(table: TableContent) -> str:
    """GitHub Markdown: caption, table, notes."""
    heads = [_markdown_head(table, column) for column in table.columns]
    lines = [
        f"**{markdown(table.name)}. {markdown(table.title)}.** {markdown(table.caption)}",
        "",
        _markdown_line(["", *heads]),
        _markdown_line([":--", *(":--" if column.setting else "--:" for column in table.columns)]),
    ]
    for group in table.groups:
        lines.append(_markdown_line([f"**{markdown(group.label)}**", *[""] * len(heads)]))
        lines += [_markdown_row(table, row) for row in group.rows]
    notes = [f"<sup>{mark}</sup> {markdown(text)}" for text, mark in table.footnotes.items()]
    notes += [markdown(text) for text in table.legend]
    notes += [f"<sub>{markdown(table.footer.text)} ({table.footer.claim_id})</sub>"]
    return "\n".join([*lines, "", "<br>\n".join(notes)]) + "\n"


def _markdown_head(table: TableContent, column: Column) -> str:
    group = f"{markdown(column.group)}<br>" if column.group else ""
    return group + markdown(column.label) + _markdown_marks(head_marks(table, column))


def _markdown_marks(text: str) -> str:
    return f"<sup>{text}</sup>" if text else ""


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_row(table: TableContent, row: TableRow) -> str:
    cells = [markdown(row.label) + _markdown_marks(row_marks(table, row))]
    for column, cell in zip(table.columns, row.cells, strict=True):
        main = f"**{cell.main}**" if cell.best else markdown(cell.main)
        spread = f" ± {cell.spread}" if cell.spread else ""
        cells.append(main + spread + _markdown_marks(" ".join(after(table, row, column, cell))))
    return _markdown_line(cells)


def after(table: TableContent, row: TableRow, column: Column, cell: Cell) -> tuple[str, ...]:
    """What stands behind a number: the arrow, footnote marks, and that the row has collapsed."""
    word = "collapsed" if row.collapsed and column.measured and cell.n else ""
    return tuple(part for part in (cell.arrow, marks(table, cell.notes), word) if part)


def render_latex(table: TableContent) -> str:
    """A `table` environment to include in a paper; needs booktabs only. Means and spreads are aligned."""
    total = 1 + width(table.columns)
    label = "".join(character for character in table.name.lower() if character.isascii() and character.isalnum())
    aligns = ("r@{}l" if column.measured else "l" if column.setting else "r" for column in table.columns)
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}[tb]",
        r"\centering",
        rf"\caption{{\textbf{{{latex(table.title)}.}} {latex(table.caption)}}}",
        rf"\label{{tab:{label}}}",
        r"\footnotesize\setlength{\tabcolsep}{4pt}",
        rf"\begin{{tabular}}{{@{{}}l{''.join(aligns)}@{{}}}}",
        r"\toprule",
        *_latex_heads(table),
    ]
    for group in table.groups:
        lines.append(r"\midrule")
        lines.append(rf"\multicolumn{{{total}}}{{@{{}}l}}{{\textit{{{latex(group.label)}}}}} \\")
        lines += [_latex_row(table, row) for row in group.rows]
    lines += [r"\bottomrule", r"\end{tabular}", "", r"\smallskip", r"\begin{minipage}{\linewidth}\scriptsize"]
    lines += [rf"\textsuperscript{{{mark}}}{latex(text)}\par" for text, mark in table.footnotes.items()]
    lines += [rf"{latex(text)}\par" for text in table.legend]
    footer = f"{table.footer.text} ({table.footer.claim_id})"
    return "\n".join([*lines, rf"\texttt{{{latex(footer)}}}", r"\end{minipage}", r"\end{table}"]) + "\n"


def _latex_heads(table: TableContent) -> Iterator[str]:
    """The spanning heads with their rules when any group has a name, then the heads of the columns."""
    spans, rules, start = [""], [], 2
    for label, members in column_groups(table.columns):
        end = start + width(members)
        spans.append(rf"\multicolumn{{{end - start}}}{{c}}{{{latex(label)}}}")
        if label:
            rules.append(rf"\cmidrule(lr){{{start}-{end - 1}}}")
        start = end
    if rules:
        yield " & ".join(spans) + r" \\"
        yield " ".join(rules)
    heads = [""]
    for column in table.columns:
        mark = _latex_marks(head_marks(table, column))
        heads.append(rf"\multicolumn{{{width([column])}}}{{c}}{{{latex(column.label)}{mark}}}")
    yield " & ".join(heads) + r" \\"


def _latex_marks(text: str) -> str:
    return rf"\textsuperscript{{{latex(text)}}}" if text else ""


def _latex_row(table: TableContent, row: TableRow) -> str:
    cells = [latex(row.label) + _latex_marks(row_marks(table, row))]
    for column, cell in zip(table.columns, row.cells, strict=True):
        main = latex(cell.main)
        main = rf"\textbf{{{main}}}" if cell.best else main
        behind = _latex_marks(" ".join(after(table, row, column, cell)))
        if not column.measured:
            cells.append(main + behind)
        elif cell.main == ABSENT:
            cells.append(rf"\multicolumn{{2}}{{c}}{{{main}{behind}}}")
        else:
            cells += [main, (rf"\,$\pm$\,{cell.spread}" if cell.spread else "") + behind]
    return " & ".join(cells) + r" \\"
