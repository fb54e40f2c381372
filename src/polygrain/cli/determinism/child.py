"""One verb in a process of its own, watched from outside through a terminal, and killed at a point."""

import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

from polygrain.cli.determinism.plan import Point
from polygrain.provenance.errors import UserError
from polygrain.provenance.pins import PINS

_BAR = re.compile(r"\|\s*([\d.]+)([kM]?)/[\d.]+[kM]?\s*\[")
_SCALE = {"": 1.0, "k": 1e3, "M": 1e6}
_COLUMNS = 120
_POLL = 0.005  # seconds between two looks while waiting for a file to appear


@dataclass(frozen=True)
class Outcome:
    """How a process ended: killed or finished, after how many seconds, and at which image of its progress bar."""

    killed: bool
    seconds: float
    images: float | None
    text: str
    process: int


class Watched:
    """A verb running on a terminal: its progress bar moves every half second and tells how far it is."""

    def __init__(self, verb: str, directory: Path, root: Path) -> None:
        self.master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, _COLUMNS, 0, 0))
        self.began = time.monotonic()
        # the pins are there from the start: half as long until the first step
        self.process = subprocess.Popen(
            [sys.executable, "-m", "polygrain.cli.main", verb, "--workflow", str(directory)],
            cwd=root,
            env={**os.environ, **PINS, "PYTHONPATH": str(root / "src")},
            stdin=subprocess.DEVNULL,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        self.text = ""

    def look(self, seconds: float) -> bool:
        """Wait for output for at most `seconds`; whether the process still runs."""
        ready, _, _ = select.select([self.master], [], [], seconds)
        if ready:
            try:
                self.text += os.read(self.master, 65536).decode(errors="replace")
            except OSError:  # what reading from a terminal gives whose other side is closed
                self.process.wait()
        return self.process.poll() is None

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.began

    @property
    def images(self) -> float | None:
        """Where the last progress bar stands; None before the first."""
        found = _BAR.findall(self.text[-2000:])
        return float(found[-1][0]) * _SCALE[found[-1][1]] if found else None

    def kill(self) -> None:
        """SIGKILL, unless it has ended by itself."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """Kill what runs and give the terminal back."""
        self.kill()
        os.close(self.master)


def run(
    verb: str, directory: Path, root: Path, reached: Callable[[Watched], bool] | None, delay: float, stop: "Stop"
) -> Outcome:
    """Run a verb; `delay` seconds after `reached` becomes true it is killed.

    Raises UserError with its last line when it fails by itself, KeyboardInterrupt when `stop` is set.
    """
    watched = Watched(verb, directory, root)
    due: float | None = None
    try:
        while watched.look(_POLL if reached else 0.1):
            if stop():
                raise KeyboardInterrupt
            if reached and due is None and reached(watched):
                due = time.monotonic() + delay
            if due is not None and time.monotonic() >= due:
                break
        seconds = watched.seconds
        watched.kill()
    finally:
        watched.close()
    status = watched.process.returncode
    if status not in (0, -signal.SIGKILL) or (status and due is None):
        last = [line.strip() for line in watched.text.splitlines() if line.strip()][-1:]
        raise UserError(f"{directory}: {verb} ended with status {status}: {''.join(last)}")
    return Outcome(status != 0, seconds, watched.images, watched.text, watched.process.pid)


Stop = Callable[[], bool]


def trigger(point: Point, *, batch: int, usual: float, folder: Path, outputs: list[Path]) -> Callable[[Watched], bool]:
    """When a point is reached. batch: images of a step. usual: seconds that the stage takes. folder: of the run."""

    def step(watched: Watched) -> bool:
        return (watched.images or 0) / batch >= point.value

    def writes(pattern: str) -> bool:
        return next(folder.glob(pattern), None) is not None

    match point.place:
        case "start":
            return lambda watched: watched.seconds >= point.value or watched.images is not None
        case "time":
            return lambda watched: watched.seconds >= point.value * usual
        case "step":
            return lambda watched: watched.images is not None and step(watched)
        case "save":
            return lambda watched: step(watched) and writes(f"scratch/.state.pt.{watched.process.pid}.tmp")
        case "publish":
            return lambda watched: writes(f".checkpoint.safetensors.{watched.process.pid}.tmp")
        case "output":
            return lambda _: any(path.exists() for path in outputs)
