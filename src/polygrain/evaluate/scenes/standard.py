"""Inputs of a linear layer: standardised by the train rows, with a constant 1 behind them."""

import torch
from torch import Tensor

_CONSTANT = 1e-6  # spread, relative to the largest entry, below which a dimension counts as constant


class Standard:
    """(rows - mean) / deviation in float64, [N, width] to [N, width + 1]; a constant dimension becomes zero."""

    def __init__(self, train_ND: Tensor) -> None:
        train_ND = train_ND.double()
        self.mean_D = train_ND.mean(dim=0)
        deviation_D = (train_ND - self.mean_D).square().mean(dim=0).sqrt()
        # division by a spread that is rounding would amplify the rounding
        constant_D = deviation_D <= _CONSTANT * train_ND.abs().amax(dim=0)
        self.scale_D = torch.where(constant_D, 0.0, 1.0 / torch.where(constant_D, 1.0, deviation_D))

    def __call__(self, rows_ND: Tensor) -> Tensor:
        """The inputs of some rows."""
        standard_ND = (rows_ND.double() - self.mean_D) * self.scale_D
        return torch.cat([standard_ND, standard_ND.new_ones(len(standard_ND), 1)], dim=1)
