"""Hash every stored object that a lock in the history refers to, and compare the hash with the object's name.

DVC names an object by its MD5 once and never reads the bytes again; no command of DVC makes this check.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from polygrain.audit.locks import Snapshot
from polygrain.audit.repository import Commit
from polygrain.provenance.dvccommand import object_path
from polygrain.provenance.hashes import md5_file


@dataclass(frozen=True)
class Object:
    """One stored output: its name in the cache, what it was recorded as last, and by which commit."""

    md5: str
    output: str
    commit: Commit
    current: bool
    """Whether the last lock refers to it."""


@dataclass(frozen=True)
class Examined:
    """An object after it was hashed again."""

    object: Object
    path: Path
    state: Literal["whole", "corrupt", "missing"]


def objects_of(states: Iterable[Snapshot]) -> list[Object]:
    """Every output that a lock in the history refers to, once for equal bytes; parents come before children."""
    found: dict[str, Object] = {}
    states = list(states)
    head = states[-1]
    seen: set[str] = set()
    for state in states:
        if state.blob is None or state.blob in seen:
            continue
        seen.add(state.blob)
        for path, stage in state.lock.makers.items():
            found[stage.outputs[path]] = Object(stage.outputs[path], path, state.commit, current=False)
    for path, stage in head.lock.makers.items():
        last = found[stage.outputs[path]]
        found[last.md5] = Object(last.md5, path, last.commit, current=True)
    return sorted(found.values(), key=lambda item: item.md5)


def examine(cache: Path, objects: Iterable[Object], read: Callable[[int], object]) -> Iterator[Examined]:
    """Hash each object again; `read` is told the bytes of each that was hashed."""
    for item in objects:
        path = object_path(cache, item.md5)
        if not path.is_file():
            yield Examined(item, path, "missing")
            continue
        whole = md5_file(path) == item.md5
        read(path.stat().st_size)
        yield Examined(item, path, "whole" if whole else "corrupt")
