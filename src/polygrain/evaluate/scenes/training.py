"""Training of a network with a feature pyramid and a head on train scenes, for protocols that fine-tune.

AdamW with a linear warm-up and a line down to zero; each scene is shown as its mirror image in half of the epochs on
average. The order of the scenes, which of them are mirrored and the start of the new layers depend on the seed and the
purpose alone.

Legend: B scenes of a batch.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from polygrain.backbones.contract import Backbone
from polygrain.data.dense.coco import Picture
from polygrain.evaluate.scenes.given import SceneEncoder
from polygrain.nn.optim import build, set_learning_rate, split_by_decay
from polygrain.nn.random import hash64, permutation, uniform
from polygrain.nn.schedules import learning_rate
from polygrain.provenance.errors import UserError

_BETAS, _EPS = (0.9, 0.999), 1e-8  # as torch and the papers' toolboxes have them

LossOf = Callable[[Sequence[Picture], Tensor], Tensor]
"""The mean loss of the scenes of a step; the tensor, bool [B], says which of them are shown mirrored."""


@dataclass(frozen=True)
class Training:
    """How a network is trained, whatever its rate."""

    purpose: str
    """The protocol's name, which starts its errors too."""
    epochs: int
    batch: int
    """Scenes of a step; the last step of an epoch may have fewer."""
    warmup: float
    """Share of the steps in which the rate rises from 0."""
    weight_decay: float
    seed: int
    """Of the order of the scenes, their mirroring and the start of the new layers."""

    def check(self, train: int, rates: Sequence[float], sizes: Sequence[int]) -> None:
        """Raise UserError for values out of range. train: scenes, at most. sizes: those of the head."""
        if min(train, self.epochs, self.batch, *sizes) < 1 or not rates or min(rates) <= 0:
            raise UserError(
                f"{self.purpose}: train ({train}), epochs ({self.epochs}), batch ({self.batch}), the sizes of the head"
                f" ({', '.join(str(size) for size in sizes)}) and rates ({rates}, at least one) must be positive"
            )
        if not 0 <= self.warmup <= 1 or self.weight_decay < 0:
            raise UserError(
                f"{self.purpose}: warmup ({self.warmup}) must be a share of the run, and weight_decay"
                f" ({self.weight_decay}) not negative"
            )


def fresh(
    encoder: SceneEncoder, training: Training, behind: Callable[[Backbone], nn.Module], start: int = 0
) -> nn.Module:
    """A copy of the encoder's network with new layers, which `behind` puts behind it, in training mode.

    start: number of the start, for equal runs the same. Raises UserError for a network without weights to train.
    """
    network = encoder.finetunable().cpu()
    if not any(weight.requires_grad for weight in network.parameters()):
        raise UserError(
            f"{training.purpose}: backbone {type(network).__name__.lower()} has no weights and no map to train a head"
            " on; leave this protocol out for it"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(hash64(training.seed, training.purpose, "start", start)))
        whole = behind(network)
    return whole.to(encoder.device).to(memory_format=torch.channels_last)


def fit(network: nn.Module, loss_of: LossOf, pictures: Sequence[Picture], training: Training, rate: float) -> None:
    """Train all weights in place and leave the network in evaluation mode. rate: the highest.

    Raises UserError when a loss is not finite.
    """
    steps = training.epochs * -(-len(pictures) // training.batch)
    values = {"weight_decay": training.weight_decay, "beta_1": _BETAS[0], "beta_2": _BETAS[1], "eps": _EPS}
    optimizer = build("adamw", split_by_decay(network), **values)
    warmup = round(training.warmup * steps)
    pause = 0.5 if sys.stderr.isatty() else 30.0
    shown = tqdm(
        _batches(len(pictures), training), training.purpose, steps, unit="step", leave=False, mininterval=pause
    )
    for step, (rows_B, mirrored_B) in enumerate(shown):
        now = learning_rate("linear", base=rate, final=0.0, warmup=warmup, step=step, steps=steps)
        set_learning_rate(optimizer, base=rate, scheduled=now)
        optimizer.zero_grad()
        loss = loss_of([pictures[row] for row in rows_B.tolist()], mirrored_B)
        if not torch.isfinite(loss):
            raise UserError(
                f"{training.purpose}: the loss is not finite at step {step} with rate {rate}; lower evaluate rates"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    network.eval()


def _batches(scenes: int, training: Training) -> Iterator[tuple[Tensor, Tensor]]:
    """Which scenes, int64 [B], and which of them are mirrored, bool [B]."""
    key = (training.seed, training.purpose)
    for epoch in range(training.epochs):
        for rows_B in torch.split(permutation(scenes, *key, "order", epoch), training.batch):
            yield rows_B, uniform(*key, "mirror", epoch, rows_B) < 0.5


def mirrored(images: Tensor, mirrored_B: Tensor) -> Tensor:
    """Images [B, ..., S, S], those of which `mirrored_B` is True with their columns backwards."""
    chosen = mirrored_B.to(images.device).view(-1, *[1] * (images.ndim - 1))
    return torch.where(chosen, images.flip(-1), images)
