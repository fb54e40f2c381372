"""Several child processes at once, none of which outlives an error or an interruption."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from polygrain.provenance.errors import UserError

Result = TypeVar("Result")


class Children:
    """As many at once as this process has cores."""

    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def each(self, tasks: Mapping[str, Callable[[], Result]]) -> Iterator[tuple[str, Result]]:
        """Run tasks side by side and yield each one's name and result as it ends; the first error ends all."""
        futures = {self.threads.submit(task): name for name, task in tasks.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()

    def run(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> None:
        """Run a process with its output in `log`. Raises UserError that shows its last line when it fails."""
        log.parent.mkdir(parents=True, exist_ok=True)
        if self.stopped:
            raise UserError("stopped")
        with log.open("wb") as stream:
            process = subprocess.Popen(arguments, cwd=folder, env=environment, stdout=stream, stderr=stream)
            self.running.add(process)
            status = process.wait()
            self.running.discard(process)
        if status:
            how = f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit {status}"
            last = log.read_text(errors="replace").replace("\r", "\n").strip().rpartition("\n")[2]
            raise UserError(f"{' '.join(arguments)}: {how}: {last} (all it said: {log})")

    def stop(self) -> None:
        """End the running ones and start no others."""
        self.stopped = True
        self.threads.shutdown(wait=False, cancel_futures=True)
        for process in tuple(self.running):
            process.terminate()
        self.threads.shutdown()


@contextmanager
def children() -> Iterator[Children]:
    """Children that end with the body."""
    several = Children()
    try:
        yield several
    finally:
        several.stop()
