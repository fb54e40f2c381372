"""Where a step's time goes, by phase. A record, never a claim."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up seconds per named phase; on CUDA it waits for the device so that a phase owns its kernels."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._wait = torch.cuda.synchronize if device.type == "cuda" else None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the body under `name`."""
        start = time.perf_counter()
        yield
        if self._wait is not None:
            self._wait()
        self.seconds[name] += time.perf_counter() - start
