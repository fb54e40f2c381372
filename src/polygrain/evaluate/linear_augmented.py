"""Linear evaluation on augmented views of a frozen backbone, as MNCL's release does it (specification of MNCL, 7.1).

A linear layer with weights from N(0, 0.01) and zero bias sees random crops, resized bicubically and mirrored. LARS
takes two steps at the base rate, then half a cosine to zero. `top1` and `top5` are those of the last step. The release
reports `best-top1` and `best-top5`, each the best of what it measures on the test split every few epochs and at the
end: a selection on test, printed to compare with its numbers.

Legend: B batch, N images, D width, C classes (of views: channels), S side of a view, K classes ranked.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from polygrain.evaluate.crops import Plan, crops
from polygrain.evaluate.given import Encoder
from polygrain.evaluate.result import ACCURACY, Integers, Number, Result, classified
from polygrain.nn.random import normal
from polygrain.nn.schedules import learning_rate
from polygrain.provenance.errors import UserError
from polygrain.views.recipe import Recipe

_KEY = "linear evaluation on augmented views"


class RawBufferLars:
    """LARS whose momentum buffer holds raw gradients and is scaled afterwards; no weight decay.

    buffer <- momentum buffer + gradient (at first the gradient); weight <- weight - rate r buffer, with the ratio
    r = trust |weight| / (|gradient| + eps) of this step's gradient, and r = 1 for weights that are all zero.
    """

    def __init__(self, weights: Sequence[Tensor], *, momentum: float, trust: float, eps: float) -> None:
        self.weights, self.momentum, self.trust, self.eps = list(weights), momentum, trust, eps
        self.buffers = [torch.zeros_like(weight) for weight in weights]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate: float) -> None:
        """Change the weights in place. gradients: one of each weight's shape."""
        for weight, buffer, gradient in zip(self.weights, self.buffers, gradients, strict=True):
            buffer.mul_(self.momentum).add_(gradient)
            length = torch.linalg.vector_norm(weight)
            ratio = self.trust * length / (torch.linalg.vector_norm(gradient) + self.eps)
            weight.sub_(rate * torch.where(length > 0, ratio, 1.0) * buffer)


def evaluate(
    encoder: Encoder,
    *,
    epochs: int,
    batch: int,
    rate: float,
    momentum: float,
    trust: float,
    eps: float,
    scale: list[float],
    ratio: list[float],
    flip: float,
    test_every: int,
    seed: int,
) -> Result:
    """Train and test a linear layer for every data set.

    epochs: passes over the train rows. batch: rows of a step; the last of an epoch may be shorter. rate, momentum,
    trust, eps: of `RawBufferLars`. scale, ratio, flip: of the crops, as in `views.recipe.Recipe`. test_every: epochs
    between two looks at the test split. seed: of weights, order and crops, the same for every run. Raises UserError on
    values that make no sense.
    """
    if min(epochs, batch, test_every) < 1 or rate <= 0 or trust <= 0 or not 0 <= momentum < 1:
        raise UserError(
            f"linear-augmented: epochs ({epochs}), batch ({batch}), test_every ({test_every}), rate ({rate}) and trust"
            f" ({trust}) must be positive, momentum ({momentum}) in [0, 1)"
        )
    recipe = Recipe(encoder.size, (scale[0], scale[1]), (ratio[0], ratio[1]), flip, interpolation="bicubic")
    plan = Plan(recipe, epochs, batch, seed, _KEY)
    values, examples = dict[str, Number](), {}
    for name in encoder.datasets:
        weights = _start(encoder.network.width, encoder.classes(name), seed, encoder.device)
        optimiser = RawBufferLars(weights, momentum=momentum, trust=trust, eps=eps)
        epoch_steps = math.ceil(len(encoder.positions(name, "train")) / batch)
        shares = []
        for step, (views_BCSS, labels_B) in enumerate(crops(encoder, name, plan), start=1):
            with torch.no_grad():
                pooled_BD = encoder.network(views_BCSS).pooled
            gradients = _gradients(weights, pooled_BD, labels_B)
            optimiser.step(gradients, step_rate(rate, step - 1, epochs * epoch_steps))
            if step % (test_every * epoch_steps) == 0 or step == epochs * epoch_steps:
                ranked_NK, labels_N = _tested(encoder, name, weights)
                shares.append({k: float((ranked_NK[:, :k] == labels_N[:, None]).any(1).mean()) for k in (1, 5)})
        numbers, examples[name] = classified(name, ranked_NK[:, 0], labels_N, encoder.positions(name, "test"))
        best = {k: max(share[k] for share in shares) for k in (1, 5)}
        extra = {"top5": shares[-1][5], "best-top1": best[1], "best-top5": best[5]}
        values |= numbers | {f"{name}/{metric}": Number(value, ACCURACY) for metric, value in extra.items()}
    return Result(values, examples=examples)


def step_rate(base: float, step: int, steps: int) -> float:
    """The law of the release's pre-training: the base rate in steps 0 and 1, zero in the last of at least three."""
    return learning_rate(
        "cosine_to_final", base=base, start=base, final=0.0, warmup=min(2, steps), step=step, steps=steps
    )


def _start(width: int, classes: int, seed: int, device: str) -> list[Tensor]:
    """Weights [C, D] and bias [C], float32."""
    noise_CD = normal(seed, _KEY, "weights", torch.arange(classes)[:, None], torch.arange(width))
    return [(0.01 * noise_CD).float().to(device), torch.zeros(classes, device=device)]


def _gradients(weights: Sequence[Tensor], pooled_BD: Tensor, labels_B: Tensor) -> tuple[Tensor, ...]:
    leaves = [weight.detach().requires_grad_() for weight in weights]
    return torch.autograd.grad(cross_entropy(linear(pooled_BD, *leaves), labels_B), leaves)


def _tested(encoder: Encoder, name: str, weights: Sequence[Tensor]) -> tuple[Integers, Integers]:
    """The most likely classes of the test images, best first, int64 [N, up to 5], and their labels [N]."""
    positions, most = encoder.positions(name, "test"), min(5, encoder.classes(name))
    shown = encoder.encoded(name, positions)
    ranked = [linear(views.pooled, *weights).topk(most).indices.cpu().numpy() for _, views in shown]
    return np.concatenate(ranked), encoder.labels(name, positions)
