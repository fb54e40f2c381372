"""Takes the place of `polygrain.views.randaugment` where a view has no RandAugment."""

from collections.abc import Sequence

from torch import Tensor


def randaugment(images_BCHW: Tensor, drawn: None, flip_B: Tensor, fill: Sequence[int]) -> Tensor:
    """Return the images unchanged."""
    return images_BCHW
