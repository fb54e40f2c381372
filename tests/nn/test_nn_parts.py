"""Means over windows of a token map; tiles and sets are tested with MNCL."""

import torch

from polygrain.nn.parts import cell_means


def test_cell_means() -> None:
    tokens = torch.arange(36.0).view(1, 36, 1)
    assert torch.equal(cell_means(tokens, 6, 1), tokens)
    assert cell_means(tokens, 6, 3)[0, :, 0].tolist() == [7.0, 10.0, 25.0, 28.0]
    assert cell_means(tokens, 6, 2)[0, :, 0].tolist()[:4] == [3.5, 5.5, 7.5, 15.5]
    assert cell_means(tokens, 6, 6).tolist() == [[[17.5]]]
