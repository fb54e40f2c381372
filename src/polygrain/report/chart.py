"""The drawing of a profile, in Typst's own shapes: a panel for each column, a row for each row of the table.

All lengths are in pt, with two decimals, so equal numbers give equal text. Blue and red follow the arrows of the table.
"""

from collections.abc import Iterator, Sequence

from polygrain.report.cells import Bar, TableContent
from polygrain.report.escape import typst

_LABELS, _PANEL, _GAP, _ROW, _HEAD, _FOOT = 118.0, 62.0, 10.0, 11.0, 26.0, 12.0
_COLOURS = {"↑": "rgb(31, 97, 178)", "↓": "rgb(196, 58, 49)", "": "luma(60)"}


def chart(table: TableContent) -> str:
    """Typst content; empty for a table without profile."""
    profile = table.profile
    if profile is None:
        return ""
    lines = [line for label, rows in profile.bars for line in ((label, ()), *rows)]
    height = _HEAD + _ROW * len(lines) + _FOOT
    width = _LABELS + (_PANEL + _GAP) * len(table.columns)
    shapes = [*_labels(lines), *_heads(table)]
    for place in range(len(table.columns)):
        left = _LABELS + place * (_PANEL + _GAP)
        shapes += _panel(left, [bars[place] if bars else None for _, bars in lines])
    ends = f"In each panel the dotted line is {profile.zero} (0), the whole line {profile.one} (1)"
    ends += f"; blue: better than {profile.reference}, red: worse, as tested below." if profile.reference else "."
    drawn = "".join(f"#{shape}\n" for shape in shapes)
    note = f"#block(below: 10pt)[#text(size: 7pt)[{typst(ends)}]]"
    return f"#block(width: {width:.2f}pt, height: {height:.2f}pt, below: 4pt)[\n{drawn}]\n{note}"


def _labels(lines: Sequence[tuple[str, tuple[Bar, ...]]]) -> Iterator[str]:
    for number, (label, bars) in enumerate(lines):
        body = typst(label) if bars else f"_{typst(label)}_"
        yield _text(4.0 if bars else 0.0, _middle(number) - 3.5, _LABELS, "left", body)


def _heads(table: TableContent) -> Iterator[str]:
    """The rung above its first panel, the column above each."""
    before = None
    for place, column in enumerate(table.columns):
        left = _LABELS + place * (_PANEL + _GAP)
        if column.group != before:
            yield _text(left, 2.0, _PANEL + _GAP, "left", f"*{typst(column.group)}*")
        before = column.group
        yield _text(left, 12.5, _PANEL + _GAP, "left", typst(column.label))


def _panel(left: float, bars: Sequence[Bar | None]) -> Iterator[str]:
    """The two lines, then interval and mean of each row."""
    spans = [bar.span for bar in bars if bar and bar.span]
    if not spans:
        yield _text(left, _HEAD + 2.0, _PANEL, "left", "no scale")
        return
    low, high = min(0.0, *(span[1] for span in spans)), max(1.0, *(span[2] for span in spans))

    def x(value: float) -> float:
        return left + 2.0 + (_PANEL - 4.0) * (value - low) / (high - low)

    bottom = _HEAD + _ROW * len(bars)
    yield _line(x(0), _HEAD, x(0), bottom, '(paint: luma(120), thickness: 0.5pt, dash: "dotted")')
    yield _line(x(1), _HEAD, x(1), bottom, "0.5pt + luma(150)")
    for number, bar in enumerate(bars):
        if bar and bar.span:
            mean, start, end = bar.span
            yield _line(x(start), _middle(number), x(end), _middle(number), f"0.7pt + {_COLOURS[bar.arrow]}")
            spot = f"circle(radius: 1.7pt, fill: {_COLOURS[bar.arrow]})"
            yield _place(x(mean) - 1.7, _middle(number) - 1.7, spot)
    for value in (0, 1):
        yield _text(x(value) - 10.0, bottom + 2.0, 20.0, "center", str(value))


def _middle(number: int) -> float:
    return _HEAD + _ROW * (number + 0.5)


def _place(x: float, y: float, body: str) -> str:
    return f"place(top + left, dx: {x:.2f}pt, dy: {y:.2f}pt, {body})"


def _line(x: float, y: float, end_x: float, end_y: float, stroke: str) -> str:
    ends = f"start: ({x:.2f}pt, {y:.2f}pt), end: ({end_x:.2f}pt, {end_y:.2f}pt)"
    return _place(0.0, 0.0, f"line({ends}, stroke: {stroke})")


def _text(x: float, y: float, width: float, side: str, body: str) -> str:
    return _place(x, y, f"block(width: {width:.2f}pt, align({side}, text(size: 7pt)[{body}]))")
