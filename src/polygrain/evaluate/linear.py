"""Linear probe: softmax regression on frozen features, all learning rates in one pass.

SGD with momentum and a cosine to zero over the steps (as Mugs, SMoG and WCL probe), on features standardised over all
extracted train rows, so that one grid of rates suits encoders of any scale. Weights start at zero: the problem is
convex. The last step is reported. Rate and weight decay are selected on the validation split (accuracy, then loss, then
the smaller rate, then the smaller decay); the test split is used once, with the selected ones.

All settings are columns of one matrix product: they use the same minibatches, and each gets the bits that it would get
alone. Small label subsets (prefixes of the train rows) get `minimum_steps`, or they would stop far from a minimum.
Legend: B batch, N rows, D width + 1 (the last input is the constant 1, for the bias), R settings, C classes.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from polygrain.evaluate.result import Number, Result, classified
from polygrain.evaluate.store import ALL, Features, FeatureSet, Split
from polygrain.nn.random import permutation
from polygrain.provenance.errors import UserError

# Below 12 columns a matrix product uses other kernels, with other bits (found by trying 1 to 400 columns).
_FEWEST_COLUMNS = 16


@dataclass(frozen=True)
class ProbeSetting:
    """One way to train the probe."""

    rate: float
    decay: float


@dataclass(frozen=True)
class Schedule:
    """What all settings of a probe share."""

    steps: int
    batch: int
    momentum: float
    seed: int


def evaluate(
    features: Features,
    *,
    labels: list[str],
    rates: list[float],
    decays: list[float],
    epochs: int,
    minimum_steps: int,
    batch: int,
    momentum: float,
    seed: int,
) -> Result:
    """Train and test a probe for every data set and label subset.

    labels: `all` or names of label subsets. rates: learning rates at the first step. decays: weight decays (not of the
    bias). epochs: passes over the labelled rows, but at least minimum_steps steps. batch: rows of a step. seed: of the
    order. Raises UserError for values out of range, an unknown label subset and when no setting converges.
    """
    settings = [ProbeSetting(rate, decay) for rate, decay in product(sorted(set(rates)), sorted(set(decays)))]
    _check(settings, labels, epochs, minimum_steps, batch, momentum)
    values, selected, examples = dict[str, Number](), {}, {}
    for name, dataset in features.datasets.items():
        inputs = _Inputs(dataset)
        for subset in labels:
            key = name if subset == ALL else f"{name}/{subset}"
            x_ND, y_N = inputs(dataset.labelled(subset))
            steps = max(epochs * math.ceil(len(y_N) / batch), minimum_steps)
            schedule = Schedule(steps, batch, momentum, seed)
            weights_RDC = train(x_ND, y_N, settings, schedule, classes=dataset.classes)
            best, accuracy = select(weights_RDC, *inputs(dataset.validation), settings, key)
            predicted_N = (inputs(dataset.test)[0] @ weights_RDC[best]).argmax(dim=1)
            numbers, examples[key] = classified(key, predicted_N.numpy(), dataset.test.labels, dataset.test.indices)
            values |= numbers
            selected[key] = {**asdict(settings[best]), "steps": steps, "validation_top1": accuracy}
    return Result(values, selected, examples, features.note())


def train(x_ND: Tensor, y_N: Tensor, settings: Sequence[ProbeSetting], schedule: Schedule, *, classes: int) -> Tensor:
    """Weights [R, D, C] after the last step, in the type of `x_ND`; the last row of each matrix is the bias.

    A step is torch's SGD: v <- momentum v + gradient + decay w; w <- w - rate (1 + cos(pi step / steps)) / 2 v.
    """
    columns = [*settings, *[settings[-1]] * max(0, math.ceil(_FEWEST_COLUMNS / classes) - len(settings))]
    rates_R1 = x_ND.new_tensor([setting.rate for setting in columns]).unsqueeze(1)
    decays_DR1 = x_ND.new_tensor([setting.decay for setting in columns]).expand(x_ND.shape[1], -1).unsqueeze(2).clone()
    decays_DR1[-1] = 0
    weights_DRC = x_ND.new_zeros(x_ND.shape[1], len(columns), classes)
    velocity_DRC = torch.zeros_like(weights_DRC)
    batches = math.ceil(len(y_N) / schedule.batch)
    for step in range(schedule.steps):
        epoch, position = divmod(step, batches)
        if position == 0:
            order_N = permutation(len(y_N), schedule.seed, "linear probe", epoch)
            shuffled_ND, targets_NC = x_ND[order_N], one_hot(y_N[order_N], classes).to(x_ND.dtype)
        rows = slice(position * schedule.batch, (position + 1) * schedule.batch)
        gradient_DRC = gradient(weights_DRC, shuffled_ND[rows], targets_NC[rows])
        velocity_DRC.mul_(schedule.momentum).add_(gradient_DRC).add_(decays_DR1 * weights_DRC)
        weights_DRC.sub_(rates_R1 * (0.5 + 0.5 * math.cos(math.pi * step / schedule.steps)) * velocity_DRC)
    return weights_DRC[:, : len(settings)].transpose(0, 1).contiguous()


def gradient(weights_DRC: Tensor, x_BD: Tensor, targets_BC: Tensor) -> Tensor:
    """The gradient [D, R, C] of the mean cross-entropy: x^T (softmax(x W_r) - targets) / B."""
    width, *columns = weights_DRC.shape
    logits_BRC = (x_BD @ weights_DRC.view(width, -1)).view(-1, *columns)
    errors_BRC = torch.softmax(logits_BRC, dim=2).sub_(targets_BC.unsqueeze(1)).div_(len(x_BD))
    return (x_BD.T @ errors_BRC.view(len(x_BD), -1)).view_as(weights_DRC)


def select(
    weights_RDC: Tensor, x_ND: Tensor, y_N: Tensor, settings: Sequence[ProbeSetting], key: str
) -> tuple[int, float]:
    """The best setting's position and its validation accuracy. Raises UserError when all diverged."""
    ranked = []
    for position, (weights_DC, setting) in enumerate(zip(weights_RDC, settings, strict=True)):
        logits_NC = x_ND @ weights_DC
        loss = float(torch.nn.functional.cross_entropy(logits_NC.to(torch.float64), y_N))
        right = int((logits_NC.argmax(dim=1) == y_N).sum())
        if math.isfinite(loss):
            ranked.append((-right, loss, setting.rate, setting.decay, position))
    if not ranked:
        raise UserError(f"linear: every learning rate diverged on {key}; add smaller ones to `rates`")
    best = min(ranked)
    return best[-1], -best[0] / len(y_N)


class _Inputs:
    """Standardises the features of a data set by its train split and appends the constant 1."""

    def __init__(self, dataset: FeatureSet) -> None:
        train = dataset.train.features.astype(np.float64)
        self.mean, deviation = train.mean(axis=0), train.std(axis=0)
        # A dimension that is constant up to rounding becomes zero: division would amplify the rounding.
        constant = deviation <= 1e-6 * np.abs(train).max(axis=0)
        self.scale = np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, deviation))

    def __call__(self, split: Split) -> tuple[Tensor, Tensor]:
        """Return inputs float32 [N, D] and labels int64 [N]."""
        standard = (split.features - self.mean) * self.scale
        inputs = np.concatenate([standard, np.ones((len(standard), 1))], axis=1).astype(np.float32)
        return torch.from_numpy(inputs), torch.from_numpy(split.labels)


def _check(
    settings: Sequence[ProbeSetting],
    labels: Sequence[str],
    epochs: int,
    minimum_steps: int,
    batch: int,
    momentum: float,
) -> None:
    if not settings or not labels:
        raise UserError("linear: labels, rates and decays need at least one entry each")
    if settings[0].rate <= 0 or min(setting.decay for setting in settings) < 0:
        raise UserError("linear: rates must be positive and decays must not be negative")
    if epochs < 1 or minimum_steps < 0 or batch < 1 or not 0 <= momentum < 1:
        raise UserError(
            f"linear: epochs ({epochs}) and batch ({batch}) must be positive,"
            f" minimum_steps ({minimum_steps}) not negative, momentum ({momentum}) in [0, 1)"
        )
