"""Two gloo processes for tests that hold them against one: this process is rank 0, a spawned one rank 1."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WORLD = 2


def run_in_two(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What `work(rank)` returns in each process; tensors in plain containers. `work` is a module's own function."""
    other: Any = torch.multiprocessing.get_context("spawn").Process(target=_member, args=(1, work, str(folder)))
    other.start()
    try:
        _member(0, work, str(folder))
    finally:
        other.join()
    assert other.exitcode == 0
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(WORLD)]


def _member(rank: int, work: Callable[[int], Any], folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    try:
        torch.save(work(rank), f"{folder}/rank{rank}.pt")
    finally:  # a group left open would make later tests wait for a partner that is gone
        torch.distributed.destroy_process_group()
