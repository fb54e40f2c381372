"""A step does not depend on how tensors lie in memory; half precision changes its losses by no more than is said."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from polygrain.config.compose import choices
from polygrain.config.project import Project
from polygrain.config.runs import Run
from polygrain.config.stages import stage_of
from polygrain.train.run import Training
from polygrain.train.state import Identity

PROJECT = Project(Path(__file__).resolve().parents[2])
METHODS = [name for name in choices(PROJECT.params, "method") if name not in ("random", "pca")]


def second_step(method: str, noise: Path) -> tuple[Any, Any, Any]:
    """A method after one step, and the batch and the clock of the next: queues and groups hold something by then."""
    config = copy.deepcopy(stage_of(PROJECT, "pretrain", Run("smoke", "fashion-mnist", method, "base", 0).path).config)
    training = Training(config, noise, Path("unused"), Identity("", "", "", ""), resume=False)
    training.take_step()
    clock = training.clock
    batch = training.data.batch(clock, training.method.views(clock))
    return training.method.double(), batch, clock


def losses_and_gradients(method: Any, batch: Any, clock: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    method.zero_grad(set_to_none=True)
    losses, _ = method(batch, clock)
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in losses.items()}, gradients


def in_format(batch: Any, memory_format: torch.memory_format, dtype: torch.dtype) -> Any:
    views = [view.to(dtype).contiguous(memory_format=memory_format) for view in batch.views]
    changed = copy.copy(batch)
    object.__setattr__(changed, "views", views)
    return changed


@pytest.mark.parametrize("method", METHODS)
def test_channels_last_is_contiguous(method: str, noise: Path) -> None:
    module, batch, clock = second_step(method, noise)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        twin = copy.deepcopy(module).to(memory_format=layout)
        found.append(losses_and_gradients(twin, in_format(batch, layout, torch.float64), clock))
    (losses, gradients), (other_losses, other_gradients) = found
    assert losses.keys() == other_losses.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, other_losses[name], rtol=1e-10, atol=1e-12)
    assert gradients.keys() == other_gradients.keys()
    for name, value in gradients.items():
        torch.testing.assert_close(value, other_gradients[name], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_losses_in_bfloat16_stay_within_five_percent(method: str, noise: Path) -> None:
    """Autocast of networks and heads, 8 bits of mantissa; choices of neighbours and groups may flip with it.

    A loss that is a mean cosine starts near 0, where no share of it says anything: there 0.005 are allowed.
    """
    module, batch, clock = second_step(method, noise)
    batch = in_format(batch, torch.channels_last, torch.float32)
    exact, _ = copy.deepcopy(module).float()(batch, clock)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, _ = copy.deepcopy(module).float()(batch, clock)
    assert exact.keys() == rounded.keys()
    for name, value in exact.items():
        assert rounded[name].item() != value.item()
        assert rounded[name].item() == pytest.approx(value.item(), rel=0.05, abs=0.005)
