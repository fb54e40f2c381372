"""A table in short: for a README the rows of its last group in its measured columns, for a row its linear probes."""

import csv
import io


def headline(table_csv: str) -> str:
    """GitHub Markdown of a published table's CSV; the column heads are group and label."""
    lines = list(csv.DictReader(io.StringIO(table_csv, newline="")))
    shown = [line for line in lines if line["row_group"] == lines[-1]["row_group"] and line["sd"] and line["unit"]]
    columns = list(dict.fromkeys((line["column_group"], line["column"]) for line in shown))
    rows: dict[str, dict[tuple[str, str], str]] = {}
    for line in shown:
        rows.setdefault(line["row"], {})[line["column_group"], line["column"]] = line["text"]
    text = [f"| {' | '.join(['', *(f'{group}<br>{label}' for group, label in columns)])} |"]
    text.append(f"| {' | '.join([':--', *['--:'] * len(columns)])} |")
    for label, cells in rows.items():
        text.append(f"| {' | '.join([label, *(cells.get(column, '—') for column in columns)])} |")
    return "\n".join(text) + "\n"


def in_short(table_csv: str, row: str) -> str:
    """The numbers of a row in the columns named `linear`, as one sentence; empty when there are none."""
    lines = csv.DictReader(io.StringIO(table_csv, newline=""))
    shown = [line for line in lines if line["row"] == row and line["column"] == "linear" and line["n"] != "0"]
    parts = [f"{line['column_group']} linear {line['text'].removesuffix(' ± 0.0')}" for line in shown]
    return f"{', '.join(parts)}." if parts else ""
