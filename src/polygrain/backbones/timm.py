"""Any model of the timm library, by its name there; never with downloaded weights.

Dropout and stochastic depth are turned off: they would draw from torch's generator, which is not part of a run's state.
Only `load_backbone` imports this, as it takes about 2 s.
"""

from typing import Any

import timm
from timm.layers.drop import DropPath
from torch import Tensor, nn

from polygrain.backbones.contract import Backbone, Encoded, from_map, from_tokens
from polygrain.provenance.errors import UserError, nearest


def build(*, channels: int, model: str, image_size: int | None, zero_init_residual: bool | None = None) -> "Timm":
    """`image_size`: for a position table. `zero_init_residual`: the last batch norms of branches start with weight 0.

    Null keeps the model's own value. Raises UserError when timm has no such model, or it has no such argument.
    """
    if model not in timm.list_models():
        raise UserError(f"backbone timm: timm has no model '{model}'{_hint(model)}")
    theirs = {"image_size": ("img_size", image_size), "zero_init_residual": ("zero_init_last", zero_init_residual)}
    given = {ours: pair for ours, pair in theirs.items() if pair[1] is not None}
    values: dict[str, Any] = dict(given.values())
    try:
        network = timm.create_model(model, pretrained=False, in_chans=channels, num_classes=0, **values)
    except TypeError as error:
        raise UserError(f"backbone timm: {model} refuses {' or '.join(given)} ({error}); set it to null") from None
    return Timm(network)


class Timm(Backbone):
    """Feature maps in any of timm's three layouts: NCHW, NHWC, tokens with prefix."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.width = int(network.num_features)  # type: ignore[arg-type]
        for module in network.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
            if isinstance(module, nn.Dropout):
                module.p = 0.0

    def forward(self, images_BCSS: Tensor) -> Encoded:
        """Encode images; `pooled` is the classifier's input. Raises UserError when the model refuses this side."""
        try:
            features: Tensor = self.network.forward_features(images_BCSS)  # type: ignore[operator]
        except AssertionError as error:
            side = images_BCSS.shape[-1]
            raise UserError(
                f"backbone timm: no views of {side} px for this model ({error}); set image_size, or use vit or swin"
            ) from None
        pooled: Tensor = self.network.forward_head(features, pre_logits=True)  # type: ignore[operator]
        if features.ndim == 3:
            prefix = int(self.network.num_prefix_tokens)  # type: ignore[arg-type]
            tokens = features[:, prefix:]
            return from_tokens(tokens, pooled, round(tokens.shape[1] ** 0.5))
        if getattr(self.network, "output_fmt", "NCHW") == "NHWC":
            features = features.permute(0, 3, 1, 2)
        return from_map(features, pooled)


def _hint(model: str) -> str:
    close = [name for name in timm.list_models() if name.startswith(model[:3])]
    return nearest(model, close) if close else ""
