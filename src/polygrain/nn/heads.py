"""Multi-layer perceptrons on a backbone: projectors and predictors."""

from typing import Literal

from torch import nn

from polygrain.nn.linear import Linear

Activation = Literal["relu", "gelu"]
FinalNorm = Literal["none", "batch", "batch_affine"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


class Head(nn.Sequential):
    """A chain of `layers` linear layers; after each but the last: batch norm if asked for, activation.

    Input [R, inputs], output [R, outputs], not of unit length. hidden: width of every inner layer. batch_norm: affine.
    final_norm: what follows the last linear layer: `none`, `batch` (without scale and shift) or `batch_affine`.
    bias, final_bias: whether the inner linear layers, and the last one, have a bias. Raises ValueError without layers.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        *,
        layers: int,
        batch_norm: bool = True,
        final_norm: FinalNorm = "none",
        bias: bool = True,
        final_bias: bool = True,
        activation: Activation = "relu",
    ) -> None:
        if layers < 1:
            raise ValueError(f"a head needs at least 1 layer, not {layers}")
        parts: list[nn.Module] = []
        width = inputs
        for _ in range(layers - 1):
            parts.append(Linear(width, hidden, bias=bias))
            if batch_norm:
                parts.append(nn.BatchNorm1d(hidden))
            parts.append(_ACTIVATIONS[activation]())
            width = hidden
        parts.append(Linear(width, outputs, bias=final_bias))
        if final_norm != "none":
            parts.append(nn.BatchNorm1d(outputs, affine=final_norm == "batch_affine"))
        super().__init__(*parts)
