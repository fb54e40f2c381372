"""What both sides of the comparison use: the same features, the same bookkeeping. Legend: N features, D width."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polygrain.backbones.load import load_backbone
from polygrain.nn.clock import Clock
from polygrain.nn.heads import Head
from polygrain.nn.phases import Stopwatch
from polygrain.train.data import PretrainingData


@torch.no_grad()
def two_views(job: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Projections [N, D] of two views of the same images, as SMoG's head gives them: batch norm, not of unit length.

    The network is a random one. `job["groups"]`: `bank` = N, `width` = D. Equal for equal jobs, so that both sides
    work on the same numbers.
    """
    config, size, width = job["config"], job["groups"]["bank"], job["groups"]["width"]
    data = PretrainingData(Path(job["data"]), config)
    torch.manual_seed(config["seed"])
    backbone = load_backbone(**config["backbone"], channels=data.channels)
    head = Head(backbone.width, 512, width, layers=2, final_norm="batch")
    first, second = [], []
    steps = -(-size // data.batch_size)
    for step in range(steps):
        batch = data.batch(Clock(config["seed"], step, steps, data.steps_per_epoch), ("global", "global"))
        one, two = head(backbone(torch.cat(batch.views)).pooled).chunk(2)
        first.append(one)
        second.append(two)
    return torch.cat(first)[:size].clone(), torch.cat(second)[:size].clone()


def complete(watch: Stopwatch, wall: float) -> dict[str, float]:
    """Seconds per phase; what was spent between the phases goes to the rest, so that they add up to the wall time."""
    phases = dict(watch.seconds)
    phases["rest"] = phases.pop("rest", 0.0) + wall - sum(watch.seconds.values())
    return phases
