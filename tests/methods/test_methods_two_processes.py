"""A step of each method that compares two views: two processes equal one, in loss, gradient and the state it leaves."""

from pathlib import Path
from typing import Any

import torch
from test_methods_barlow_twins import method as barlow_twins
from test_methods_byol import method as byol
from test_methods_moco_v2 import method as moco_v2
from test_methods_moco_v3 import method as moco_v3
from test_methods_nnclr import method as nnclr
from test_methods_simsiam import method as simsiam
from toy_method import IMAGES, batch, step
from two_processes import WORLD, run_in_two

MAKERS = {
    "byol": byol,
    "moco-v2": moco_v2,
    "simsiam": simsiam,
    "barlow-twins": barlow_twins,
    "nnclr": nnclr,
    "moco-v3": moco_v3,
}


def work(rank: int) -> Any:
    rows = IMAGES // WORLD
    return {name: step(make(), batch(rows=slice(rank * rows, (rank + 1) * rows))) for name, make in MAKERS.items()}


def test_two_processes_equal_one(tmp_path: Path) -> None:
    alone = {name: step(make(), batch()) for name, make in MAKERS.items()}
    for shared in run_in_two(work, tmp_path):
        for name, (loss, gradient, state) in alone.items():
            shared_loss, shared_gradient, shared_state = shared[name]
            torch.testing.assert_close(shared_loss, loss, rtol=1e-10, atol=0, msg=name)
            torch.testing.assert_close(shared_gradient, gradient, rtol=0, atol=1e-10, msg=name)
            assert shared_state.keys() == state.keys()
            for key, value in state.items():
                torch.testing.assert_close(shared_state[key], value, rtol=1e-10, atol=1e-12, msg=f"{name}: {key}")
