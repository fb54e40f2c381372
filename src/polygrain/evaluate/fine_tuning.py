"""Fine-tuning: the whole network and a new linear head are trained on all labels, and on shares of them.

The head starts at zero. The trunk's rate is selected on validation, the head's is a multiple of it; deeper layers learn
faster by the layer decay. Semi-supervised evaluation as WCL (section 8.2) and SMoG (7.2) are rebuilt: SGD, constant
rates that drop twice; Mugs (7.3): layer decay. The last step is reported, the test split is used once.

Legend: B batch, N images, C classes.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from polygrain.backbones.contract import Backbone
from polygrain.evaluate.crops import Plan, crops
from polygrain.evaluate.given import Encoder
from polygrain.evaluate.result import Integers, Number, Result, classified
from polygrain.evaluate.store import ALL
from polygrain.nn.optim import Group, build, set_learning_rate, split_by_decay
from polygrain.provenance.errors import UserError
from polygrain.views.recipe import Recipe

_BLOCK = re.compile(r"(?:.*?\.)?\d+(?:\.\d+)*(?=\.)")


@dataclass(frozen=True)
class _Training:
    """How a copy of the network is trained, whatever its rate."""

    plan: Plan
    steps: int
    head_factor: float
    layer_decay: float
    momentum: float
    weight_decay: float
    drops: tuple[int, ...]
    """Steps from which the rate is multiplied by `drop` once more."""
    drop: float


def evaluate(
    encoder: Encoder,
    *,
    labels: list[str],
    epochs: list[int],
    head_factors: list[float],
    rates: list[float],
    layer_decay: float,
    momentum: float,
    weight_decay: float,
    drops: list[float],
    drop: float,
    batch: int,
    scale: list[float],
    ratio: list[float],
    flip: float,
    seed: int,
) -> Result:
    """Fine-tune on every data set and label subset.

    labels: the subsets, see `store.labelled_rows`; epochs, head_factors: passes and the head's rate in rates of the
    trunk's, one for each subset. rates: the trunk's, to select from. layer_decay: factor from a block to the one before
    it. drops: shares of the run after which the rate is multiplied by `drop`. batch: rows of a step. scale, ratio,
    flip: of the crops, as in `views.recipe.Recipe`. seed: of order and crops. Raises UserError on values that make no
    sense.
    """
    _check(labels, epochs, head_factors, rates, layer_decay, batch)
    recipe = Recipe(encoder.size, (scale[0], scale[1]), (ratio[0], ratio[1]), flip, interpolation="bicubic")
    values, selected, examples = dict[str, Number](), {}, {}
    for name in encoder.datasets:
        for subset, passes, factor in zip(labels, epochs, head_factors, strict=True):
            key = name if subset == ALL else f"{name}/{subset}"
            steps = passes * -(-len(encoder.positions(name, "train", subset)) // batch)
            plan = Plan(recipe, passes, batch, seed, "fine-tuning")
            at = tuple(round(share * steps) for share in drops)
            training = _Training(plan, steps, factor, layer_decay, momentum, weight_decay, at, drop)
            tried = [_Tuned(encoder, name, subset, training, rate) for rate in rates]
            shares = [tuned.accuracy("validation") for tuned in tried]
            best = shares.index(max(shares))  # the first of equals
            positions = encoder.positions(name, "test")
            predicted_N = tried[best].predict(positions)
            numbers, examples[key] = classified(key, predicted_N, encoder.labels(name, positions), positions)
            values |= numbers
            selected[key] = {"rate": rates[best], "validation_top1": shares[best]}
    return Result(values, selected, examples)


def _check(
    labels: list[str],
    epochs: list[int],
    head_factors: list[float],
    rates: list[float],
    layer_decay: float,
    batch: int,
) -> None:
    if not labels or not len(labels) == len(epochs) == len(head_factors):
        raise UserError(
            f"fine-tuning: labels ({len(labels)}) needs at least one entry, epochs ({len(epochs)}) and head_factors"
            f" ({len(head_factors)}) one for each of them"
        )
    if min([*epochs, batch]) < 1 or not rates or min([*rates, *head_factors]) <= 0 or not 0 < layer_decay <= 1:
        raise UserError(
            f"fine-tuning: epochs ({epochs}), batch ({batch}), rates ({rates}) and head_factors ({head_factors}) must"
            f" be positive, layer_decay ({layer_decay}) in (0, 1]"
        )


class _Tuned:
    """A trained copy of the network with its head."""

    def __init__(self, encoder: Encoder, name: str, subset: str, training: _Training, rate: float) -> None:
        self._encoder, self._name = encoder, name
        self._network = encoder.finetunable()
        self._head = nn.Linear(encoder.network.width, encoder.classes(name)).to(encoder.device)
        nn.init.zeros_(self._head.weight)
        nn.init.zeros_(self._head.bias)
        values = {"weight_decay": training.weight_decay, "momentum": training.momentum, "nesterov": False}
        groups = parameter_groups(self._network, self._head, training.layer_decay, training.head_factor)
        optimizer = build("sgd", groups, **values)
        for step, (views_BCSS, labels_B) in enumerate(crops(encoder, name, training.plan, subset)):
            now = rate * training.drop ** sum(step >= start for start in training.drops)
            set_learning_rate(optimizer, base=rate, scheduled=now)
            optimizer.zero_grad()
            loss = cross_entropy(self._head(self._network(views_BCSS).pooled), labels_B)
            loss.backward()  # type: ignore[no-untyped-call]
            if not torch.isfinite(loss):
                raise UserError(f"fine-tuning: the loss of {name} is not finite at rate {rate}; lower evaluate rates")
            optimizer.step()
        self._network.eval()

    def predict(self, positions_N: Integers) -> Integers:
        """The most likely class of images in the plain view, int64 [N]."""
        with torch.no_grad():
            shown = self._encoder.views(self._name, positions_N)
            logits = [self._head(self._network(images).pooled) for _, images in shown]
        return torch.cat(logits).argmax(dim=1).cpu().numpy()

    def accuracy(self, part: str) -> float:
        """Share of a split's images that are classified right."""
        positions = self._encoder.positions(self._name, part)
        return float((self.predict(positions) == self._encoder.labels(self._name, positions)).mean())


def parameter_groups(network: Backbone, head: nn.Module, layer_decay: float, head_factor: float) -> list[Group]:
    """The optimiser's groups: `lr_scale` is `head_factor` for the head and layer_decay^(L - l) for layer l of 0..L.

    Layers are what `layers_of` counts; the last has the full rate.
    """
    layers = layers_of([name for name, _ in network.named_parameters()])
    depth = dict(zip((id(weight) for weight in network.parameters()), layers, strict=True))
    groups = [{**group, "lr_scale": head_factor, "name": f"head_{group['name']}"} for group in split_by_decay(head)]
    for group in split_by_decay(network):
        for layer in sorted(set(layers)):
            weights = [weight for weight in group["params"] if depth[id(weight)] == layer]
            factor = layer_decay ** (max(layers) - layer)
            if weights:
                groups.append({**group, "params": weights, "name": f"{group['name']}_{layer}", "lr_scale": factor})
    return groups


def layers_of(names: Sequence[str]) -> list[int]:
    """The layer of each parameter, by its name: numbered blocks count in order; what stands before them is layer 0.

    `stages.0.1.conv1.weight` belongs to block `stages.0.1`. What has no number and stands after a block is one layer
    more.
    """
    return list(_counted(names))


def _counted(names: Sequence[str]) -> Iterator[int]:
    blocks: dict[str, int] = {}
    for name in names:
        block = _BLOCK.match(name)
        if block:
            yield blocks.setdefault(block[0], len(blocks) + 1)
        else:
            yield len(blocks) + 1 if blocks else 0
