"""The past of `dvc.lock`: every commit behind HEAD, and what the lock said there.

Whether a commit changed the lock is decided by comparing its blob with that of each parent, so that nothing depends on
how git simplifies the history of a path, and a merge shows which side it took.

A lock of a hundred stages takes seconds to parse in full, and one commit changes a few of them. So the text is cut
where its stages begin and each distinct piece is parsed once. A text that cannot be cut that way (another indentation,
an anchor, a quote left open) is parsed as a whole; what then still is no lock is a fault of that commit.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from polygrain.audit.repository import Commit, Repository
from polygrain.provenance.dvcfiles import LOCK, dotted
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import sha256_bytes

Parameter = tuple[str, str]
"""File and dotted key."""

_HEAD = re.compile(r"schema: ['\"]?2\.0['\"]?\nstages:\n(?=  \S)")
_STAGE = re.compile(r"^  (?=\S)", re.MULTILINE)


@dataclass(frozen=True)
class Recorded:
    """What a lock holds of one stage. Parameters are printed as JSON, so that 1, 1.0 and "1" differ."""

    name: str
    command: str
    parameters: Mapping[Parameter, str]
    dependencies: Mapping[str, str]
    """Path -> MD5."""
    outputs: Mapping[str, str]
    """Path -> MD5."""

    @cached_property
    def inputs(self) -> str:
        """One hash of everything that decides the outputs: equal inputs must give equal bytes."""
        parts = (self.command, sorted(self.parameters.items()), sorted(self.dependencies.items()))
        return sha256_bytes(json.dumps(parts).encode())


@dataclass(frozen=True)
class Lock:
    """A whole lock."""

    stages: Mapping[str, Recorded]

    @cached_property
    def makers(self) -> Mapping[str, Recorded]:
        """Output -> the stage that makes it."""
        return {path: stage for stage in self.stages.values() for path in stage.outputs}


@dataclass(frozen=True)
class Snapshot:
    """What a commit holds: its lock, or the fault of a lock that nobody can read.

    A broken lock says nothing, so `lock` is then that of the first parent: the next commit is compared with it.
    """

    commit: Commit
    lock: Lock
    blob: str | None
    """Git's name for the lock's bytes; None where there is no such file."""
    fault: str = ""


NO_LOCK = Lock({})


def read_history(repository: Repository, revision: str = "HEAD") -> list[Snapshot]:
    """Walk the history of `dvc.lock`; parents come before children.

    Raises UserError for an unknown revision and when no commit behind it holds a lock.
    """
    parser = LockParser()
    states: dict[str, Snapshot] = {}
    for commit in repository.commits(revision):
        before = next((states[parent] for parent in commit.parents if parent in states), None)
        states[commit.id] = _state(repository, commit, before, parser)
    if not any(state.blob for state in states.values()):
        raise UserError(f"no commit holds {LOCK}; build a table, run `polygrain record TABLE` and commit the result")
    return list(states.values())


def _state(repository: Repository, commit: Commit, before: Snapshot | None, parser: "LockParser") -> Snapshot:
    blob = repository.find(commit.id, str(LOCK))
    if blob is None:
        return Snapshot(commit, NO_LOCK, None)
    if before is not None and blob == before.blob:
        return Snapshot(commit, before.lock, blob, before.fault)
    try:
        return Snapshot(commit, parser.parse(blob, repository.read(blob)), blob)
    except UserError as error:
        return Snapshot(commit, before.lock if before else NO_LOCK, blob, str(error))


class _Loader(yaml.CSafeLoader):
    """YAML at C speed with the scalars of version 1.2, which DVC writes: `1e-3` is a number and `yes` a text.

    As for DVC, a key that occurs twice is a fault; so are merge keys, which DVC never writes.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value) or "<<" in mapping:
            problem = "a merge key" if "<<" in mapping else "a key occurs twice"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return mapping


_Loader.yaml_implicit_resolvers = {}


def _resolve(tag: str, pattern: str, first: Iterable[str]) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))


_resolve("null", r"~|null|Null|NULL|", ["~", "n", "N", ""])
_resolve("bool", r"true|True|TRUE|false|False|FALSE", "tTfF")
_resolve("int", r"[-+]?(?:0o[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)", "-+0123456789")
_resolve("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789")
_resolve("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+.")


def _integer(loader: yaml.CSafeLoader, node: yaml.ScalarNode) -> int:
    """A leading zero does not make a number octal in version 1.2."""
    text = str(loader.construct_scalar(node)).replace("_", "")
    digits = text.lstrip("+-")
    base = {"0o": 8, "0x": 16}.get(digits[:2], 10)
    return int(digits[2:] if base != 10 else digits, base) * (-1 if text.startswith("-") else 1)


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def load_fast(text: str | bytes) -> Any:
    """Parse YAML 1.2 at C speed. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)


class LockParser:
    """Parses locks and remembers each distinct one and each distinct stage, so that equal stages are one object."""

    def __init__(self) -> None:
        self._locks: dict[str, Lock] = {}
        self._stages: dict[str, Recorded] = {}

    def parse(self, name: str, content: bytes) -> Lock:
        """Read a lock's bytes, of which `name` is a hash. Raises UserError when they are none."""
        if name not in self._locks:
            self._locks[name] = Lock({stage.name: stage for stage in self._read(content)})
        return self._locks[name]

    def _read(self, content: bytes) -> list[Recorded]:
        try:
            text = content.decode()
            stages = self._by_stage(text)
            return self._whole(text) if stages is None else stages
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"not valid YAML: {reason}") from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"not a DVC lock file: {type(error).__name__} {error}") from None

    def _by_stage(self, text: str) -> list[Recorded] | None:
        """The stages of a lock in DVC's own form; None for any other text."""
        head = _HEAD.match(text)
        if head is None:
            return None
        stages: dict[str, Recorded] = {}
        for piece in _pieces(text, head.end()):
            if piece not in self._stages:
                try:
                    ((name, content),) = load_fast(piece).items()
                except (yaml.YAMLError, AttributeError, ValueError):
                    return None
                self._stages[piece] = _stage(name, content)
            stage = self._stages[piece]
            if stage.name in stages:
                return None
            stages[stage.name] = stage
        return list(stages.values())

    def _whole(self, text: str) -> list[Recorded]:
        content = load_fast(text)
        return [_stage(name, stage) for name, stage in (content["stages"] or {}).items()] if content else []


def _pieces(text: str, start: int) -> Iterator[str]:
    begins = [match.start() for match in _STAGE.finditer(text, start)]
    for begin, end in zip(begins, [*begins[1:], len(text)], strict=True):
        yield text[begin:end]


def _stage(name: Any, content: Mapping[str, Any]) -> Recorded:
    """Raises KeyError, TypeError, AttributeError or ValueError for what is no stage of a lock."""
    values = content.get("params") or {}
    return Recorded(
        name=str(name),
        command=json.dumps(content["cmd"]) if isinstance(content["cmd"], list) else str(content["cmd"]),
        parameters={
            (str(file), str(key)): json.dumps(value, sort_keys=True, default=repr)
            for file, entries in values.items()
            for key, value in dotted(entries)
        },
        dependencies=_hashes(content.get("deps")),
        outputs=_hashes(content.get("outs")),
    )


def _hashes(entries: Any) -> dict[str, str]:
    found = {str(entry["path"]): entry["md5"] for entry in entries or []}
    wrong = [path for path, md5 in found.items() if not isinstance(md5, str)]
    if wrong:
        raise ValueError(f"{wrong[0]} has no MD5")
    return found
