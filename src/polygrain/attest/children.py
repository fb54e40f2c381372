"""Processes that run side by side and end with the one that started them."""

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

from polygrain.provenance.errors import UserError
from polygrain.provenance.scratch import Ended, end_group, start

T = TypeVar("T")


class Children:
    """Starts processes for several threads; `stop` ends those that are left and refuses new ones."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._lock, self._stopped = threading.Lock(), False

    def python(self, project: Path, *arguments: str) -> Ended:
        """Run this interpreter in a project, with the package of that project. Raises UserError when stopped."""
        with self._lock:
            if self._stopped:
                raise UserError("stopped")
            process = start(project, sys.executable, *arguments)
            self._running.add(process)
        said, _ = process.communicate()
        with self._lock:
            self._running.discard(process)
        return Ended(process.returncode, said)

    def stop(self) -> None:
        """End all of them."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            end_group(process)


def side_by_side(
    tasks: Sequence[Callable[[], T]], jobs: int, stop: Callable[[], object], done: Callable[[], object] = lambda: None
) -> list[T]:
    """Do all tasks, `jobs` at a time, and call `done` after each.

    At the first exception, and at the end, `stop` is called: it ends the processes that the tasks drive.
    """
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            for future in as_completed(futures):
                future.result()
                done()
            return [future.result() for future in futures]
        finally:
            stop()
            pool.shutdown(cancel_futures=True)
