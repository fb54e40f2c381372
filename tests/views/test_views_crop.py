"""Crop, resize, flip and blur against torchvision's functions, image by image; geometry against painted coordinates."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from polygrain.views.apply import apply, geometric, photometric, plain_view
from polygrain.views.batch import Geometry
from polygrain.views.colour import colour_jitter, solarise, to_grey
from polygrain.views.crop import blur_radius, central_view, crop_resize_flip, cut, gaussian_blur
from polygrain.views.draw import Parameters, draw
from polygrain.views.recipe import Recipe

BOXES = [(0, 0, 28, 28), (3, 5, 16, 16), (0, 7, 9, 21), (27, 0, 1, 28), (10, 10, 5, 7), (1, 0, 27, 27)]


def _images(count: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 16, 28, 32, 64])
def test_crop_resize_flip_is_torchvisions(channels: int, size: int) -> None:
    images = _images(len(BOXES), channels, 28, 28).float() / 255
    flip = torch.tensor([False, True, False, True, True, False])
    made = crop_resize_flip(images, torch.tensor(BOXES), flip, size)
    for image, box, mirrored, view in zip(images, BOXES, flip, made, strict=True):
        expected = reference.resized_crop(image, *box, [size, size], antialias=True)
        expected = reference.hflip(expected) if mirrored else expected
        torch.testing.assert_close(view, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 64])
def test_bicubic_is_torchvisions(channels: int, size: int) -> None:
    images = _images(len(BOXES), channels, 28, 28).float() / 255
    flip = torch.tensor([False, True, False, True, True, False])
    made = crop_resize_flip(images, torch.tensor(BOXES), flip, size, "bicubic")
    for image, box, mirrored, view in zip(images, BOXES, flip, made, strict=True):
        expected = reference.resized_crop(image, *box, [size, size], InterpolationMode.BICUBIC, antialias=True)
        expected = reference.hflip(expected) if mirrored else expected
        torch.testing.assert_close(view, expected, atol=5e-6, rtol=0)
    assert made.max() > 1.0
    drawn = Parameters(torch.tensor(BOXES), flip, None, None, None, None)
    recipe = Recipe(size, (0.2, 1.0), (0.75, 1.3), 0.5, interpolation="bicubic")
    assert torch.equal(geometric((images * 255).round().byte(), drawn, recipe), made.clamp(0.0, 1.0))


def test_bicubic_is_pillows_up_to_rounding() -> None:
    """The kernel is Pillow's, a = -0.5. Contrast is low: Pillow cuts to 0..255 between the two axes, we behind both."""
    image = _images(1, 1, 60, 60)[0] // 3 + 80
    for box, size in (((0, 0, 60, 60), 24), ((5, 7, 20, 20), 48)):
        top, left, height, width = box
        pil = Image.fromarray(image[0].numpy()).crop((left, top, left + width, top + height))
        expected = torch.from_numpy(np.array(pil.resize((size, size), Image.Resampling.BICUBIC)))
        mine = crop_resize_flip(image[None].float(), torch.tensor([box]), None, size, "bicubic")[0, 0].clamp(0, 255)
        assert (mine - expected).abs().max() < 1.02
        assert (cut(image, box, False, size, "bicubic")[0].float() - mine).abs().max() < 1.02


def test_source_that_is_not_square() -> None:
    images = _images(2, 3, 20, 33).float() / 255
    boxes = torch.tensor([[2, 1, 18, 30], [0, 20, 7, 13]])
    made = crop_resize_flip(images, boxes, None, 12)
    for image, box, view in zip(images, boxes.tolist(), made, strict=True):
        expected = reference.resized_crop(image, *box, [12, 12], antialias=True)
        torch.testing.assert_close(view, expected, atol=2e-6, rtol=0)


def test_crop_of_the_views_own_size_copies_pixels() -> None:
    images = _images(3, 1, 28, 28).float()
    boxes = torch.tensor([[0, 0, 16, 16], [12, 3, 16, 16], [5, 12, 16, 16]])
    made = crop_resize_flip(images, boxes, torch.tensor([False, False, True]), 16)
    expected = [images[i, :, t : t + 16, left : left + 16] for i, (t, left) in enumerate([(0, 0), (12, 3), (5, 12)])]
    expected[2] = expected[2].flip(-1)
    assert torch.equal(made, torch.stack(expected))


@pytest.mark.parametrize("channels", [1, 3])
def test_blur_is_torchvisions(channels: int) -> None:
    images = _images(5, channels, 24, 24).float() / 255
    sigmas = [0.1, 0.45, 0.0, 1.3, 2.0]
    radius = blur_radius(2.0, 24)
    made = gaussian_blur(images, torch.tensor(sigmas), radius)
    for image, sigma, view in zip(images, sigmas, made, strict=True):
        kernel = [2 * radius + 1] * 2
        expected = reference.gaussian_blur(image, kernel, [sigma, sigma]) if sigma else image
        torch.testing.assert_close(view, expected, atol=2e-6, rtol=0)
    assert torch.equal(made[2], images[2])


@pytest.mark.parametrize(("sigma", "size", "radius"), [(0.1, 32, 1), (0.5, 32, 2), (2.0, 32, 6), (2.0, 4, 3)])
def test_blur_radius_covers_three_sigma_within_reflection(sigma: float, size: int, radius: int) -> None:
    assert blur_radius(sigma, size) == radius
    image = _images(1, 1, size, size).float() / 255
    expected = reference.gaussian_blur(image, [2 * radius + 1] * 2, [sigma, sigma])
    torch.testing.assert_close(gaussian_blur(image, torch.tensor([sigma]), radius), expected, atol=2e-6, rtol=0)


def test_blur_refuses_a_radius_that_reflection_cannot_serve() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        gaussian_blur(torch.zeros(1, 1, 4, 4), torch.ones(1), 4)


@pytest.mark.parametrize("size", [16, 28, 32, 48])
def test_plain_view_is_torchvisions_resize(size: int) -> None:
    images = _images(4, 3, 28, 28)
    mean, std = [0.2, 0.3, 0.4], [0.5, 0.6, 0.7]
    expected = reference.normalize(reference.resize(images.float() / 255, [size, size], antialias=True), mean, std)
    torch.testing.assert_close(plain_view(images, size, mean, std), expected, atol=5e-6, rtol=0)


def test_plain_view_of_equal_size_is_exact_and_leaves_its_input() -> None:
    images = _images(4, 1, 28, 28)
    before = images.clone()
    assert torch.equal(plain_view(images, 28, [0.25], [0.5]), (images.float() / 255 - 0.25) / 0.5)
    assert torch.equal(images, before)


def test_whole_image_recipe_is_the_plain_view() -> None:
    images = _images(6, 1, 28, 28)
    recipe = Recipe.from_mapping({"size": 32, "scale": [1.0, 1.0], "ratio": [1.0, 1.0], "flip": 0.0})
    drawn = draw(recipe, seed=0, epoch=0, indices=torch.arange(6), view=0, source=(28, 28))
    assert torch.equal(apply(images, drawn, recipe, [0.3], [0.3]), plain_view(images, 32, [0.3], [0.3]))


def test_painted_coordinates_come_back_where_the_geometry_says() -> None:
    """Paint every pixel's row and column into an image, make views, and ask the geometry where view pixels lie."""
    source, size = 40, 10
    row = torch.arange(source).float() + 0.5
    paint = torch.stack(torch.meshgrid(row, row, indexing="ij"))[None].repeat(64, 1, 1, 1)
    recipe = Recipe.from_mapping({"size": size, "scale": [0.1, 1.0], "ratio": [0.75, 1.3], "flip": 0.5})
    drawn = draw(recipe, seed=3, epoch=0, indices=torch.arange(64), view=0, source=(source, source))
    views = crop_resize_flip(paint, drawn.box, drawn.flip, size)
    pixel = torch.arange(size).float() + 0.5
    points = torch.stack(torch.meshgrid(pixel, pixel, indexing="ij"), dim=-1).view(1, -1, 2).expand(64, -1, -1)
    predicted = Geometry(drawn.box, drawn.flip, (source, source)).to_source(points, size)
    seen = views.flatten(2).mT.view(64, size, size, 2)
    expected = predicted.view(64, size, size, 2)
    # a triangle over whole pixels is off its centre by under a tenth of one; at the border it is cut, and leans inwards
    torch.testing.assert_close(seen[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], atol=0.1, rtol=0)
    assert (seen - expected).abs().max() < drawn.box[:, 2:].max() / size
    assert drawn.flip.any()
    assert not drawn.flip.all()


def test_views_do_not_depend_on_the_rest_of_the_batch() -> None:
    images = _images(32, 1, 28, 28)
    recipe = Recipe.from_mapping(
        {"size": 32, "scale": [0.2, 1.0], "ratio": [0.75, 1.3], "flip": 0.5}
        | {"jitter": {"probability": 0.8, "brightness": 0.4, "contrast": 0.4}}
        | {"blur": {"probability": 0.5, "sigma": [0.1, 1.0]}, "solarise": {"probability": 0.2}}
    )

    def make(rows: Tensor) -> Tensor:
        drawn: Parameters = draw(recipe, seed=1, epoch=2, indices=rows + 100, view=1, source=(28, 28))
        return apply(images[rows], drawn, recipe, [0.3], [0.3])

    whole = make(torch.arange(32))
    rows = torch.tensor([31, 4, 17])
    assert torch.equal(make(rows), whole[rows])
    assert torch.equal(make(rows[:1]), whole[31:])


def test_apply_is_its_two_halves_and_what_it_was_before_it_had_any() -> None:
    images = _images(24, 3, 28, 28)
    recipe = Recipe.from_mapping(
        {"size": 20, "scale": [0.2, 1.0], "ratio": [0.75, 1.3], "flip": 0.5, "grey": 0.3}
        | {"jitter": {"probability": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}}
        | {"blur": {"probability": 0.5, "sigma": [0.1, 1.0]}, "solarise": {"probability": 0.4}}
    )
    mean, std = [0.2, 0.3, 0.4], [0.5, 0.6, 0.7]
    drawn = draw(recipe, seed=1, epoch=2, indices=torch.arange(24), view=1, source=(28, 28))
    views = crop_resize_flip(images.float().div_(255.0), drawn.box, drawn.flip, 20)
    views = colour_jitter(views, drawn.jitter, recipe.jitter)
    views = to_grey(views, drawn.grey)
    views = gaussian_blur(views, drawn.sigma, blur_radius(1.0, 20))
    views = solarise(views, drawn.solarise, 0.5)
    before = views.sub_(torch.tensor(mean)[:, None, None]).div_(torch.tensor(std)[:, None, None])
    made = apply(images, drawn, recipe, mean, std)
    assert torch.equal(made, before)
    assert torch.equal(photometric(geometric(images, drawn, recipe), drawn, recipe, mean, std), made)


def test_cut_in_eight_bits_is_torchvisions() -> None:
    for seed, (height, width) in enumerate([(28, 28), (60, 35), (200, 150)]):
        image = _images(1, 3, height, width, seed)[0]
        boxes = [(0, 0, height, width), (3, 5, 16, 16), (0, 7, 9, 21), (height - 1, 0, 1, 28), (1, 0, 27, 27)]
        for box in boxes:
            for size in (8, 16, 28, 64):
                expected = reference.resized_crop(image, *box, [size, size], antialias=True)
                assert torch.equal(cut(image, box, False, size), expected)
                assert torch.equal(cut(image, box, True, size), expected.flip(-1))
                expected = reference.resized_crop(image, *box, [size, size], InterpolationMode.BICUBIC, antialias=True)
                assert torch.equal(cut(image, box, True, size, "bicubic"), expected.flip(-1))
                # and the same law as the batched crop, whose pixels are not rounded
                unrounded = crop_resize_flip(image[None].float(), torch.tensor([box]), None, size)[0]
                assert (cut(image, box, False, size).float() - unrounded).abs().max() < 1.02


def test_cut_does_not_depend_on_how_the_image_lies_in_memory() -> None:
    image = _images(1, 3, 61, 47)[0]
    channels_last = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(cut(image, (3, 4, 50, 31), True, 24), cut(channels_last, (3, 4, 50, 31), True, 24))
    assert torch.equal(central_view(image, 24, 32), central_view(channels_last, 24, 32))


@pytest.mark.parametrize(("height", "width"), [(40, 40), (61, 40), (40, 61), (33, 100), (500, 375), (20, 90)])
@pytest.mark.parametrize(("size", "resize"), [(24, 32), (24, 24), (24, 31), (25, 32)])
def test_central_view_is_torchvisions_resize_and_centre(height: int, width: int, size: int, resize: int) -> None:
    image = _images(1, 3, height, width)[0]
    expected = reference.center_crop(reference.resize(image, [resize], antialias=True), [size, size])
    assert torch.equal(central_view(image, size, resize), expected)
    whole = reference.resize(image, [size, size], antialias=True)
    assert torch.equal(central_view(image, size, None), whole)


def test_central_view_has_no_border_to_add() -> None:
    with pytest.raises(ValueError, match="no centre of 25 pixels in an image whose shorter side is 24"):
        central_view(_images(1, 3, 40, 40)[0], 25, 24)
