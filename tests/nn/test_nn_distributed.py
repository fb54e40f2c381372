"""Two gloo processes against one: gathered rows, batch norm, NT-Xent; value and gradient in float64."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from two_processes import WORLD, run_in_two

from polygrain.nn.batch_norm import SynchronisedBatchNorm, synchronise
from polygrain.nn.contrastive import nt_xent
from polygrain.nn.distributed import gather_rows, sum_over_processes, world
from polygrain.nn.heads import Head


def network() -> nn.Module:
    torch.manual_seed(0)
    parts = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), Head(12, 6, 4, layers=2))
    return synchronise(parts).double()


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(6, 1, 4, 4, dtype=torch.float64, generator=generator) for _ in range(2))


def losses(net: nn.Module, x_1: Tensor, x_2: Tensor) -> dict[str, Tensor]:
    """Two ways to one global loss: every process computes all of it, or only the mean over its own anchors."""
    z_1, z_2 = net(torch.cat([x_1, x_2])).chunk(2)
    keys = gather_rows(z_2)
    rank, _ = world()
    own = torch.arange(len(z_1)) + rank * len(z_1)
    anchors = nn.functional.cross_entropy(z_1 @ keys.T, own)
    return {"global": nt_xent(gather_rows(z_1), keys, 0.2), "anchors": anchors}


def gradients(net: nn.Module, loss: Tensor) -> Tensor:
    net.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def run(name: str, x_1: Tensor, x_2: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    net = network()
    loss = losses(net, x_1, x_2)[name]
    gradient = gradients(net, loss)
    return loss.detach(), gradient, dict(net.named_buffers())


def work(rank: int) -> Any:
    assert world() == (rank, WORLD)
    half = slice(3 * rank, 3 * rank + 3)
    results = {}
    for name in ("global", "anchors"):
        loss, gradient, buffers = run(name, *(x[half] for x in images()))
        for value in (loss, gradient):
            torch.distributed.all_reduce(value)
            value /= WORLD
        results[name] = (loss, gradient, buffers)
    rows = gather_rows(torch.full((2, 1), float(rank)))
    results["rows"] = rows, sum_over_processes(torch.tensor([rank + 1.0]))
    return results


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[Tensor, ...]]]:
    folder: Path = tmp_path_factory.mktemp("gloo")
    return run_in_two(work, folder)


@pytest.mark.parametrize("name", ["global", "anchors"])
def test_two_processes_equal_one(shared: list, name: str) -> None:  # type: ignore[type-arg]
    loss, gradient, buffers = run(name, *images())
    assert float(gradient.abs().max()) > 1e-3
    for results in shared:
        torch.testing.assert_close(results[name][0], loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(results[name][1], gradient, rtol=0, atol=1e-12)
        for key, value in buffers.items():
            torch.testing.assert_close(results[name][2][key], value, rtol=1e-12, atol=1e-14)


def test_both_processes_hold_the_same_bits(shared: list) -> None:  # type: ignore[type-arg]
    for name in ("global", "anchors"):
        assert torch.equal(shared[0][name][1], shared[1][name][1])


def test_rows_come_in_rank_order(shared: list) -> None:  # type: ignore[type-arg]
    for results in shared:
        assert results["rows"][0].flatten().tolist() == [0, 0, 1, 1]
        assert results["rows"][1].tolist() == [3.0]


def test_without_processes_everything_is_the_identity() -> None:
    x = torch.ones(2, 3)
    assert world() == (0, 1)
    assert gather_rows(x) is x
    assert sum_over_processes(x) is x


def test_one_process_computes_batch_norm_as_torch_does() -> None:
    torch.manual_seed(0)
    ours, theirs = synchronise(nn.Sequential(nn.BatchNorm2d(3))), nn.Sequential(nn.BatchNorm2d(3))
    assert isinstance(ours[0], SynchronisedBatchNorm)
    x = torch.randn(4, 3, 2, 2)
    assert torch.equal(ours(x), theirs(x))
    ours.eval()
    theirs.eval()
    assert torch.equal(ours(x), theirs(x))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))


def untracked(rank: int) -> tuple[Tensor, Tensor]:
    norm = synchronise(nn.BatchNorm1d(2))
    norm.track_running_stats = False  # type: ignore[assignment]
    norm(torch.arange(8.0).view(4, 2) + rank)
    assert isinstance(norm.running_mean, Tensor)
    assert isinstance(norm.num_batches_tracked, Tensor)
    return norm.running_mean, norm.num_batches_tracked


def test_statistics_that_are_not_to_be_tracked_stand_still_in_two_processes_as_in_one(tmp_path: Path) -> None:
    for mean, count in [untracked(0), *run_in_two(untracked, tmp_path)]:
        assert mean.tolist() == [0.0, 0.0]
        assert count.item() == 0
