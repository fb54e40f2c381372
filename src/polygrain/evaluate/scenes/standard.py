"""Inputs of a linear layer: standardised by the train rows, with a constant 1 behind them."""

import torch
from torch import Tensor

from polygrain.nn.exact import square_root

_CONSTANT = 1e-6  # spread, relative to the largest entry, below which a dimension counts as constant


class Standard:
    """(rows - mean) / deviation in float64, [N, width] to [N, width + 1]; a constant dimension becomes zero."""

    def __init__(self, train_ND: Tensor) -> None:
        variance_D, self.mean_D = torch.var_mean(train_ND.double(), dim=0, correction=0)
        deviation_D = square_root(variance_D)
        # division by a spread that is rounding would amplify the rounding
        constant_D = deviation_D <= _CONSTANT * train_ND.abs().amax(dim=0)
        self.scale_D = torch.where(constant_D, 0.0, 1.0 / torch.where(constant_D, 1.0, deviation_D))

    def __call__(self, rows_ND: Tensor) -> Tensor:
        """The inputs of some rows."""
        inputs_ND = torch.ones(len(rows_ND), rows_ND.shape[1] + 1, dtype=torch.float64)
        inputs_ND[:, :-1] = rows_ND  # no second copy: the cells of all train maps take 100 MB
        inputs_ND[:, :-1].sub_(self.mean_D).mul_(self.scale_D)
        return inputs_ND
