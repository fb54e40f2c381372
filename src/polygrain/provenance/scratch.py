"""Work outside the checkout: child processes that end with this one, and clones in scratch folders."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from polygrain.provenance.errors import UserError
from polygrain.provenance.git import git, without_places

_GRACE = 10.0
"""Seconds between asking a group of processes to end and killing it."""


@contextmanager
def scratch_clone(root: Path, commit: str) -> Iterator[Path]:
    """Yield the project of a fresh clone with `commit` checked out; nothing that git ignores is in it.

    The user's repository is only read. A request to terminate ends the body like Ctrl-C does.
    """
    with _terminated_like_interrupted(), tempfile.TemporaryDirectory(prefix="polygrain-audit-") as folder:
        project = clone(root, Path(folder))
        switch(project, commit)
        yield project


def clone(root: Path, folder: Path) -> Path:
    """Clone the repository around `root` into `folder`, without files; returns the project's folder there."""
    top, prefix = git(root, "rev-parse", "--show-toplevel", "--show-prefix").split("\n")[:2]
    run(folder, "git", "-c", "protocol.file.allow=always", "clone", "--quiet", "--no-checkout", top, "clone")
    project = folder / "clone" / prefix
    project.mkdir(parents=True, exist_ok=True)
    return project


def switch(clone: Path, commit: str) -> None:
    """Make a scratch clone exactly that commit, without any other file."""
    run(clone, "git", "-c", "advice.detachedHead=false", "checkout", "--quiet", "--force", "--detach", commit)
    run(clone, "git", "clean", "-ffdxq", ":/")


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class Ended:
    """How a process ended and what it printed."""

    status: int
    said: str

    @property
    def last(self) -> str:
        """The end of what it said, in one line."""
        return " / ".join([line.strip() for line in self.said.splitlines() if line.strip()][-5:]) or "no message"


def run(folder: Path, *command: str, check: bool = True) -> Ended:
    """Run a command of a scratch project with the project's own package; it never outlives this call.

    Raises UserError with the end of what it said when it fails and `check` is set.
    """
    with start(folder, *command) as process:
        try:
            said, _ = process.communicate()
        except BaseException:
            end_group(process)
            raise
    ended = Ended(process.returncode, said)
    if check and ended.status:
        raise UserError(f"{' '.join(command[:4])} failed in a scratch clone: {ended.last}")
    return ended


def start(folder: Path, *command: str) -> "subprocess.Popen[str]":
    """Start a command in a scratch project with the project's own package, in a process group of its own."""
    environment = without_places()
    environment["PYTHONPATH"] = str(folder / "src")
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )


def end_group(process: "subprocess.Popen[str]") -> None:
    """Stop a command with everything it started: on a signal of its own Snakemake would wait for its jobs."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(_GRACE)
            return
        except subprocess.TimeoutExpired:
            continue
    process.wait()
