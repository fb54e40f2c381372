"""Where git holds small copies of recorded tables: for readers, and for auditors. No rule reads or writes them."""

from collections.abc import Sequence
from pathlib import Path

from polygrain.config.tables import FORMATS, Table

PUBLISHED = "reports/published"


def published(targets: Sequence[str]) -> dict[Path, Path]:
    """Which outputs of tables have a small recorded copy in git."""
    copies: dict[Path, Path] = {}
    for table in map(Table.parse, targets):
        for kind in FORMATS:
            file = f"{table.name}.{kind}"
            copies[table.folder / file] = Path(PUBLISHED, *table.folder.parts[1:], file)
    return copies
