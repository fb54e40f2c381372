"""Reading and writing YAML exactly as DVC does, and its lock file.

DVC reads YAML 1.2, where `1e-3` is a number and `yes` a text; other parsers disagree. Values that are
compared with a lock must therefore go through the same parser.
"""

import hashlib
import io
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from polygrain.provenance.errors import UserError

PIPELINE = Path("dvc.yaml")
LOCK = Path("dvc.lock")


@dataclass(frozen=True)
class Locked:
    """What `dvc.lock` holds of one stage: command, values by dotted name per parameter file, MD5 per file."""

    command: str
    parameters: Mapping[str, Mapping[str, Any]]
    dependencies: Mapping[str, str]
    outputs: Mapping[str, str]


def load_yaml(path: Path) -> Any:
    """Parse a YAML file as DVC does. Raises UserError when it is missing or broken."""
    try:
        return parse_yaml(path.read_text(), path)
    except FileNotFoundError:
        raise UserError(f"{path}: not found") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid YAML ({error}); correct it, or restore it from git") from error


def parse_yaml(text: str, path: str | Path) -> Any:
    """Parse YAML as DVC does; `path` is named when it is broken. Raises UserError then."""
    try:
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not valid YAML ({first}); correct it, or restore it from git") from error


def dump_yaml(value: Any, width: int = 80) -> str:
    """YAML text in DVC's own style, keys in the order given; lines longer than `width` are folded."""
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = width
    stream = io.StringIO()
    yaml.dump(value, stream)
    return stream.getvalue()


def read_lock(root: Path) -> dict[str, Locked]:
    """Read the stages of `dvc.lock`, none without a file. Raises UserError when it is broken or half merged."""
    path = root / LOCK
    if not path.is_file():
        return {}
    if b"\n<<<<<<< " in b"\n" + path.read_bytes():
        raise UserError(
            f"{path}: has merge conflict markers; take one side whole (`git checkout --ours -- {LOCK}`),"
            " then polygrain restore, snakemake and polygrain record"
        )
    return _stages(load_yaml(path), path)


def read_merged_lock(root: Path) -> dict[str, Locked]:
    """Read the stages of the other branch's `dvc.lock` while git is merging; none at other times.

    Git must not merge the lines of the two files: one branch's parameters beside the other's outputs would be a claim
    that nobody made (`.gitattributes` forbids it). Whole stages of either branch are true.
    """
    name = f"MERGE_HEAD:./{LOCK}"
    shown = subprocess.run(["git", "show", name], cwd=root, capture_output=True)
    return {} if shown.returncode else _stages(parse_yaml(shown.stdout.decode(), name), name)


def _stages(content: Any, name: str | Path) -> dict[str, Locked]:
    try:
        return {stage: _locked(entry) for stage, entry in (content["stages"] or {}).items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{name}: not a DVC lock file ({error!r}); restore it from git") from error


def _locked(stage: Mapping[str, Any]) -> Locked:
    return Locked(
        command=stage["cmd"],
        parameters={file: dict(dotted(values)) for file, values in stage.get("params", {}).items()},
        dependencies={item["path"]: item["md5"] for item in stage.get("deps", [])},
        outputs={item["path"]: item["md5"] for item in stage.get("outs", [])},
    )


def dotted(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings by dotted name. Lists, and mappings without keys, are values.

    DVC writes a parameter file that it tracks as a whole nested, and one whose keys are listed by dotted name.
    """
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def md5_file(path: Path) -> str:
    """Hex MD5 of a file's content: DVC's name for it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def md5_bytes(content: bytes) -> str:
    """Hex MD5 of a byte string."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
