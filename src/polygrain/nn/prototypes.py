"""Learnable prototypes to which rows are assigned (the last layer of DINO's and Mugs's group heads)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from polygrain.nn.linear import Linear, linear_map


class Prototypes(nn.Module):
    """A linear layer: P prototypes, unit `direction` [P, D] times `gain` [P, 1], fixed at 1 unless `train_gain`."""

    def __init__(self, inputs: int, prototypes: int, *, train_gain: bool) -> None:
        super().__init__()
        self.direction = Linear(inputs, prototypes, bias=False).weight
        self.gain = nn.Parameter(torch.ones(prototypes, 1), requires_grad=train_gain)

    def forward(self, rows_RD: Tensor) -> Tensor:
        """Logits [R, P] of rows [R, D]."""
        return linear_map(rows_RD, self.gain * normalize(self.direction, dim=1))
