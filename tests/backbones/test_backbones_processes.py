"""Joint batch norm of a synchronised ResNet: two gloo processes, half the images each, equal one with all of them."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from polygrain.backbones.load import load_backbone
from polygrain.nn.batch_norm import synchronise

WORLD = 2
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


def worker(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    results = step(slice(2 * rank, 2 * rank + 2))
    for name, value in results.items():
        if name.startswith(("loss", "gradient")):
            torch.distributed.all_reduce(value)
            value /= WORLD
    torch.save(results, f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    other: Any = torch.multiprocessing.get_context("spawn").Process(target=worker, args=(1, str(tmp_path)))
    other.start()  # rank 0 is this process
    worker(0, str(tmp_path))
    other.join()
    alone = step(slice(4))
    assert max(float(value.abs().max()) for name, value in alone.items() if name.startswith("gradient")) > 1e-2
    for rank in range(WORLD):
        shared = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert set(shared) == set(alone)
        for name, value in alone.items():
            torch.testing.assert_close(shared[name], value, rtol=1e-9, atol=1e-11, msg=name)
