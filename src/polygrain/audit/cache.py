"""Hash every stored object that a lock in the history refers to, and compare the hash with the object's name.

DVC names an object by its MD5 once and never reads the bytes again; no command of DVC makes this check.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from polygrain.audit.locks import Snapshot
from polygrain.audit.repository import Commit
from polygrain.provenance.dvccommand import object_path
from polygrain.provenance.hashes import md5_file

State = Literal["whole", "corrupt", "missing"]


@dataclass(frozen=True)
class Object:
    """One stored output: its name in the cache, what it was recorded as last, and by which commit."""

    md5: str
    output: str
    commit: Commit
    current: bool
    """Whether the last lock refers to it."""


def objects_of(states: Sequence[Snapshot]) -> list[Object]:
    """Every output that a lock in the history refers to, once for equal bytes; parents come before children."""
    found: dict[str, Object] = {}
    seen: set[str | None] = {None}
    for state in states:
        if state.blob not in seen:
            seen.add(state.blob)
            for path, stage in state.lock.makers.items():
                found[stage.outputs[path]] = Object(stage.outputs[path], path, state.commit, current=False)
    for path, stage in states[-1].lock.makers.items():
        last = found[stage.outputs[path]]
        found[last.md5] = replace(last, output=path, current=True)
    return sorted(found.values(), key=lambda item: item.md5)


def examine(cache: Path, objects: Iterable[Object], read: Callable[[int], object]) -> Iterator[tuple[Object, State]]:
    """Hash each object again; `read` is called with the size of each one."""
    for item in objects:
        path = object_path(cache, item.md5)
        if not path.is_file():
            yield item, "missing"
            continue
        whole = md5_file(path) == item.md5
        read(path.stat().st_size)
        yield item, "whole" if whole else "corrupt"
