"""What every backbone returns, so that a method never asks which one it has.

Legend: B images, N tokens, D width, h/w rows and columns of the feature map.
"""

from dataclasses import dataclass

from torch import Tensor, nn


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
    """Base of our backbones: `forward(x [B, C, S, S]) -> Encoded`, and the feature `width` D as an attribute."""

    width: int


def from_map(map_BDhw: Tensor, pooled_BD: Tensor | None = None) -> Encoded:
    """Complete a feature map with its tokens and, where none is given, its mean."""
    tokens_BND = map_BDhw.flatten(2).mT
    return Encoded(tokens_BND, map_BDhw, map_BDhw.mean(dim=(2, 3)) if pooled_BD is None else pooled_BD)


def from_tokens(tokens_BND: Tensor, pooled_BD: Tensor, rows: int) -> Encoded:
    """Complete row-major tokens with their map of `rows` rows."""
    return Encoded(tokens_BND, tokens_BND.mT.reshape(len(tokens_BND), tokens_BND.shape[2], rows, -1), pooled_BD)
