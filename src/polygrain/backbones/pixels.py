"""The pixels and a linear map of them, which a method such as PCA fits; nothing is trained by gradient."""

import torch
from torch import Tensor

from polygrain.backbones.contract import Backbone, Encoded, from_map
from polygrain.provenance.errors import UserError


def build(*, channels: int, image_size: int, width: int) -> "Pixels":
    """Project channels * image_size^2 pixels to `width` numbers. Raises UserError when there are fewer pixels."""
    pixels = channels * image_size**2
    if width > pixels:
        raise UserError(f"backbone pixels: width {width} is more than the {pixels} pixels of a view")
    return Pixels(pixels, width)


class Pixels(Backbone):
    """(pixels - mean) @ components, with buffers `mean` [P] and `components` [P, D] that start as zeros."""

    mean: Tensor
    components: Tensor

    def __init__(self, pixels: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("components", torch.zeros(pixels, width))

    def forward(self, images_BCSS: Tensor) -> Encoded:
        """One token per image. Raises UserError when the images have another number of pixels than the map."""
        pixels_BP = images_BCSS.flatten(1)
        if pixels_BP.shape[1] != len(self.mean):
            shape = " x ".join(str(side) for side in images_BCSS.shape[1:])
            raise UserError(f"backbone pixels: made for {len(self.mean)} pixels, got views of {shape}; set image_size")
        return from_map(((pixels_BP - self.mean) @ self.components)[:, :, None, None])
