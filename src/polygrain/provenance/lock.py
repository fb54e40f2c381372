"""`dvc.lock`: what DVC recorded of each stage.

A lock of a hundred stages takes seconds to parse as a whole, and one commit changes only a few of them. So the text is
split where its stages begin, and each distinct piece is parsed once. A text that cannot be split that way (another
indentation, an anchor, an open quote) is parsed as a whole; if that fails, an error is raised.
"""

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

from polygrain.provenance.errors import UserError
from polygrain.provenance.files import sha256_bytes
from polygrain.provenance.git import GIT, without_places
from polygrain.provenance.stage import Stage
from polygrain.provenance.yaml12 import dotted, one_line, parse_yaml

LOCK = Path("dvc.lock")
CONFIGURATIONS = "configurations"
"""Entries with this task hold configurations for `dvc params diff`; they are not jobs."""

T = TypeVar("T")

_HEAD = re.compile(r"schema: ['\"]?2\.0['\"]?\nstages:\n(?=  \S)")
_STAGE = re.compile(r"^(?=  \S)", re.MULTILINE)


def is_configurations(name: str) -> bool:
    """Whether an entry of that name keeps configurations."""
    return name.split("-")[0] == CONFIGURATIONS


@dataclass(frozen=True)
class Locked:
    """What a lock holds of one stage."""

    name: str
    command: str
    parameters: Mapping[str, Mapping[str, str]]
    """File -> dotted key -> value as printed by `printed`."""
    dependencies: Mapping[str, str]
    """Path -> MD5."""
    outputs: Mapping[str, str]
    """Path -> MD5."""

    @cached_property
    def inputs(self) -> str:
        """One hash of everything that decides the outputs: equal inputs must give equal bytes."""
        return sha256_bytes(json.dumps([self.command, self.parameters, self.dependencies], sort_keys=True).encode())


@dataclass(frozen=True)
class Lock:
    """A whole lock."""

    stages: Mapping[str, Locked]

    @cached_property
    def makers(self) -> Mapping[str, Locked]:
        """Output -> the stage that makes it."""
        return {path: stage for stage in self.stages.values() for path in stage.outputs}

    def md5(self, path: Path) -> str | None:
        """The recorded MD5 of an output; None for a file that no recorded stage makes."""
        maker = self.makers.get(path.as_posix())
        return maker.outputs[path.as_posix()] if maker else None

    def find(self, stage: Stage) -> Locked | None:
        """The record of a stage: the one with just its outputs, whatever name it had once, else the one of its name."""
        maker = self.makers.get(stage.outputs[0].as_posix())
        if maker and set(maker.outputs) == {path.as_posix() for path in stage.outputs}:
            return maker
        return self.stages.get(stage.name)


class LockParser:
    """Parses locks and remembers each distinct stage, so that equal stages are one object."""

    def __init__(self) -> None:
        self._stages: dict[str, Locked] = {}

    def parse(self, content: bytes) -> Lock:
        """Parse the bytes of a lock. Raises UserError, without the name of the file, when they are not a lock."""
        try:
            text = content.decode()
            stages = self._by_stage(text)
            stages = _whole(text) if stages is None else stages
            return Lock({stage.name: stage for stage in stages if not is_configurations(stage.name)})
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"not valid YAML: {one_line(error)}") from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"not a DVC lock file: {type(error).__name__} {error}") from None

    def _by_stage(self, text: str) -> list[Locked] | None:
        """The stages of a lock in DVC's own form; None for any other text."""
        head = _HEAD.match(text)
        if head is None:
            return None
        stages: dict[str, Locked] = {}
        for piece in _STAGE.split(text[head.end() :])[1:]:
            if piece not in self._stages:
                try:
                    ((name, content),) = parse_yaml(piece).items()
                except (yaml.YAMLError, AttributeError, ValueError):
                    return None
                self._stages[piece] = _locked(name, content)
            stage = self._stages[piece]
            if stage.name in stages:
                return None
            stages[stage.name] = stage
        return list(stages.values())


def _whole(text: str) -> list[Locked]:
    content = parse_yaml(text)
    return [_locked(name, stage) for name, stage in (content["stages"] or {}).items()] if content else []


def _locked(name: Any, content: Mapping[str, Any]) -> Locked:
    """Raises KeyError, TypeError, AttributeError or ValueError for what is no stage of a lock."""
    command, parameters = content["cmd"], content.get("params") or {}
    return Locked(
        name=str(name),
        command=json.dumps(command) if isinstance(command, list) else str(command),
        parameters={str(file): printed(values) for file, values in parameters.items()},
        dependencies=_hashes(content.get("deps")),
        outputs=_hashes(content.get("outs")),
    )


def _hashes(entries: Any) -> dict[str, str]:
    found = {str(entry["path"]): entry["md5"] for entry in entries or []}
    wrong = [path for path, md5 in found.items() if not isinstance(md5, str)]
    if wrong:
        raise ValueError(f"{wrong[0]} has no MD5")
    return found


def printed(values: Mapping[Any, Any]) -> dict[str, str]:
    """Parameters by dotted key, as JSON: so 1, 1.0 and "1" differ."""
    return {key: json.dumps(value, sort_keys=True, default=repr) for key, value in dotted(values)}


def changes(then: Mapping[str, T], now: Mapping[str, T]) -> Iterator[tuple[str, T | None, T | None]]:
    """Keys with another value now, sorted, with both values; None where a side lacks the key."""
    for key in sorted({*then, *now}):
        if then.get(key) != now.get(key):
            yield key, then.get(key), now.get(key)


def read_lock(root: Path) -> Lock:
    """Read `dvc.lock`; without a file it holds no stage. Raises UserError when it is broken or half merged."""
    path = root / LOCK
    if not path.is_file():
        return Lock({})
    content = path.read_bytes()
    if b"\n<<<<<<< " in b"\n" + content:
        raise UserError(
            f"{path}: has merge conflict markers; take one side whole (`git checkout --ours -- {LOCK}`),"
            " then polygrain restore, snakemake and polygrain record"
        )
    return _parse(content, str(path))


def read_locks(root: Path) -> list[Lock]:
    """Read `dvc.lock` and, while git is merging, that of the other branch. Raises UserError as `read_lock` does.

    Git must not merge the lines of the two files (`.gitattributes` forbids it): one branch's parameters beside the
    other's outputs would describe a build that never happened. A whole stage of either branch is valid.
    """
    name = f"MERGE_HEAD:./{LOCK}"
    own = read_lock(root)
    shown = subprocess.run([*GIT, "show", name], cwd=root, capture_output=True, env=without_places())
    return [own] if shown.returncode else [own, _parse(shown.stdout, name)]


def _parse(content: bytes, name: str) -> Lock:
    try:
        return LockParser().parse(content)
    except UserError as error:
        raise UserError(f"{name}: {error}; correct it, or restore it from git") from None
