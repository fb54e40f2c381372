"""Measures the time of a step by phase, which changes no result; an inner phase does not count in the outer one."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Sums seconds per phase; on CUDA it waits for the device, so that kernels count in their phase."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._wait = torch.cuda.synchronize if device.type == "cuda" else None
        self._names: list[str] = []
        self._since = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the body's time to `name`; an outer phase pauses meanwhile."""
        global _running
        self._book()
        before, _running = _running, self
        self._names.append(name)
        try:
            yield
        finally:
            self._book()
            self._names.pop()
            _running = before

    def _book(self) -> None:
        if self._wait is not None:
            self._wait()
        now = time.perf_counter()
        if self._names:
            self.seconds[self._names[-1]] += now - self._since
        self._since = now


_running: Stopwatch | None = None


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Add the body's time to `name` of the stopwatch that is in a phase, if any."""
    if _running is None:
        yield
    else:
        with _running.phase(name):
            yield
