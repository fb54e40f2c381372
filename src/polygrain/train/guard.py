"""One process per run directory, and no job that outlives the workflow that started it."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polygrain.provenance.errors import UserError


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Lock `directory` until the process ends for any reason. Raises UserError when another process holds it."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "lock"
    with path.open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise UserError(
                f"{directory.parent}: process {holder} is already working on this run; wait for it or stop it"
            ) from None
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield


def exit_with_parent(seconds: float = 0.5) -> None:
    """End this process when the one that started it ends, so that a killed workflow leaves no training behind.

    A thread checks every `seconds`: the kernel's own signal belongs to the starting *thread*, which may end before.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(seconds)
        os.write(2, b"polygrain: the process that started this job is gone; stopping\n")
        os._exit(3)

    threading.Thread(target=watch, daemon=True, name="exit-with-parent").start()
