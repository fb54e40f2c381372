"""What a table asks for: its YAML with what the workflow filled in, as types.

Per row these are `runs` (a run directory for each seed), `facts`, `settings` and `inputs` (hashes per run); for the
table `scale`, `seeds`, `manifests`, `inputs` and paths of `reported_sources`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from polygrain.config.table_models import Citation, Column, Compare, WrittenGroup, WrittenRow, WrittenTable, plain
from polygrain.provenance.errors import UserError

__all__ = ["Citation", "Column", "Compare", "Group", "Row", "Spec", "clean", "parse"]


class Row(WrittenRow):
    """One row: the runs of a method's variant, a seed each."""

    runs: list[str]
    facts: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    """Dotted key -> value in the configuration of the row's runs."""
    inputs: dict[str, dict[str, str]]
    """Run directory -> hashes of its config, code and environment."""


class Group(WrittenGroup):
    """Rows under one heading."""

    rows: list[Row]  # type: ignore[assignment]


class Spec(WrittenTable):
    """A whole table."""

    scale: str
    groups: Annotated[list[Group], Field(min_length=1)]  # type: ignore[assignment]
    manifests: list[str]
    inputs: list[str] = Field(default_factory=list)
    """Every file that the table reads."""
    attestations: int = 0

    @property
    def rows(self) -> list[Row]:
        """All rows, through the groups."""
        return [row for group in self.groups for row in group.rows]

    @model_validator(mode="after")
    def _run_per_seed(self) -> Self:
        for row in self.rows:
            if len(row.runs) != len(self.seeds):
                raise ValueError(f"row '{row.label}' has {len(row.runs)} runs for {len(self.seeds)} seeds")
        return self


def parse(config: Mapping[str, Any]) -> Spec:
    """Read a resolved table configuration. Raises UserError naming a missing, unknown or contradictory key."""
    return Spec.of("table", config)


def clean(where: str, text: str) -> str:
    """Text with whitespace collapsed. Raises UserError on control, invisible and direction-changing characters."""
    try:
        return plain(text)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
