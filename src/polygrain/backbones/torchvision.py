"""torchvision's residual networks, Swins and vision transformers by their names; never with downloaded weights.

Weights start as in torchvision. Stochastic depth is off: it would draw from torch's generator, which is not part of a
run's state. Only `load_backbone` imports this, as it is slow.
"""

from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import ResNet, SwinTransformer, VisionTransformer
from torchvision.ops import StochasticDepth

from polygrain.backbones.contract import Backbone, Encoded, from_map, from_tokens
from polygrain.backbones.vit import resample_table
from polygrain.provenance.errors import UserError, nearest

# paths of the first convolution and of the classifier in each family
FAMILIES = {
    ResNet: ("conv1", "fc"),
    SwinTransformer: ("features.0.0", "head"),
    VisionTransformer: ("conv_proj", "heads.head"),
}


def build(*, channels: int, model: str, image_size: int | None, zero_init_residual: bool = False) -> "Torchvision":
    """`image_size`: for the position table of a vision transformer (null: 224); other models: null.

    `zero_init_residual`: last batch norms start with weight 0. Raises UserError on an unsupported model or argument.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if model not in known:
        raise UserError(f"backbone torchvision: torchvision has no model '{model}'{nearest(model, known)}")
    values: dict[str, Any] = {} if image_size is None else {"image_size": image_size}
    if zero_init_residual:
        values["zero_init_residual"] = True
    try:
        network: nn.Module = torchvision.models.get_model(model, weights=None, **values)
    except TypeError as error:
        raise UserError(f"backbone torchvision: {model} refuses {' and '.join(values)}; use null ({error})") from None
    if not isinstance(network, tuple(FAMILIES)):
        raise UserError(f"backbone torchvision: {model} is not supported; use a resnet, swin or vit model")
    return Torchvision(network, channels)


class Torchvision(Backbone):
    """A model of one of the `FAMILIES` without its classifier; `pooled` is the classifier's input."""

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self.network = network
        first, classifier = next(paths for family, paths in FAMILIES.items() if isinstance(network, family))
        self.width = int(network.get_submodule(classifier).in_features)  # type: ignore[arg-type]
        network.set_submodule(classifier, nn.Identity())
        if channels != 3:
            network.set_submodule(first, _convolution(network, network.get_submodule(first), channels))
        for module in network.modules():
            if isinstance(module, StochasticDepth):
                module.p = 0.0

    def forward(self, images_BCSS: Tensor) -> Encoded:
        """Encode images of any side, for a vision transformer a multiple of its patch; raises UserError otherwise."""
        net = self.network
        if isinstance(net, ResNet):
            stem = net.maxpool(net.relu(net.bn1(net.conv1(images_BCSS))))
            return from_map(net.layer4(net.layer3(net.layer2(net.layer1(stem)))))
        if isinstance(net, SwinTransformer):
            return from_map(net.norm(net.features(images_BCSS)).permute(0, 3, 1, 2))
        assert isinstance(net, VisionTransformer)
        return _encode(net, images_BCSS)


def _encode(net: VisionTransformer, images_BCSS: Tensor) -> Encoded:
    rows, columns = images_BCSS.shape[-2:]
    if rows != columns or rows % net.patch_size:
        raise UserError(f"backbone torchvision: patch {net.patch_size} does not tile a view of {rows} x {columns} px")
    grid, side = net.image_size // net.patch_size, rows // net.patch_size
    patches_BND = net.conv_proj(images_BCSS).flatten(2).mT
    tokens_BTD = torch.cat((net.class_token.expand(len(images_BCSS), -1, -1), patches_BND), dim=1)
    first, table = net.encoder.pos_embedding[:, :1], net.encoder.pos_embedding[0, 1:].unflatten(0, (grid, grid))
    positions_1TD = torch.cat((first, resample_table(table, side).flatten(0, 1)[None]), dim=1)
    tokens_BTD = net.encoder.ln(net.encoder.layers(tokens_BTD + positions_1TD))
    return from_tokens(tokens_BTD[:, 1:], tokens_BTD[:, 0], side)


def _convolution(network: nn.Module, old: nn.Module, channels: int) -> nn.Conv2d:
    """`old` for images of `channels` channels, initialised as this network initialises it."""
    assert isinstance(old, nn.Conv2d)
    shape: dict[str, Any] = {key: getattr(old, key) for key in ("out_channels", "kernel_size", "stride", "padding")}
    new = nn.Conv2d(channels, **shape, bias=old.bias is not None)
    if isinstance(network, ResNet):
        nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if isinstance(network, VisionTransformer):
        nn.init.trunc_normal_(new.weight, std=new.weight[0].numel() ** -0.5)
        nn.init.zeros_(new.bias)  # type: ignore[arg-type]
    return new
