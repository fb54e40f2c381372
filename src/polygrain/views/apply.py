"""From drawn parameters to pixels: tensor code on whole batches, on any device, without random numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from polygrain.nn.random import normal
from polygrain.views.colour import colour_jitter, solarise, to_grey
from polygrain.views.crop import blur_radius, crop_resize_flip, gaussian_blur
from polygrain.views.draw import ErasingDraw, Parameters
from polygrain.views.load import load_randaugment
from polygrain.views.recipe import Recipe


def fill_of(mean: Sequence[float]) -> list[int]:
    """The mean of each channel (0..1) as an 8-bit value, which fills what lies outside of an image."""
    return [min(255, round(255 * value)) for value in mean]


def apply(
    images_BCHW: Tensor, parameters: Parameters, recipe: Recipe, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Make the views that `parameters` describe: uint8 images [B, C, H, W] to float32 [B, C, size, size].

    Order: RandAugment, in 8 bits; crop, resize, flip; jitter; greyscale; blur; solarise; normalise with `mean` and
    `std` per channel (0..1 scale); erasing. After the crop pixels stay float; torchvision rounds after each operation.
    """
    change = load_randaugment(parameters.randaugment)
    images_BCHW = change(images_BCHW, parameters.randaugment, parameters.flip, fill_of(mean))
    return photometric(geometric(images_BCHW, parameters, recipe), parameters, recipe, mean, std)


def geometric(images_BCHW: Tensor, parameters: Parameters, recipe: Recipe) -> Tensor:
    """The crop, resize and flip of `apply`, to float32 views in 0..1."""
    flip_B = parameters.flip if recipe.flip > 0 else None
    views = crop_resize_flip(unit(images_BCHW), parameters.box, flip_B, recipe.size, recipe.interpolation)
    return views.clamp_(0.0, 1.0) if recipe.interpolation == "bicubic" else views


def photometric(
    views: Tensor, parameters: Parameters, recipe: Recipe, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """What `apply` does after the flip, on float32 views in 0..1, which may be overwritten."""
    if recipe.jitter and parameters.jitter:
        views = colour_jitter(views, parameters.jitter, recipe.jitter)
    if parameters.grey is not None and views.shape[1] > 1:
        views = to_grey(views, parameters.grey)
    if recipe.blur and parameters.sigma is not None:
        views = gaussian_blur(views, parameters.sigma, blur_radius(recipe.blur.sigma[1], recipe.size))
    if recipe.solarise and parameters.solarise is not None:
        views = solarise(views, parameters.solarise, recipe.solarise.threshold)
    if parameters.erasing is None or recipe.erasing is None:
        return _normalise(views, mean, std)
    if recipe.erasing.before_normalise:
        return _normalise(erase(views, parameters.erasing), mean, std)
    return erase(_normalise(views, mean, std), parameters.erasing)


def plain_view(images_BCHW: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Make the evaluation view: the uint8 image, resized (antialiased bilinear) unless it has `size`, normalised."""
    views = unit(images_BCHW)
    if images_BCHW.shape[-2:] != (size, size):
        height, width = images_BCHW.shape[-2:]
        whole = torch.tensor([[0, 0, height, width]], device=images_BCHW.device)
        views = crop_resize_flip(views, whole.expand(len(views), 4), None, size)
    return _normalise(views, mean, std)


def unit(images_BCHW: Tensor) -> Tensor:
    """A float32 copy of uint8 images, in 0..1."""
    return images_BCHW.float().div_(255.0)


def erase(views_BCSS: Tensor, drawn: ErasingDraw) -> Tensor:
    """Fill each view's box with standard normal noise, in place; the noise depends on key, pixel and channel."""
    channels, size = views_BCSS.shape[1], views_BCSS.shape[-1]
    pixel_S = torch.arange(size, device=views_BCSS.device)
    top, left, height, width = drawn.box[:, :, None].unbind(dim=1)
    down_BS, across_BS = (pixel_S >= top) & (pixel_S < top + height), (pixel_S >= left) & (pixel_S < left + width)
    image, row, column = (down_BS[:, :, None] & across_BS[:, None]).nonzero().unbind(dim=1)
    channel_C = torch.arange(channels, device=views_BCSS.device)
    noise = normal(drawn.key[image, None], (row * size + column)[:, None], channel_C)
    views_BCSS[image, :, row, column] = noise.to(views_BCSS.dtype)
    return views_BCSS


def _normalise(views_BCSS: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """In place: the argument is always a tensor made in this module."""
    mean_C, std_C = torch.tensor([list(mean), list(std)], dtype=torch.float32, device=views_BCSS.device)
    return views_BCSS.sub_(mean_C[:, None, None]).div_(std_C[:, None, None])
