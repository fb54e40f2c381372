"""Batch norm over the global batch, on any backend (torch's own needs CUDA); with one process torch's, bit for bit."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from polygrain.nn.distributed import sum_over_processes, world

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class SynchronisedBatchNorm(_BatchNorm):
    """Batch norm over axis 1 of [B, C, ...], over the rows of all processes; gradient flows through the statistics."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [B, C, ...]; shape is kept. B may differ between processes."""
        if world()[1] == 1 or not (self.training or self.running_mean is None):
            normalised: Tensor = super().forward(x)
            return normalised
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        rows = torch.tensor(float(x.numel() // x.shape[1]), dtype=x.dtype, device=x.device)
        total = sum_over_processes(torch.cat([x.sum(axes), rows[None]]))
        mean, count = total[:-1] / total[-1], total[-1].detach()
        centred = x - mean.view(shape)
        variance = sum_over_processes(centred.square().sum(axes)) / count
        self._track(mean.detach(), (variance * count / (count - 1)).detach())
        scaled = centred * torch.rsqrt(variance + self.eps).view(shape)
        return scaled if self.weight is None else scaled * self.weight.view(shape) + self.bias.view(shape)

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim < 2:
            raise ValueError(f"batch norm needs at least 2 axes, not {x.ndim}")

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None, "torch keeps it beside the two others"
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


def synchronise(module: nn.Module) -> nn.Module:
    """Turn every batch norm in `module` into a synchronised one, in place, and return it; parameters and keys stay."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.__class__ = SynchronisedBatchNorm
    return module


def norms_of(*networks: nn.Module) -> list[_BatchNorm]:
    """All batch norms of the networks, in order."""
    return [part for network in networks for part in network.modules() if isinstance(part, _BatchNorm)]


@contextmanager
def borrowed_statistics(norms: Sequence[_BatchNorm], others: Iterable[nn.Module] | None) -> Iterator[None]:
    """Inside it, `norms` update the running statistics of `others` (one for each), or none where that is None."""
    kept = [{name: getattr(norm, name) for name in _STATISTICS} for norm in norms]
    lenders = [None] * len(norms) if others is None else list(others)
    for norm, other in zip(norms, lenders, strict=True):
        for name in _STATISTICS:
            setattr(norm, name, getattr(other, name, None))
    try:
        yield
    finally:
        for norm, own in zip(norms, kept, strict=True):
            for name, value in own.items():
                setattr(norm, name, value)
