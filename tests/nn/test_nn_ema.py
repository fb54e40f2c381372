"""EMA moves parameters by name and nothing else."""

import pytest
import torch
from torch import nn

from polygrain.nn.ema import copy_parameters, frozen_copy, update


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return tuple(nn.ModuleDict({"f": nn.Linear(3, 2), "g": nn.BatchNorm1d(2)}).double() for _ in range(2))


def test_update_is_the_written_average() -> None:
    target, source = networks()
    before = {name: p.detach().clone() for name, p in target.named_parameters()}
    update(target, source, 0.9)
    for name, parameter in target.named_parameters():
        expected = before[name] * 0.9 + dict(source.named_parameters())[name] * (1.0 - 0.9)
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-16)


def test_ends() -> None:
    target, source = networks()
    before = target["f"].weight.detach().clone()
    update(target, source, 1.0)
    assert torch.equal(target["f"].weight, before)
    update(target, source, 0.0)
    assert torch.equal(target["f"].weight, source["f"].weight)


def test_buffers_stay() -> None:
    target, source = networks()
    source["g"](torch.randn(8, 2, dtype=torch.float64))
    update(target, source, 0.5)
    copy_parameters(target, source)
    assert float(target["g"].running_mean.abs().sum()) == 0.0


def test_matching_is_by_name_and_a_predictor_may_be_missing() -> None:
    target, source = networks()
    wider = nn.ModuleDict({"predictor": nn.Linear(5, 5), "g": source["g"], "f": source["f"]})
    copy_parameters(target, wider)
    assert torch.equal(target["f"].weight, source["f"].weight)
    with pytest.raises(ValueError, match="predictor"):
        update(wider, target, 0.5)
    with pytest.raises(ValueError, match=r"f\.weight"):
        update(nn.ModuleDict({"f": nn.Linear(4, 2)}), source, 0.5)


def test_frozen_copy() -> None:
    source = networks()[0]
    source["g"](torch.randn(8, 2, dtype=torch.float64))
    copied = frozen_copy(source)
    assert not any(p.requires_grad for p in copied.parameters())
    assert all(p.requires_grad for p in source.parameters())
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), copied.state_dict().values(), strict=True)
    )
    update(source, copied, 0.5)
    with torch.no_grad():
        source["f"].weight.add_(1.0)
    assert not torch.equal(source["f"].weight, copied["f"].weight)
