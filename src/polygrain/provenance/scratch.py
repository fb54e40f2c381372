"""A clone of the repository in a temporary folder that is gone afterwards, also after an interruption."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from polygrain.provenance.errors import UserError

# Replacement objects would show this machine another past than everybody else's.
GIT = ("git", "--no-replace-objects", "--no-pager")
# Set inside git hooks; they would point every git command at the user's own repository.
_GIT_PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR")

_GRACE = 10.0
"""Seconds between asking a group of processes to end and killing it."""


def git(root: Path, *arguments: str) -> str:
    """Output of a git command in `root`. Raises UserError with git's reason when it fails."""
    try:
        done = subprocess.run([*GIT, *arguments], cwd=root, capture_output=True)
    except FileNotFoundError:
        raise UserError("git is not installed; install it") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise UserError(f"{root}: git {arguments[0]} failed: {said[0] if said else 'no message'}")
    return done.stdout.decode(errors="replace")


@contextmanager
def scratch_clone(root: Path, commit: str) -> Iterator[Path]:
    """Yield the project of a fresh clone with `commit` checked out; nothing that git ignores is in it.

    The user's repository is only read. A request to terminate ends the body like Ctrl-C does.
    """
    top, prefix = git(root, "rev-parse", "--show-toplevel", "--show-prefix").split("\n")[:2]
    with _terminated_like_interrupted(), tempfile.TemporaryDirectory(prefix="polygrain-audit-") as folder:
        clone = Path(folder, "clone")
        run(Path(folder), "git", "clone", "--quiet", "--no-checkout", top, str(clone))
        switch(clone, commit)
        yield clone / prefix


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


def run(folder: Path, *command: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """Run a command of a scratch clone with the clone's own package; it never outlives this call.

    Raises UserError with the end of what it said when it fails and `check` is set.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _GIT_PLACES}
    environment["PYTHONPATH"] = str(folder / "src")
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate()
        except BaseException:
            end_group(process)
            raise
    if check and process.returncode:
        raise UserError(f"{' '.join(command[:4])} failed in a scratch clone: {_end(said)}")
    return subprocess.CompletedProcess(command, process.returncode, said)


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


def _end(said: str, lines: int = 5) -> str:
    kept: Sequence[str] = [line.strip() for line in said.splitlines() if line.strip()][-lines:]
    return " / ".join(kept) or "no message"
