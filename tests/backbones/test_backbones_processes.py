"""Joint batch norm of a synchronised ResNet, and drop path: two gloo processes, half the images each, equal one."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from two_processes import WORLD, run_in_two

from polygrain.backbones.droppath import DropPath, set_drop_path_key
from polygrain.backbones.load import load_backbone
from polygrain.nn.batch_norm import synchronise

NETWORK: dict[str, Any] = {
    "widths": [3, 4], "strides": [1, 2], "blocks": [2, 1], "stem_stride": 1, "bottleneck": True, "stem_pool": True
}  # fmt: skip


def crops(rows: slice) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 1, size, size, generator=generator, dtype=torch.float64)[rows] for size in (12, 8, 8)]


def step(rows: slice) -> dict[str, Tensor]:
    """A mean over the rows of this process, its gradient, and the running statistics."""
    torch.manual_seed(0)
    backbone: Any = synchronise(load_backbone("resnet", channels=1, **NETWORK)).double().train()
    encoded = backbone.encode_crops(crops(rows), joint_norm=True)
    loss = sum((x.map.square().sin().sum((1, 2, 3)) + x.pooled.cos().sum(1)).mean() for x in encoded)
    loss.backward()
    gradients = {f"gradient {name}": parameter.grad for name, parameter in backbone.named_parameters()}
    return {"loss": loss.detach(), **gradients, **dict(backbone.named_buffers())}


def work(rank: int) -> Any:
    results = step(slice(2 * rank, 2 * rank + 2))
    for name, value in results.items():
        if name.startswith(("loss", "gradient")):
            torch.distributed.all_reduce(value)
            value /= WORLD
    return results


def test_two_processes_equal_one(tmp_path: Path) -> None:
    alone = step(slice(4))
    assert max(float(value.abs().max()) for name, value in alone.items() if name.startswith("gradient")) > 1e-2
    for shared in run_in_two(work, tmp_path):
        assert set(shared) == set(alone)
        for name, value in alone.items():
            torch.testing.assert_close(shared[name], value, rtol=1e-9, atol=1e-11, msg=name)


def dropped(rows: slice) -> Tensor:
    """What drop path leaves of three crops [3, B, 1] of the images of one process, which share a pass."""
    module = DropPath(0.5, "block").train()
    ones = torch.ones(3, 400, 1)[:, rows]
    set_drop_path_key(module, 3, 5, ones.shape[1])
    return module(ones.flatten(0, 1)).view(3, -1, 1)


def drop_half(rank: int) -> Tensor:
    return dropped(slice(200 * rank, 200 * rank + 200))


def test_two_processes_drop_the_branches_that_one_drops_whatever_crops_share_a_pass(tmp_path: Path) -> None:
    halves = run_in_two(drop_half, tmp_path)
    assert torch.equal(torch.cat(halves, dim=1), dropped(slice(400)))
    assert not torch.equal(halves[0], halves[1])
    assert not torch.equal(halves[0][0], halves[0][1])
