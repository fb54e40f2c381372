"""Verbs in real processes that start at once: one process imports everything and forks for each verb.

A fork is killed by SIGKILL from within at an exact point, or from outside at any time; either is a real kill.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Kill:
    """Where a fork is killed.

    `phase`: at the beginning of the `number`-th part of a step since its start (views, forward, backward, ...).
    `rename`: before the `number`-th file gets the final name `name`. `remove`: before the file `name` is removed.
    `seconds`: `number` seconds after the fork.
    """

    event: str
    number: float = 1
    name: str = ""


class Forks:
    """The forking process of one checkout, behind a command that changes what it may do."""

    def __init__(self, root: Path, *prefix: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(root / "src")}
        self.process = subprocess.Popen(
            [*prefix, sys.executable, __file__],
            cwd=root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.log = Path(tempfile.mkstemp(suffix=".log")[1])

    def run(self, *arguments: str, kill: Kill | None = None, before: str = "", **variables: str) -> int:
        """Run `polygrain *arguments`, after the statements `before`; `said` tells what it printed.

        Returns its status, -9 after a kill.
        """
        inside = kill if kill is not None and kill.event != "seconds" else None
        order = {
            "arguments": arguments,
            "kill": vars(inside) if inside else None,
            "variables": variables,
            "before": before,
        }
        self._write({**order, "log": str(self.log)})
        child = int(self._read())
        if kill is not None and kill.event == "seconds":
            threading.Thread(target=_kill_later, args=(child, kill.number), daemon=True).start()
        return int(self._read())

    @property
    def said(self) -> str:
        """Standard output and error of the last verb."""
        return self.log.read_text(errors="replace")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.log.unlink()

    def _write(self, order: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the forking process is gone"
        return line


def _kill_later(child: int, seconds: float) -> None:
    """A number is not given to another process within the fraction of a second by which a kill may come too late."""
    time.sleep(seconds)
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def serve() -> None:
    """Fork for each line of standard input; print the fork's number, and its status when it has ended."""
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _do(order)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _do(order: dict[str, Any]) -> None:
    """What a fork does; it never returns."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    os.environ.update(order["variables"])
    status = 1
    try:
        from polygrain.cli.main import main

        sys.argv = ["polygrain", *order["arguments"]]
        exec(order["before"], {})
        if order["kill"]:
            _arm(Kill(**order["kill"]))
        status = main(order["arguments"])
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _arm(kill: Kill) -> None:
    passed = 0

    def count() -> None:
        nonlocal passed
        passed += 1
        if passed == kill.number:
            os.kill(os.getpid(), signal.SIGKILL)

    if kill.event == "phase":
        from polygrain.nn.phases import Stopwatch

        original = Stopwatch.phase

        def phase(self: Stopwatch, name: str) -> Any:
            if not self._names:  # a part of the step, not of a part
                count()
            return original(self, name)

        Stopwatch.phase = phase  # type: ignore[method-assign]
        return

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == f"os.{kill.event}":
            final = arguments[1] if kill.event == "rename" else arguments[0]
            if Path(os.fsdecode(final)).name == kill.name:
                count()

    sys.addaudithook(hook)


def preload() -> None:
    """Import what the verbs import."""
    import importlib

    folder = Path(importlib.import_module("polygrain").__path__[0])
    for room in ("methods", "backbones", "train", "evaluate"):
        for path in sorted((folder / room).glob("*.py")):
            importlib.import_module(f"polygrain.{room}.{path.stem}")
    for name in ("cli.main", "cli.work", "data.prepare", "data.shards", "config.inputs", "provenance.sidecar"):
        importlib.import_module(f"polygrain.{name}")


if __name__ == "__main__":
    preload()
    serve()
