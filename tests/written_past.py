"""Histories written by hand: a small lock with honest hashes by default, and any commit graph in one git process."""

import hashlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from polygrain.audit.judge import audit_history
from polygrain.audit.locks import read_history
from polygrain.audit.repository import Repository
from polygrain.audit.sources import SHAPE, Layout
from polygrain.audit.verdicts import Audit, Change

Files = dict[str, str]
_ENVIRONMENT = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
RESULT, TABLE = "runs/a/result.json", "reports/table.md"
COPY = "reports/published/table.md"


def md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def entry(path: str, md5_: str) -> dict[str, Any]:
    return {"path": path, "hash": "md5", "md5": md5_, "size": 1}


def stage(
    command: str, dependencies: Mapping[str, str], parameters: Mapping[str, Any], outputs: Mapping[str, str]
) -> dict[str, Any]:
    content: dict[str, Any] = {"cmd": command, "deps": [entry(*item) for item in dependencies.items()]}
    if parameters:
        content["params"] = {"inputs/a/config.yaml": dict(parameters)}
    return content | {"outs": [entry(*item) for item in outputs.items()]}


def lock_text(stages: Mapping[str, Any]) -> str:
    return yaml.safe_dump({"schema": "2.0", "stages": dict(stages)}, sort_keys=False)


def honest(lr: float = 0.1, code: str = "1", **edited: Any) -> Files:
    """The files of a commit in which everything was really built from `lr` and `code`.

    edited: `result` other bytes of the result, `used` other bytes that the table says it read, `code_hash` another
    hash of the code, `lr_said` another parameter, `extra` further dependencies of the run, `command` of the run,
    `name` of its stage, `table` other text of the published copy, `source` another text of the source file.
    """
    result = edited.get("result", f"result {lr} {code}")
    table = f"table of {edited.get('used', result)}\n"
    code_hash = edited.get("code_hash", f"hash of code {code}")
    dependencies = {"data/x.bin": md5("data"), "inputs/a/code.json": md5(code_hash), **edited.get("extra", {})}
    stages = {
        "data": stage("make data", {"inputs/data/code.json": md5("data code")}, {}, {"data/x.bin": md5("data")}),
        edited.get("name", "run-a"): stage(
            edited.get("command", "make run"), dependencies, {"lr": edited.get("lr_said", lr)}, {RESULT: md5(result)}
        ),
        "table": stage("make table", {RESULT: md5(edited.get("used", result))}, {}, {TABLE: md5(table)}),
    }
    return {
        "dvc.lock": lock_text(stages),
        "src/loss.py": edited.get("source", f"CODE = {code!r}\n"),
        "params/a.yaml": f"lr: {lr}\n",
        COPY: edited.get("table", table),
    }


class Past:
    """A repository whose commits are given as whole trees and written by one `git fast-import`."""

    def __init__(self, root: Path, folder: str = "") -> None:
        self.root, self._folder, self._marks = root, folder, 0
        self._stream: list[bytes] = []

    def commit(self, files: Mapping[str, str], *parents: int, subject: str = "state") -> int:
        """Add a commit (without parents: on top of the last one); returns its number, from 1 on."""
        self._marks += 1
        before = parents or ((self._marks - 1,) if self._marks > 1 else ())
        day = 1_700_000_000 + 86_400 * self._marks
        lines = [f"commit refs/heads/main\nmark :{self._marks}\ncommitter t <t@example.org> {day} +0000\n".encode()]
        lines.append(b"data %d\n%s\n" % (len(subject.encode()), subject.encode()))
        lines += [f"{'merge' if position else 'from'} :{mark}\n".encode() for position, mark in enumerate(before)]
        lines.append(b"deleteall\n")
        for path, text in files.items():
            name = str(PurePosixPath(self._folder, path))
            lines.append(f"M 100644 inline {name}\n".encode() + b"data %d\n%s\n" % (len(text.encode()), text.encode()))
        self._stream += lines
        return self._marks

    def write(self) -> Path:
        """Make the repository; returns the project's folder in it."""
        self.root.mkdir(parents=True, exist_ok=True)
        for command in (
            "init --quiet --initial-branch=main",
            "fast-import --quiet --force",
            "reset --quiet --hard main",
        ):
            stream = b"".join(self._stream) if "import" in command else None
            subprocess.run(["git", *command.split()], cwd=self.root, input=stream, env=_ENVIRONMENT, check=True)
        return self.root / self._folder

    def audit(self) -> Audit:
        return audit_of(self.write())


def sources(path: str) -> tuple[str, ...]:
    """What decides a generated input of the toy; `inputs/data` has sources that nobody knows."""
    if path == SHAPE:
        return ("params", "src")
    return {"inputs/a/code.json": ("src",), "inputs/a/config.yaml": ("params",)}.get(path, ())


LAYOUT = Layout(
    published=Path("reports/published"), outputs=Path("reports"), sources=sources, records=frozenset({"crate.json"})
)


def audit_of(root: Path) -> Audit:
    with Repository(root) as repository:
        return audit_history(repository, read_history(repository), LAYOUT)


def kinds(audit: Audit, number: int = -1) -> dict[str, str]:
    """Output -> verdict, of the commits that changed something by position; outputs that are unchanged are left out."""
    return {change.output: change.kind for change in audit.entries[number].changes}


def change(audit: Audit, output: str, number: int = -1) -> Change:
    return next(change for change in audit.entries[number].changes if change.output == output)


def found(audit: Audit) -> list[tuple[str, str]]:
    return [(finding.kind, finding.line) for finding in audit.findings]
