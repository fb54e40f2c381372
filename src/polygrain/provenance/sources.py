"""Which files in git decide an input that is written at parse time, and whether two commits differ in them.

A hash in `dvc.lock` of a file that git does not hold (code hashes, the environment, a resolved configuration) can be
edited by hand. Its sources are in git: where those mean the same in two commits, the file cannot have changed.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from polygrain.provenance.code import tree_hash
from polygrain.provenance.history import load_fast
from polygrain.provenance.repository import Commit, Repository

SHAPE = ""
"""Asks for the sources of a stage's command and of the names of its inputs, instead of an input file's."""


@dataclass(frozen=True)
class Layout:
    """How a project lies in git: which folder holds published copies of which outputs, and what decides an input."""

    published: Path
    outputs: Path
    sources: Callable[[str], tuple[str, ...]]
    """Path of an input -> files and folders that it is computed from; none where that is unknown."""
    records: frozenset[str] = frozenset()
    """Names of published files that are no output of a job and may change as they like."""


class Sources:
    """Compares commits by what their sources mean: comments and formatting of Python and YAML do not count."""

    def __init__(self, repository: Repository, layout: Layout) -> None:
        self._repository = repository
        self._layout = layout
        self._meanings: dict[tuple[str, str], str] = {}
        self._answers: dict[tuple[str | None, str | None, str], list[str]] = {}

    def differing(self, before: Commit, after: Commit, path: str) -> list[str] | None:
        """The sources of an input that mean something else in `after`; None where its sources are unknown."""
        sources = self._layout.sources(path)
        return [name for source in sources for name in self._between(before, after, source)] if sources else None

    def _between(self, before: Commit, after: Commit, source: str) -> list[str]:
        one, two = (self._repository.find(commit.id, source) for commit in (before, after))
        if (one, two, source) not in self._answers:
            self._answers[one, two, source] = [] if one == two else self._compare(source, one, two)
        return self._answers[one, two, source]

    def _compare(self, source: str, one: str | None, two: str | None) -> list[str]:
        if Path(source).suffix:
            return [source] if self._meaning(source, one) != self._meaning(source, two) else []
        return [
            f"{source}/{path}"
            for path, was, now in self._repository.differing(one, two)
            if self._meaning(path, was) != self._meaning(path, now)
        ]

    def _meaning(self, path: str, blob: str | None) -> str:
        """A text that is equal for files that say the same. What does not parse means its bytes."""
        if blob is None:
            return ""
        suffix = Path(path).suffix
        key = blob, suffix
        if key not in self._meanings:
            self._meanings[key] = blob
            try:
                if suffix == ".py":
                    self._meanings[key] = tree_hash(self._repository.read(blob).decode())
                elif suffix in (".yaml", ".yml"):
                    self._meanings[key] = json.dumps(load_fast(self._repository.read(blob)), default=repr)
            except (SyntaxError, ValueError, RecursionError, yaml.YAMLError):
                pass
        return self._meanings[key]
