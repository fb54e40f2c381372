"""Methods that contrast groups: two processes with half a batch each equal one, in losses, gradient and state."""

from pathlib import Path
from typing import Any

import pytest
import test_methods_deepcluster_v2
import test_methods_dino
import test_methods_swav
import torch
import torch.distributed
from tiny_crops import share
from two_processes import WORLD, run_in_two

RUNS = {
    "swav": test_methods_swav.run,
    "dino": test_methods_dino.run,
    "deepcluster-v2": test_methods_deepcluster_v2.run,
}


def work(rank: int) -> Any:
    found = {}
    for name, run in RUNS.items():
        loss, gradient, buffers = run(share(rank, WORLD))
        torch.distributed.all_reduce(gradient)
        found[name] = loss, gradient / WORLD, buffers
    return found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder: Path = tmp_path_factory.mktemp("processes")
    return run_in_two(work, folder)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_equal_one(name: str, shared: list[Any]) -> None:
    loss, gradient, own = RUNS[name](slice(None))
    for shared_loss, shared_gradient, buffers in (rank[name] for rank in shared):
        torch.testing.assert_close(shared_loss, loss, rtol=1e-10, atol=0)
        torch.testing.assert_close(shared_gradient, gradient, rtol=0, atol=1e-10)
        for key, value in own.items():
            torch.testing.assert_close(buffers[key], value, rtol=1e-9, atol=1e-11)
