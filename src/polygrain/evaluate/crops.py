"""Random crops of a data set's train images, epoch after epoch, for protocols that train on more than the plain view.

Legend: B batch, N images, C channels, S side of the view.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor

from polygrain.data.load import format_of
from polygrain.evaluate.given import Encoder
from polygrain.evaluate.store import ALL
from polygrain.nn.random import permutation
from polygrain.train.images.contract import Images, Request, Setting
from polygrain.views.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """How crops are made: the recipe, passes over the rows, rows of a step, the seed, and the purpose of the draws."""

    recipe: Recipe
    epochs: int
    batch: int
    seed: int
    purpose: str


def crops(encoder: Encoder, name: str, plan: Plan, subset: str = ALL) -> Iterator[tuple[Tensor, Tensor]]:
    """Views float32 [B, C, S, S] and labels int64 [B]; the last batch of an epoch may be shorter.

    subset: of the train rows, see `store.labelled_rows`. Order and crops depend on seed and purpose alone.
    """
    data, device, rows = encoder.datasets[name], torch.device(encoder.device), encoder.positions(name, "train", subset)
    labels_N = torch.from_numpy(encoder.labels(name, rows)).to(device)
    setting = Setting(
        torch.from_numpy(rows), labels_N, plan.seed, encoder.size, list(encoder.mean), list(encoder.std), device
    )
    made_by = import_module(f"polygrain.train.images.{format_of(data)}")
    images: Images = made_by.images_of(data, setting, encoder.workers, plan.batch)
    requests = (
        Request(part, epoch, (plan.recipe,))
        for epoch in range(plan.epochs)
        for part in torch.split(permutation(len(rows), plan.seed, plan.purpose, epoch), plan.batch)
    )
    for batch in images.batches(requests):
        yield batch.views[0], batch.labels_for_monitoring
