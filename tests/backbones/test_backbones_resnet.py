"""ResNet against torchvision's; joint batch norm against a plain re-derivation and gradcheck."""

import itertools
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from polygrain.backbones.load import load_backbone
from polygrain.backbones.resnet import Block, normalise

CPU: dict[str, Any] = {"widths": [16, 32, 64, 128], "strides": [1, 2, 2, 1], "blocks": [1, 1, 1, 1], "stem_stride": 2}
IMAGENET: dict[str, Any] = {
    "widths": [64, 128, 256, 512], "strides": [1, 2, 2, 2], "stem_stride": 2, "stem_kernel": 7, "stem_pool": True
}  # fmt: skip
PAPER: dict[str, dict[str, Any]] = {
    "resnet18": {**IMAGENET, "blocks": [2, 2, 2, 2]},
    "resnet34": {**IMAGENET, "blocks": [3, 4, 6, 3]},
    "resnet50": {**IMAGENET, "blocks": [3, 4, 6, 3], "bottleneck": True},
}
TINY: dict[str, Any] = {"widths": [3, 4], "strides": [1, 2], "blocks": [2, 1], "stem_stride": 1}
TINY_DEEP = {**TINY, "bottleneck": True, "stem_pool": True, "stem_kernel": 5}


def _load(values: dict[str, Any], channels: int = 3, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return load_backbone("resnet", channels=channels, **values)


def _shake(network: nn.Module) -> None:
    """Batch norms that change something: random weights, biases and running statistics."""
    generator = torch.Generator().manual_seed(5)
    for value in network.state_dict().values():
        if value.ndim == 1:
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)


def _crops(sizes: list[int], count: int = 2, channels: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(count, channels, size, size, generator=generator, dtype=torch.float64) for size in sizes]


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
@pytest.mark.parametrize("training", [False, True])
def test_whole_network_is_torchvisions(model: str, training: bool) -> None:
    ours = _load(PAPER[model]).double().train(training)
    theirs = getattr(torchvision.models, model)(weights=None)
    theirs = nn.Sequential(*list(theirs.children())[:-2]).double().train(training)  # pooling and classifier off
    _shake(ours)
    # both list stem, then block by block the branch and the shortcut
    pairs = list(zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    for value, other in pairs:
        other.copy_(value)
    images = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        encoded, expected = ours(images), theirs(images)
    torch.testing.assert_close(encoded.map, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(encoded.pooled, expected.mean((2, 3)), rtol=1e-9, atol=1e-10)
    assert expected.shape == (2, ours.width, 3, 3)
    assert float(expected.std()) > 1e-2
    for value, other in pairs:  # running statistics included
        torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("model", list(PAPER))
def test_number_of_parameters_is_torchvisions(model: str) -> None:
    with torch.device("meta"):
        ours, theirs = _load(PAPER[model]), getattr(torchvision.models, model)(weights=None)
    theirs.fc = nn.Identity()
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (ours, theirs)]
    assert counts[0] == counts[1]


def test_resnet18_of_small_images_has_the_known_size() -> None:
    """torchvision's ResNet-18 without its classifier, its 7x7 stem on three channels exchanged for a 3x3 one."""
    ours = _load({**PAPER["resnet18"], "stem_kernel": 3, "stem_stride": 1, "stem_pool": False})
    assert sum(parameter.numel() for parameter in ours.parameters()) == 11_176_512 - 64 * 3 * (49 - 9)
    assert ours.eval()(torch.zeros(1, 3, 32, 32)).map.shape == (1, 512, 4, 4)


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(8, 8, 1), (8, 16, 2), (8, 12, 1)])
def test_basic_block_is_torchvisions(inputs: int, outputs: int, stride: int) -> None:
    ours = Block(inputs, outputs, stride, bottleneck=False)
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    theirs = torchvision.models.resnet.BasicBlock(inputs, outputs, stride, shortcut)
    names = {"norm1": "bn1", "norm2": "bn2", "shortcut": "downsample"}
    state = {}
    for key, value in ours.state_dict().items():
        first, rest = key.split(".", 1)
        state[f"{names.get(first, first)}.{rest}"] = value
    theirs.load_state_dict(state)
    images = torch.randn(4, inputs, 9, 9)
    torch.testing.assert_close(ours([images])[0], theirs(images))


def test_resnet_starts_from_kaimings_law() -> None:
    for bottleneck in (False, True):
        backbone = _load({**CPU, "widths": [64, 128, 128, 128], "bottleneck": bottleneck}, channels=3)
        for name, module in backbone.named_modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * module.kernel_size[0] ** 2
                assert module.bias is None
                assert float(module.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name
            if isinstance(module, nn.BatchNorm2d):
                assert torch.equal(module.weight, torch.ones_like(module.weight)), name
                assert torch.equal(module.bias, torch.zeros_like(module.bias)), name


@pytest.mark.parametrize(("bottleneck", "last"), [(False, "norm2"), (True, "norm3")])
def test_zero_init_residual_makes_blocks_their_shortcuts(bottleneck: bool, last: str) -> None:
    backbone = _load({**TINY, "bottleneck": bottleneck, "zero_init_residual": True})
    for name, module in backbone.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert bool(module.weight.any()) == (not name.endswith(last)), name


def test_the_network_of_the_cpu_scale_is_what_it_was() -> None:
    """Golden values of the first release: stored checkpoints and tables rest on these names, draws and outputs."""
    backbone = _load(CPU, channels=1, seed=7)
    state = backbone.state_dict()
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = ["stem.weight", *(f"stem_norm.{part}" for part in parts)]
    for stage in range(4):
        for place in (1, 2):
            expected += [f"stages.{stage}.0.conv{place}.weight"]
            expected += [f"stages.{stage}.0.norm{place}.{part}" for part in parts]
        if stage > 0:
            expected += [f"stages.{stage}.0.shortcut.0.weight"]
            expected += [f"stages.{stage}.0.shortcut.1.{part}" for part in parts]
    assert list(state) == expected
    assert state["stem.weight"].flatten()[:3].tolist() == pytest.approx([-0.02567285, -0.00639822, 0.0390163], rel=1e-5)
    last = state["stages.3.0.conv2.weight"].flatten()[-3:].tolist()
    assert last == pytest.approx([-0.05031471, -0.00530568, -0.0022118], rel=1e-5)
    images = torch.linspace(-2, 2, 2 * 32 * 32).reshape(2, 1, 32, 32).sin()
    encoded = backbone.train()(images)
    assert encoded.pooled[0, :4].tolist() == pytest.approx([0.443303, 0.584069, 0.169908, 0.600162], abs=2e-5)
    assert float(encoded.map.detach().square().mean()) == pytest.approx(1.0226828, abs=2e-5)


def _statistics(maps: list[Tensor]) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance per channel over every pixel of every map, pixel lists laid end to end."""
    pixels = [x[:, channel].reshape(-1) for x in maps for channel in range(x.shape[1])]
    channels = maps[0].shape[1]
    columns = [torch.cat(pixels[channel::channels]) for channel in range(channels)]
    means = torch.stack([column.mean() for column in columns])
    variances = torch.stack([((column - column.mean()) ** 2).mean() for column in columns])
    return means, variances, len(columns[0])


def _derived(state: dict[str, Tensor], values: dict[str, Any], images: list[Tensor]) -> list[Tensor]:
    """The maps under joint norm, written out from a state dict, whose running statistics it moves as they should."""

    def norm(name: str, maps: list[Tensor]) -> list[Tensor]:
        mean, variance, count = _statistics(maps)
        state[f"{name}.running_mean"].mul_(0.9).add_(0.1 * mean.detach())
        state[f"{name}.running_var"].mul_(0.9).add_(0.1 * variance.detach() * count / (count - 1))
        state[f"{name}.num_batches_tracked"] += 1
        weight, bias = (state[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias"))
        scale = (variance + 1e-5).sqrt().view(1, -1, 1, 1)
        return [(x - mean.view(1, -1, 1, 1)) / scale * weight + bias for x in maps]

    def convolve(name: str, maps: list[Tensor], stride: int = 1) -> list[Tensor]:
        weight = state[f"{name}.weight"]
        return [functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2) for x in maps]

    maps = [x.clamp(min=0) for x in norm("stem_norm", convolve("stem", images, values["stem_stride"]))]
    if values.get("stem_pool"):
        maps = [functional.max_pool2d(x, 3, 2, 1) for x in maps]
    for stage, (stride, count) in enumerate(zip(values["strides"], values["blocks"], strict=True)):
        for place in range(count):
            block, step = f"stages.{stage}.{place}", stride if place == 0 else 1
            depth, strided = (3, 2) if values.get("bottleneck") else (2, 1)
            inner = maps
            for layer in range(1, depth + 1):
                inner = convolve(f"{block}.conv{layer}", inner, step if layer == strided else 1)
                inner = norm(f"{block}.norm{layer}", inner)
                inner = [x.clamp(min=0) for x in inner] if layer < depth else inner
            if f"{block}.shortcut.0.weight" in state:
                projected = convolve(f"{block}.shortcut.0", maps, step)
                maps = [norm(f"{block}.shortcut.1", [x])[0] for x in projected]  # per size
            maps = [(x + y).clamp(min=0) for x, y in zip(maps, inner, strict=True)]
    return maps


@pytest.mark.parametrize("values", [TINY, TINY_DEEP], ids=["basic", "bottleneck"])
def test_joint_norm_is_the_plain_derivation(values: dict[str, Any]) -> None:
    """Two large and four small crops, interleaved: maps, gradients and every running statistic."""
    backbone = _load(values, channels=1).double().train()
    _shake(backbone)
    state = {key: value.detach().clone() for key, value in backbone.state_dict().items()}
    for name, _ in backbone.named_parameters():
        state[name].requires_grad_()
    crops = _crops([12, 8, 12, 8, 8, 8])
    order = [0, 2, 1, 3, 4, 5]  # by size: large first, as one of them comes first
    large, small = torch.cat([crops[0], crops[2]]), torch.cat([crops[place] for place in order[2:]])
    derived = [part for whole in _derived(state, values, [large, small]) for part in whole.split(2)]
    encoded = backbone.encode_crops(crops, joint_norm=True)
    for place, expected in zip(order, derived, strict=True):
        torch.testing.assert_close(encoded[place].map, expected, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(encoded[place].pooled, expected.mean((2, 3)), rtol=1e-10, atol=1e-11)
    weights = [torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) for x in derived]
    sum((x.map * weights[order.index(place)]).sum() for place, x in enumerate(encoded)).backward()
    sum((x * weight).sum() for x, weight in zip(derived, weights, strict=True)).backward()
    for name, parameter in backbone.named_parameters():
        # the bias of a norm may have none: another norm follows
        assert parameter.ndim == 1 or float(parameter.grad.abs().max()) > 1e-6, name
        torch.testing.assert_close(parameter.grad, state[name].grad, rtol=1e-8, atol=1e-9, msg=name)
    for name, buffer in backbone.named_buffers():
        torch.testing.assert_close(buffer, state[name], rtol=1e-10, atol=1e-12, msg=name)
        if name.endswith("tracked"):
            assert int(buffer) == (2 if "shortcut" in name else 1), name


def test_joint_norm_of_one_size_is_the_plain_pass() -> None:
    crops = _crops([12, 12, 12])
    one, other = (_load(TINY, channels=1).double().train() for _ in range(2))
    whole = one(torch.cat(crops)).map
    joint = torch.cat([encoded.map for encoded in other.encode_crops(crops, joint_norm=True)])
    assert torch.equal(joint, whole)
    assert all(torch.equal(x, y) for x, y in zip(one.buffers(), other.buffers(), strict=True))


def test_joint_norm_differs_from_norm_per_size_in_training_only() -> None:
    crops = _crops([12, 8, 8])
    backbone = _load(TINY, channels=1).double()
    _shake(backbone)
    for training in (False, True):
        backbone.train(training)
        maps = [[x.map for x in backbone.encode_crops(crops, joint_norm=joint)] for joint in (False, True)]
        equal = [torch.allclose(x, y, rtol=1e-9) for x, y in zip(*maps, strict=True)]
        assert equal == [not training] * 3


def test_joint_norm_has_the_right_gradient() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3, track_running_stats=False).double()
    nn.init.normal_(norm.weight)
    maps = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((2, 3, 3, 2), (1, 3, 2, 2))]
    assert torch.autograd.gradcheck(lambda *maps: tuple(normalise(norm, list(maps))), maps)


@pytest.mark.parametrize("layouts", list(itertools.product((torch.contiguous_format, torch.channels_last), repeat=2)))
def test_joint_norm_takes_both_layouts(layouts: tuple[torch.memory_format, torch.memory_format]) -> None:
    maps = [torch.randn(2, 3, side, side) for side in (5, 3)]
    plain = normalise(nn.BatchNorm2d(3), maps)
    laid = [x.contiguous(memory_format=layout) for x, layout in zip(maps, layouts, strict=True)]
    for x, y in zip(plain, normalise(nn.BatchNorm2d(3), laid), strict=True):
        torch.testing.assert_close(x, y)
        assert y.is_contiguous(memory_format=torch.channels_last)
