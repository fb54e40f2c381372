"""A table in short, for a README: the rows of its last group in its measured columns, without notes and tests."""

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
