"""Principal components of the pixels: the linear control. It contrasts nothing.

With x_i the P pixels of training image i (evaluation view, no augmentation) and m their mean,

    C = 1/n sum_i (x_i - m)(x_i - m)^T = U diag(l) U^T,  l_1 >= l_2 >= ...,  feature(x) = (x - m) [u_1 .. u_d]

in float64, not whitened; the entry of largest absolute value of each u is positive. d is chosen among `dimensions` by
the accuracy on the validation split of a k-nearest-neighbour vote (cosine) of the training images; the smaller of equal
ones wins. Labels are used for this choice only. The feature has the backbone's width and is zero beyond d.

Measured (reports/table1.pdf): Fashion-MNIST linear 82.5, Animal-MNIST linear 78.3.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from polygrain.backbones.contract import Backbone
from polygrain.nn.clock import Clock
from polygrain.nn.neighbours import topk_cosine
from polygrain.provenance.errors import UserError
from polygrain.views.batch import Batch, DataPasses

Pass = Iterable[tuple[Tensor, Tensor, Tensor]]

_BYTE_BUDGET = 1 << 26


def moments(batches: Callable[[], Iterable[Tensor]]) -> tuple[Tensor, Tensor]:
    """Compute mean [P] and covariance [P, P], float64, in two passes; `batches()` starts one over tensors [b, ...]."""
    count, total = 0, torch.zeros(())
    for x in batches():
        total = total.to(x.device) + x.flatten(1).to(torch.float64).sum(dim=0)
        count += len(x)
    mean_P = total / count
    scatter = torch.zeros((), device=mean_P.device)
    for x in batches():
        centred_BP = x.flatten(1).to(torch.float64) - mean_P
        scatter = scatter + centred_BP.T @ centred_BP
    return mean_P, scatter / count


def principal_components(covariance_PP: Tensor, count: int) -> Tensor:
    """Compute the leading eigenvectors [P, count], largest eigenvalue first, signs as in the module's docstring."""
    vectors_PD: Tensor = torch.linalg.eigh(covariance_PP).eigenvectors.flip(1)[:, :count]
    largest_1D = vectors_PD.abs().argmax(dim=0, keepdim=True)
    return vectors_PD * vectors_PD.gather(0, largest_1D).sign()


def vote_accuracy(queries_MD: Tensor, truth_M: Tensor, bank_QD: Tensor, labels_Q: Tensor, k: int) -> float:
    """Compute the share of queries whose k nearest bank rows vote for their label; ties go to the smaller label."""
    _, indices_MK = topk_cosine(queries_MD, bank_QD, k, byte_budget=_BYTE_BUDGET)
    votes_MC = nn.functional.one_hot(labels_Q[indices_MK], int(labels_Q.max()) + 1).sum(dim=1)
    return float((votes_MC.argmax(dim=1) == truth_M).double().mean())


class PCA(nn.Module):
    """A linear map of the pixels, fitted without an optimiser step. Raises UserError for values that do not fit.

    backbone: `pixels`, at least max(dimensions) wide. dimensions: candidates for d. k: neighbours that vote.
    """

    encoder_name = "backbone."
    uses_labels = True

    dimension: Tensor

    def __init__(self, backbone: Backbone, *, dimensions: list[int], k: int) -> None:
        super().__init__()
        buffers = dict(backbone.named_buffers())
        if "mean" not in buffers or "components" not in buffers:
            raise UserError("method pca fits a linear map of the pixels: it needs the backbone 'pixels'")
        pixels, width = buffers["components"].shape
        if not dimensions or min(dimensions) < 1 or max(dimensions) > min(pixels, width):
            raise UserError(f"method.values.dimensions {dimensions} must lie in 1..{min(pixels, width)}, the width")
        self.backbone = backbone
        self.dimensions = sorted(dimensions)
        self.k = k
        self.register_buffer("dimension", torch.zeros((), dtype=torch.int64))

    def views(self, clock: Clock) -> tuple[str, ...]:
        """Ask for none: no augmented image is used."""
        return ()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return none: the map is computed in closed form."""
        return []

    @torch.no_grad()
    def start_epoch(self, clock: Clock, data: DataPasses) -> None:
        """Fit the components on `pretrain` and choose their number on `validation`, once."""
        if int(self.dimension) > 0:
            return
        mean_P, covariance_PP = moments(lambda: (images for images, _, _ in data.plain_pass("pretrain")))
        self._write(mean_P, principal_components(covariance_PP, self.dimensions[-1]))
        bank_QD, labels_Q = self._features(data.plain_pass("pretrain"))
        queries_MD, truth_M = self._features(data.plain_pass("validation"))
        accuracies = [
            vote_accuracy(queries_MD[:, :d], truth_M, bank_QD[:, :d], labels_Q, self.k) for d in self.dimensions
        ]
        best = self.dimensions[accuracies.index(max(accuracies))]
        self.backbone.get_buffer("components")[:, best:] = 0.0
        self.dimension.fill_(best)

    def forward(self, batch: Batch, clock: Clock) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Raise UserError: there is nothing to optimise."""
        raise UserError("method pca takes no optimiser step; give its run 0 steps (encoder_passes: 0)")

    def _write(self, mean_P: Tensor, components_PD: Tensor) -> None:
        self.backbone.get_buffer("mean").copy_(mean_P)
        self.backbone.get_buffer("components").zero_()
        self.backbone.get_buffer("components")[:, : components_PD.shape[1]] = components_PD

    def _features(self, batches: Pass) -> tuple[Tensor, Tensor]:
        parts = [(self.backbone(images).pooled, labels) for images, _, labels in batches]
        return torch.cat([features for features, _ in parts]), torch.cat([labels for _, labels in parts])


METHOD = PCA
