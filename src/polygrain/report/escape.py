"""Plain text made safe for each output format: what a person writes in a YAML is printed, never interpreted."""

_MARKDOWN = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    "$": "<span>$</span>",  # GitHub reads a pair of dollars as mathematics, even behind a backslash
    "|": "\\|",
    **{character: f"\\{character}" for character in "\\`*_[]#~"},
}
_LATEX = {
    "\\": "\\textbackslash{}",
    "^": "\\textasciicircum{}",
    "~": "\\textasciitilde{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
    # After a line break `[` would open an optional argument and `*` belongs to the break.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    '"': "\\textquotedbl{}",
    "“": "``",
    "”": "''",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "±": "$\\pm$",
    "\N{MULTIPLICATION SIGN}": "$\\times$",
    "\N{MINUS SIGN}": "$-$",
    "↑": "$\\uparrow$",
    "↓": "$\\downarrow$",
    "‡": "\\ddag{}",
    "†": "\\dag{}",
    "·": "$\\cdot$",
    "—": "---",
    "\N{EN DASH}": "--",
    **{character: f"\\{character}" for character in "{}$&#%_"},
}


def markdown(text: str) -> str:
    """Text for a cell or a paragraph of GitHub's Markdown."""
    return "".join(_MARKDOWN.get(character, character) for character in text)


def latex(text: str) -> str:
    """Text for LaTeX with UTF-8 input."""
    return "".join(_LATEX.get(character, character) for character in text)


def typst(text: str) -> str:
    """Text inside Typst markup: a string literal, closed by a semicolon so that nothing after it is read as code."""
    return f"#{typst_string(text)};"


def typst_string(text: str) -> str:
    """A string literal of Typst."""
    literal = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{literal}"'
