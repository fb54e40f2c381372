"""Which files in git decide an input that is written at parse time, and whether two commits differ in them.

A hash in `dvc.lock` of a file that git does not hold (code hashes, the environment, a resolved configuration) can be
edited by hand. Its sources are in git: if they have the same meaning in two commits, the file cannot have changed.

All of `src` counts as sources of a code hash, because what a stage imports, and how that is found out, may itself have
changed. To name what did change it, its own import closure in either commit is taken.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from polygrain.audit.repository import Commit, Repository
from polygrain.provenance.code import Module, closure, parse, places, tree_hash
from polygrain.provenance.errors import UserError
from polygrain.provenance.lock import Locked, changes
from polygrain.provenance.yaml12 import parse_yaml

SOURCE = "src"
SHAPE = ""
"""Asks for the sources of a stage's command and of the names of its inputs, instead of an input file's."""


@dataclass(frozen=True)
class Layout:
    """How a project lies in git: which folder holds published copies of which outputs, and what decides an input."""

    published: Path
    outputs: Path
    sources: Callable[[str], tuple[str, ...]]
    """Path of an input -> files and folders that it is computed from; none where that is unknown."""
    entries: Callable[[Locked, str], Sequence[str]] = lambda _, __: ()
    """Stage and path of an input -> modules whose import closure decides it, where that is less than the package."""
    records: frozenset[str] = frozenset()
    """Names of published files, and of folders of them, that are no output of a job and may change as they like."""


class Sources:
    """Compares commits by what their sources mean: comments and formatting of Python and YAML do not count."""

    def __init__(self, repository: Repository, layout: Layout) -> None:
        self._repository = repository
        self._layout = layout
        self._meanings: dict[tuple[str, str], str] = {}
        self._modules: dict[tuple[str | None, str], Module | None] = {}
        self._answers: dict[tuple[str | None, str | None, str], list[str]] = {}

    def differing(self, before: Commit, after: Commit, stage: Locked, path: str) -> list[str] | None:
        """The sources of a stage's input that mean something else in `after`; None where its sources are unknown.

        Of the package's modules only those that the stage imports, unless that leaves nothing to explain a change by.
        """
        sources = self._layout.sources(path)
        if not sources:
            return None
        names = [name for source in sources for name in self._between(before, after, source)]
        entries = self._layout.entries(stage, path)
        if not entries:
            return names
        used = self._closure(before, entries) | self._closure(after, entries)
        return [name for name in names if name in used or not name.startswith(f"{SOURCE}/")] or names

    def _closure(self, commit: Commit, entries: Sequence[str]) -> set[str]:
        """The files of a commit that `entries` import; none where they cannot be followed."""
        source = self._repository.find(commit.id, SOURCE)

        def find(name: str) -> Module | None:
            if (source, name) not in self._modules:
                self._modules[source, name] = self._module(commit, name)
            return self._modules[source, name]

        try:
            names = closure(entries, find, Path(SOURCE))
        except UserError:
            return set()
        return {f"{SOURCE}/{place}" for name in names for place in places(name)}

    def _module(self, commit: Commit, name: str) -> Module | None:
        blobs = ((place, self._repository.find(commit.id, f"{SOURCE}/{place}")) for place in places(name))
        return next((parse(name, place, self._repository.read(blob)) for place, blob in blobs if blob), None)

    def _between(self, before: Commit, after: Commit, source: str) -> list[str]:
        one, two = (self._repository.find(commit.id, source) for commit in (before, after))
        if (one, two, source) not in self._answers:
            self._answers[one, two, source] = [] if one == two else self._compare(source, one, two)
        return self._answers[one, two, source]

    def _compare(self, source: str, one: str | None, two: str | None) -> list[str]:
        if Path(source).suffix:
            return [source] if self._meaning(source, one) != self._meaning(source, two) else []
        before, after = self._repository.files(one), self._repository.files(two)
        return [
            f"{source}/{path}"
            for path, was, now in changes(before, after)
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
                    self._meanings[key] = json.dumps(parse_yaml(self._repository.read(blob)), default=repr)
            except (SyntaxError, ValueError, RecursionError, yaml.YAMLError):
                pass
        return self._meanings[key]
