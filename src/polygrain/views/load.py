"""RandAugment by name, so that runs without it do not depend on its code."""

from collections.abc import Callable, Sequence
from importlib import import_module

from torch import Tensor

from polygrain.views.draw import RandAugmentDraw

_MODULES = {False: "polygrain.views.untouched", True: "polygrain.views.randaugment"}


def load_randaugment(drawn: RandAugmentDraw | None) -> Callable[[Tensor, object, Tensor, Sequence[int]], Tensor]:
    """The function `randaugment` of images [B, C, H, W], drawn operations, flips [B] and the fill per channel."""
    change: Callable[[Tensor, object, Tensor, Sequence[int]], Tensor] = import_module(
        _MODULES[drawn is not None]
    ).randaugment
    return change
