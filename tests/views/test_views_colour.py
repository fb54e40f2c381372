"""Colour operations against torchvision's functions, image by image, colour and grey."""

import itertools

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as reference

from polygrain.views.apply import apply
from polygrain.views.colour import adjust_hue, colour_jitter, greyscale, solarise, to_grey
from polygrain.views.draw import JitterDraw, draw
from polygrain.views.recipe import Jitter, Recipe

NAMES = ("brightness", "contrast", "saturation", "hue")
STRONG = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.5}


def _images(count: int, channels: int, side: int = 12) -> Tensor:
    images = torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0))
    images[0] = 0.0
    images[1, :, :4] = 1.0
    images[2] = images[2, :1]  # no chroma
    images[3, 0] = images[3, -1]  # two channels share the maximum or minimum
    return images


def _drawn(count: int) -> JitterDraw:
    generator = torch.Generator().manual_seed(1)
    factors = torch.rand(count, 4, generator=generator) * 1.6 + 0.2
    factors[:, 3] = torch.rand(count, generator=generator) - 0.5
    orders = torch.tensor(list(itertools.permutations(range(4))))
    mask = torch.arange(count) % 7 != 6
    return JitterDraw(mask, factors, orders[torch.arange(count) % 24])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("names", [NAMES, ("brightness", "contrast"), ("saturation",), ("contrast", "hue"), ("hue",)])
def test_jitter_is_torchvisions_in_every_order(channels: int, names: tuple[str, ...]) -> None:
    images, drawn = _images(48, channels), _drawn(48)
    jitter = Jitter(0.8, **{name: STRONG[name] for name in names})
    made = colour_jitter(images, drawn, jitter)
    for row, image in enumerate(images):
        expected = image
        for operation in drawn.order[row].tolist() if drawn.mask[row] else []:
            if NAMES[operation] in names:
                adjust = getattr(reference, f"adjust_{NAMES[operation]}")
                expected = adjust(expected, float(drawn.factors[row, operation]))
        torch.testing.assert_close(made[row], expected, atol=3e-6, rtol=0)
        if not drawn.mask[row]:
            assert torch.equal(made[row], image)


@pytest.mark.parametrize("shift", [-0.5, -0.23, 0.0, 0.1, 0.5])
def test_hue_is_torchvisions(shift: float) -> None:
    images = _images(8, 3)
    made = adjust_hue(images, torch.full((8,), shift))
    for image, view in zip(images, made, strict=True):
        torch.testing.assert_close(view, reference.adjust_hue(image, shift), atol=2e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_greyscale_is_torchvisions(channels: int) -> None:
    images = _images(8, channels)
    mask = torch.arange(8) % 2 == 0
    made = to_grey(images, mask)
    for image, chosen, view in zip(images, mask, made, strict=True):
        expected = reference.rgb_to_grayscale(image, channels) if chosen else image
        torch.testing.assert_close(view, expected, atol=1e-6, rtol=0)
    assert greyscale(images).shape == (8, 1, 12, 12)


@pytest.mark.parametrize("channels", [1, 3])
def test_solarise_is_torchvisions(channels: int) -> None:
    images = _images(8, channels)
    images[4, :, 0, 0] = 0.25  # exactly at the threshold: inverted
    mask = torch.arange(8) % 2 == 0
    made = solarise(images, mask, 0.25)
    for image, chosen, view in zip(images, mask, made, strict=True):
        assert torch.equal(view, reference.solarize(image, 0.25) if chosen else image)


@pytest.mark.parametrize("channels", [1, 3])
def test_whole_recipe_is_the_same_chain_of_torchvision(channels: int) -> None:
    recipe = Recipe.from_mapping(
        {"size": 16, "scale": [0.2, 1.0], "ratio": [0.75, 1.3333333333333333], "flip": 0.5, "grey": 0.3}
        | {"jitter": {"probability": 0.8, **STRONG}, "blur": {"probability": 0.5, "sigma": [0.1, 1.0]}}
        | {"solarise": {"probability": 0.3, "threshold": 0.4}}
    )
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (64, channels, 28, 28), dtype=torch.uint8, generator=generator)
    drawn = draw(recipe, seed=0, epoch=0, indices=torch.arange(64), view=0, source=(28, 28))
    mean, std = [0.1, 0.2, 0.3][:channels], [0.4, 0.5, 0.6][:channels]
    made = apply(images, drawn, recipe, mean, std)
    assert drawn.jitter is not None
    assert drawn.grey is not None
    assert drawn.sigma is not None
    assert drawn.solarise is not None
    far = 0
    for row in range(64):
        view = reference.resized_crop(images[row].float() / 255, *drawn.box[row].tolist(), [16, 16], antialias=True)
        view = reference.hflip(view) if drawn.flip[row] else view
        for operation in drawn.jitter.order[row].tolist() if drawn.jitter.mask[row] else []:
            view = getattr(reference, f"adjust_{NAMES[operation]}")(view, float(drawn.jitter.factors[row, operation]))
        view = reference.rgb_to_grayscale(view, channels) if drawn.grey[row] else view
        sigma = float(drawn.sigma[row])
        view = reference.gaussian_blur(view, [7, 7], [sigma, sigma]) if sigma else view
        view = reference.solarize(view, 0.4) if drawn.solarise[row] else view
        expected = reference.normalize(view, mean, std)
        # a pixel within rounding of the solarisation threshold may fall on either side
        far += int(((made[row] - expected).abs() > 3e-5).sum())
    assert far <= 2
    for part in (drawn.flip, drawn.jitter.mask, drawn.grey, drawn.sigma > 0, drawn.solarise):
        assert 0 < part.sum() < 64


def test_deterministic_algorithms_are_on_and_enough() -> None:
    assert torch.are_deterministic_algorithms_enabled()
