"""What every backbone returns. Legend: B images, T all tokens, N tokens of the map, D width, h/w rows and columns."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from polygrain.provenance.errors import UserError


@dataclass(frozen=True)
class Encoded:
    """One image batch, encoded at three grains.

    `map` [B, D, h, w] is the feature map, `tokens` [B, N, D] the same cells row by row (N = h * w), `pooled` [B, D] one
    vector per image: the mean of the map for a convolutional network, the class token for a transformer.
    """

    tokens: Tensor
    map: Tensor
    pooled: Tensor


class Backbone(nn.Module):
    """Base of our backbones: `forward(x [B, C, S, S]) -> Encoded`, and the feature `width` D as an attribute.

    If it shows its tokens before the final norm: `trunk` and `finish`, which `forward` calls one after the other,
    `norm` (the identity where there is none) and the number of `class_tokens`, which come first.
    """

    width: int
    norm: nn.Module
    class_tokens: int = 0

    def trunk(self, images_BCSS: Tensor) -> Tensor:
        """All tokens [B, T, D] before the final norm. Raises UserError where a network has no such tokens."""
        raise UserError(f"backbone {type(self).__name__.lower()}: shows no tokens before its norm; use vit or resnet")

    def finish(self, tokens_BTD: Tensor) -> Encoded:
        """The final norm, applied to the tokens of `trunk`, at three grains. Raises as `trunk` does."""
        raise UserError(f"backbone {type(self).__name__.lower()}: shows no tokens before its norm; use vit or resnet")

    def encode_crops(self, crops: Sequence[Tensor], *, joint_norm: bool = False) -> list[Encoded]:
        """Encode crops [B, C, S, S] of one or several sizes; a result per crop, in their order.

        One pass per size, in order of first appearance, so batch norm has statistics per size. With `joint_norm` batch
        norms of the main path normalise all crops together (SMoG section 3). Raises UserError where the network cannot
        do this.
        """
        sizes = dict.fromkeys(crop.shape[-1] for crop in crops)
        groups = [[place for place, crop in enumerate(crops) if crop.shape[-1] == size] for size in sizes]
        batches = [torch.cat([crops[place] for place in places]) for places in groups]
        joint = joint_norm and len(batches) > 1
        wholes = self.encode_jointly(batches) if joint else [self(batch) for batch in batches]
        encoded: dict[int, Encoded] = {}
        for whole, places in zip(wholes, groups, strict=True):
            encoded |= dict(zip(places, split(whole, [len(crops[place]) for place in places]), strict=True))
        return [encoded[place] for place in range(len(crops))]

    def encode_jointly(self, batches: list[Tensor]) -> list[Encoded]:
        """Encode one batch per size; batch norms of the main path normalise all together. Raises UserError as above."""
        if any(isinstance(module, _BatchNorm) for module in self.modules()):
            raise UserError(
                f"backbone {type(self).__name__.lower()}: cannot normalise crops of several sizes jointly; use backbone"
                " resnet, or set joint_norm: false"
            )
        return [self(batch) for batch in batches]


def split(whole: Encoded, lengths: Sequence[int]) -> list[Encoded]:
    """Cut a batch into consecutive parts of the given lengths."""
    parts = zip(*(torch.split(axis, list(lengths)) for axis in (whole.tokens, whole.map, whole.pooled)), strict=True)
    return [Encoded(*part) for part in parts]


def from_map(map_BDhw: Tensor, pooled_BD: Tensor | None = None) -> Encoded:
    """Make an `Encoded` from a feature map; `pooled` is its mean if not given."""
    tokens_BND = map_BDhw.flatten(2).mT
    return Encoded(tokens_BND, map_BDhw, map_BDhw.mean(dim=(2, 3)) if pooled_BD is None else pooled_BD)


def from_tokens(tokens_BND: Tensor, pooled_BD: Tensor, rows: int) -> Encoded:
    """Make an `Encoded` from row-major tokens and the number of `rows` of their map."""
    return Encoded(tokens_BND, tokens_BND.mT.reshape(len(tokens_BND), tokens_BND.shape[2], rows, -1), pooled_BD)
