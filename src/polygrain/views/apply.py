"""From drawn parameters to pixels: pure tensor code on whole batches, any device, no random numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from polygrain.views.colour import colour_jitter, solarise, to_grey
from polygrain.views.crop import blur_radius, crop_resize_flip, gaussian_blur
from polygrain.views.draw import Parameters
from polygrain.views.recipe import Recipe


def apply(
    images_BCHW: Tensor, parameters: Parameters, recipe: Recipe, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Make the views that `parameters` describe: uint8 images [B, C, H, W] to float32 [B, C, size, size].

    Order: crop, resize and flip; jitter; greyscale; blur; solarise; normalise with `mean` and `std` per channel
    (0..1 scale). Pixels stay float between the operations, where torchvision on uint8 rounds after each.
    """
    return photometric(geometric(images_BCHW, parameters, recipe), parameters, recipe, mean, std)


def geometric(images_BCHW: Tensor, parameters: Parameters, recipe: Recipe) -> Tensor:
    """The first half of `apply`: crop, resize and flip, to float32 views in 0..1."""
    flip_B = parameters.flip if recipe.flip > 0 else None
    return crop_resize_flip(unit(images_BCHW), parameters.box, flip_B, recipe.size)


def photometric(
    views: Tensor, parameters: Parameters, recipe: Recipe, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """The second half of `apply`: everything after the flip, on float32 views in 0..1, which may be overwritten."""
    if recipe.jitter and parameters.jitter:
        views = colour_jitter(views, parameters.jitter, recipe.jitter)
    if parameters.grey is not None and views.shape[1] > 1:
        views = to_grey(views, parameters.grey)
    if recipe.blur and parameters.sigma is not None:
        views = gaussian_blur(views, parameters.sigma, blur_radius(recipe.blur.sigma[1], recipe.size))
    if recipe.solarise and parameters.solarise is not None:
        views = solarise(views, parameters.solarise, recipe.solarise.threshold)
    return _normalise(views, mean, std)


def plain_view(images_BCHW: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Make the evaluation view: the whole uint8 image, resized (antialiased bilinear) and normalised.

    An image that has the size already is not resampled.
    """
    views = unit(images_BCHW)
    if images_BCHW.shape[-2:] != (size, size):
        height, width = images_BCHW.shape[-2:]
        whole = torch.tensor([[0, 0, height, width]], device=images_BCHW.device)
        views = crop_resize_flip(views, whole.expand(len(views), 4), None, size)
    return _normalise(views, mean, std)


def unit(images_BCHW: Tensor) -> Tensor:
    """A float32 copy of uint8 images, in 0..1."""
    return images_BCHW.float().div_(255.0)


def _normalise(views_BCSS: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """In place: the argument is always a tensor made in this module."""
    mean_C, std_C = torch.tensor([list(mean), list(std)], dtype=torch.float32, device=views_BCSS.device)
    return views_BCSS.sub_(mean_C[:, None, None]).div_(std_C[:, None, None])
