"""The head's layers, and its forward pass against numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from polygrain.nn.heads import Head


def kinds(head: Head) -> list[str]:
    return [type(part).__name__ for part in head]


def test_layers_of_the_papers_heads() -> None:
    simclr = ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert kinds(Head(4, 8, 3, layers=2)) == simclr
    assert kinds(Head(4, 8, 3, layers=3, final_norm="batch_affine")) == [*simclr[:3], *simclr, "BatchNorm1d"]
    mugs = Head(4, 8, 3, layers=3, batch_norm=False, bias=False, final_bias=False, activation="gelu")
    assert kinds(mugs) == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    assert [name for name, _ in mugs.named_parameters()] == ["0.weight", "2.weight", "4.weight"]
    assert kinds(Head(4, 8, 3, layers=1)) == ["Linear"]


def test_final_norm_and_biases() -> None:
    smog = Head(4, 8, 3, layers=2, final_norm="batch", bias=True, final_bias=False)
    assert smog[0].bias is not None
    assert smog[3].bias is None
    assert smog[4].weight is None
    assert Head(4, 8, 3, layers=2, final_norm="batch_affine")[4].weight is not None
    assert Head(4, 8, 3, layers=2, bias=False)[0].bias is None
    assert Head(4, 8, 3, layers=2, bias=False)[3].bias is not None


def test_forward() -> None:
    torch.manual_seed(0)
    head = Head(4, 8, 3, layers=2, final_norm="batch").double()
    nn.init.uniform_(head[1].weight)
    nn.init.uniform_(head[1].bias)
    x = torch.randn(6, 4, dtype=torch.float64)
    part = {name: value.detach().numpy() for name, value in head.named_parameters()}
    h = x.numpy() @ part["0.weight"].T + part["0.bias"]
    h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5) * part["1.weight"] + part["1.bias"]
    z = np.maximum(h, 0) @ part["3.weight"].T + part["3.bias"]
    z = (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5)
    np.testing.assert_allclose(head(x).detach().numpy(), z, atol=1e-12)


def test_no_layer() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Head(4, 8, 3, layers=0)
