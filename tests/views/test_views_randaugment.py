"""RandAugment against Pillow, image by image; erasing; the strong recipe as one chain of Pillow and torchvision."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from polygrain.nn.random import normal
from polygrain.views.apply import apply, erase, fill_of
from polygrain.views.draw import ErasingDraw, Parameters, RandAugmentDraw, draw
from polygrain.views.randaugment import randaugment, sample
from polygrain.views.recipe import OPERATIONS, Recipe

CROP: dict[str, Any] = {"size": 20, "scale": [0.2, 1.0], "ratio": [0.75, 1.3333333333333333], "flip": 0.5}
RANDAUGMENT: dict[str, Any] = {
    "probability": 0.5, "operations": list(OPERATIONS), "count": 2, "magnitude": 9, "deviation": 0.5
}  # fmt: skip
ERASING = {"probability": 0.25, "area": [0.02, 0.33], "ratio": [0.3, 3.3]}
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
FILL = [70, 120, 200]

GOLDEN_OPERATIONS = [[-1, -1], [14, -1], [7, -1], [-1, -1], [11, 7], [5, -1]]
GOLDEN_MAGNITUDES = [-8.510371, -8.668646, -9.732825, -8.886114]
GOLDEN_CUBIC = [[False, True], [True, True], [True, True]]
GOLDEN_ERASED = [[6, 4, 8, 14], [5, 6, 5, 10], [7, 10, 7, 9]]


def _images(count: int, channels: int, height: int = 23, width: int = 31) -> Tensor:
    """Noise, and what histograms trip over: flat, few levels, dark, saturated, half black."""
    pixels = np.random.default_rng(channels).integers(0, 256, (count, channels, height, width))
    pixels[0] = 77
    pixels[1] = pixels[1] % 3 * 100
    pixels[2] //= 5
    pixels[3] = np.clip(pixels[3] * 2 - 128, 0, 255)
    pixels[4, :, :, : width // 2] = 0
    pixels[5, 0] = 9
    return torch.from_numpy(pixels.astype(np.uint8))


def _to_pil(image_CHW: Tensor) -> Image.Image:
    array = image_CHW.permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if len(image_CHW) == 1 else array))


def _from_pil(image: Image.Image) -> Tensor:
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def _pillow(image: Image.Image, name: str, magnitude: float, cubic: bool, fill: list[int]) -> Image.Image:
    """One operation by Pillow's own functions, with the levels of mugs.md section 5.2."""
    m, (width, height) = abs(magnitude), image.size
    resample = Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR
    colour = tuple(fill) if image.mode == "RGB" else fill[0]
    affine = {
        "shear-x": (1, 0.03 * magnitude, 0, 0, 1, 0),
        "shear-y": (1, 0, 0, 0.03 * magnitude, 1, 0),
        "translate-x": (1, 0, 0.045 * magnitude * width, 0, 1, 0),
        "translate-y": (1, 0, 0, 0, 1, 0.045 * magnitude * height),
    }
    enhance = {
        "colour": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "brightness": ImageEnhance.Brightness,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name in affine:
        return image.transform(image.size, Image.Transform.AFFINE, affine[name], resample, fillcolor=colour)
    if name in enhance:
        return enhance[name](image).enhance(1 + 0.9 * magnitude / 10)
    if name == "solarise-add":
        add = int(11 * m)
        return image.point([min(255, v + add) if v < 128 else v for v in range(256)] * len(image.getbands()))
    if name == "rotate":
        return image.rotate(3 * magnitude, resample, fillcolor=colour)
    if name == "posterise":
        bits = 4 - int(0.4 * m)  # no bits are left at 10: black, which Pillow refuses to make
        return ImageOps.posterize(image, bits) if bits else image.point([0] * 256 * len(image.getbands()))
    if name == "solarise":
        return ImageOps.solarize(image, 256 - int(25.6 * m))
    plain = {"auto-contrast": ImageOps.autocontrast, "equalise": ImageOps.equalize, "invert": ImageOps.invert}
    return plain[name](image)


def _chain(image: Tensor, operations: list[tuple[str, float, bool]], flip: bool, fill: list[int]) -> Tensor:
    """The papers' order: flip first, then the operations; flipped back, as our crop mirrors afterwards."""
    pil = _to_pil(image.flip(-1) if flip else image)
    for name, magnitude, cubic in operations:
        pil = _pillow(pil, name, magnitude, cubic, fill)
    return _from_pil(pil).flip(-1) if flip else _from_pil(pil)


def _magnitudes(count: int) -> Tensor:
    magnitudes = torch.from_numpy(np.random.default_rng(0).uniform(-10, 10, count))
    magnitudes[:5] = torch.tensor([10.0, -10.0, 0.0, 5.0, -7.5])
    return magnitudes


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_pillows(name: str, channels: int) -> None:
    """Equal in every bit; rotate may fall to the level beside where a sum is a whole number (under 1 in 2,000)."""
    images, magnitude = _images(40, channels), _magnitudes(40)
    flip, cubic = torch.arange(40) % 2 == 1, torch.arange(40) % 4 >= 2
    drawn = RandAugmentDraw(torch.full((40, 1), OPERATIONS.index(name)), magnitude[:, None], cubic[:, None])
    before = images.clone()
    made = randaugment(images, drawn, flip, FILL[:channels])
    assert torch.equal(images, before)
    assert made.dtype == torch.uint8
    off = torch.zeros(())
    for row in range(40):
        asked = [(name, float(magnitude[row]), bool(cubic[row]))]
        expected = _chain(images[row], asked, bool(flip[row]), FILL[:channels])
        difference = (made[row].int() - expected.int()).abs()
        assert difference.max() <= (name == "rotate")
        off += difference.sum()
    assert off < made.numel() / 2000
    unchanged = {"colour"} if channels == 1 else set()
    assert torch.equal(made, images) == (name in unchanged)


@pytest.mark.parametrize("channels", [1, 3])
def test_operations_follow_each_other(channels: int) -> None:
    """Every pair of different operations in a batch of 210, both orders of some; -1 leaves an image alone."""
    pairs = [(one, other) for one in range(15) for other in range(15) if one != other]
    pairs += [(-1, 3), (4, -1), (-1, -1)]
    count = len(pairs)
    images, magnitude = _images(count, channels, 12, 16), _magnitudes(2 * count).view(count, 2)
    flip, cubic = torch.arange(count) % 2 == 1, torch.arange(2 * count).view(count, 2) % 3 == 1
    made = randaugment(images, RandAugmentDraw(torch.tensor(pairs), magnitude, cubic), flip, FILL[:channels])
    for row, pair in enumerate(pairs):
        asked = [(OPERATIONS[k], float(magnitude[row, i]), bool(cubic[row, i])) for i, k in enumerate(pair) if k >= 0]
        expected = _chain(images[row], asked, bool(flip[row]), FILL[:channels])
        if "rotate" not in {name for name, _, _ in asked}:
            assert torch.equal(made[row], expected)
        else:  # a level beside, and what the second operation makes of it
            assert (made[row] != expected).double().mean() < 0.02
    assert torch.equal(made[-1], images[-1])


def test_an_image_is_made_alike_in_any_batch() -> None:
    images = _images(64, 3)
    drawn = _draw(64, probability=1.0).randaugment
    assert drawn is not None
    flip = torch.arange(64) % 2 == 0
    whole = randaugment(images, drawn, flip, FILL)
    for row in range(64):
        alone = RandAugmentDraw(*(part[row : row + 1] for part in drawn.parts))
        assert torch.equal(randaugment(images[row : row + 1], alone, flip[row : row + 1], FILL)[0], whole[row])


def test_memory_layout_does_not_matter() -> None:
    images = _images(15, 3)
    drawn = RandAugmentDraw(torch.arange(15)[:, None], _magnitudes(15)[:, None], torch.ones(15, 1).bool())
    last = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    flip = torch.zeros(15).bool()
    assert torch.equal(randaugment(last, drawn, flip, FILL), randaugment(images, drawn, flip, FILL))


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 9), (9, 1)])
def test_the_smallest_images(size: tuple[int, int]) -> None:
    images = _images(15, 3, *size)
    drawn = RandAugmentDraw(torch.arange(15)[:, None], torch.full((15, 1), 7.0).double(), torch.zeros(15, 1).bool())
    made = randaugment(images, drawn, torch.zeros(15).bool(), FILL)
    for row, name in enumerate(OPERATIONS):
        expected = _chain(images[row], [(name, 7.0, False)], False, FILL)
        assert (made[row].int() - expected.int()).abs().max() <= (name == "rotate")


@pytest.mark.parametrize("cubic", [False, True])
def test_sampling_keeps_flat_areas_and_whole_steps(cubic: bool) -> None:
    images = _images(6, 3)[4:]
    fill = torch.tensor(FILL, dtype=torch.uint8)
    shift = torch.tensor([[[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]] * 2).double()
    moved = sample(images, shift, fill, cubic=cubic)
    assert torch.equal(moved[..., :-2], images[..., 2:])
    assert torch.equal(moved[..., -2:], fill[:, None, None].expand(2, 3, 23, 2))
    turned = torch.tensor([[[0.8, -0.6, 7.3], [0.6, 0.8, -4.1]]]).double()
    flat = sample(torch.full((1, 3, 23, 31), 100, dtype=torch.uint8), turned, torch.full((3,), 100).byte(), cubic=cubic)
    assert (flat == 100).all()


def test_what_is_outside_is_the_mean() -> None:
    assert fill_of([0.485, 0.456, 0.406]) == [124, 116, 104]
    assert fill_of([1.0]) == [255]


# --- draws


def _draw(count: int, **changes: Any) -> Parameters:
    recipe = Recipe.from_mapping({**CROP, "randaugment": {**RANDAUGMENT, **changes}, "erasing": ERASING})
    return draw(recipe, seed=0, epoch=0, indices=torch.arange(count), view=0, source=(23, 31))


def _operations(count: int, **changes: Any) -> RandAugmentDraw:
    drawn = _draw(count, **changes).randaugment
    assert drawn is not None
    return drawn


def test_operations_are_drawn_without_replacement_and_half_of_them_done() -> None:
    drawn = _operations(20000, probability=1.0)
    one, other = drawn.operation.unbind(1)
    assert (one != other).all()
    for place in (one, other):
        counts = torch.bincount(place, minlength=15)
        assert (counts - 20000 / 15).abs().max() < 5 * math.sqrt(20000 / 15)
    pairs = torch.bincount(15 * one + other, minlength=225).view(15, 15).double()
    expected = 20000 / 210
    assert (pairs[~torch.eye(15).bool()] - expected).abs().max() < 5 * math.sqrt(expected)
    half = _operations(20000)
    done = half.operation >= 0
    assert float(done.double().mean()) == pytest.approx(0.5, abs=0.01)
    assert float((done[:, 0] == done[:, 1]).double().mean()) == pytest.approx(0.5, abs=0.015)
    assert torch.equal(half.operation[done], drawn.operation[done])
    assert (half.operation[~done] == -1).all()


def test_magnitudes_are_normal_and_cut_and_go_both_ways() -> None:
    drawn = _operations(20000)
    size = drawn.magnitude.abs()
    assert float(size.mean()) == pytest.approx(9.0, abs=0.02)
    below = 2 * (size < 9.0).double().mean() - 1  # the upper tail is cut at 10, two deviations away
    assert abs(float(below)) < 0.015
    assert float(size[size < 9].sub(9).square().mean().sqrt()) == pytest.approx(0.5, abs=0.01)
    assert float((size == 10.0).double().mean()) == pytest.approx(0.0228, abs=0.004)
    assert float(size.max()) == 10.0
    signs, cubics = (drawn.magnitude > 0), drawn.cubic
    for coin in (signs, cubics):
        assert float(coin.double().mean()) == pytest.approx(0.5, abs=0.01)
    parts = [drawn.operation[:, 0] == -1, *signs.T, *cubics.T, *size.T, _draw(20000).flip]
    correlation = torch.corrcoef(torch.stack([part.double() for part in parts])).fill_diagonal_(0.0)
    assert correlation.abs().max() < 0.035


def test_a_list_without_an_operation_only_lacks_it() -> None:
    """Grey images leave some out: what is drawn of the others does not change where both were theirs."""
    few = [name for name in OPERATIONS if name not in {"invert", "colour"}]
    all_of_them, fewer = _operations(4000, probability=1.0), _operations(4000, probability=1.0, operations=few)
    left_out = torch.tensor([OPERATIONS.index("invert"), OPERATIONS.index("colour")])
    assert not torch.isin(fewer.operation, left_out).any()
    both = ~torch.isin(all_of_them.operation, left_out).any(dim=1)
    assert torch.equal(all_of_them.operation[both], fewer.operation[both])
    assert torch.equal(all_of_them.magnitude, fewer.magnitude)


def test_strong_parts_change_nothing_else_that_is_drawn() -> None:
    plain = draw(Recipe.from_mapping(CROP), seed=0, epoch=0, indices=torch.arange(9), view=0, source=(23, 31))
    strong = _draw(9)
    assert torch.equal(plain.box, strong.box)
    assert torch.equal(plain.flip, strong.flip)
    assert plain.randaugment is None
    assert plain.erasing is None


def test_golden_operations() -> None:
    drawn = _draw(40)
    assert drawn.randaugment is not None
    assert drawn.erasing is not None
    assert drawn.randaugment.operation[:6].tolist() == GOLDEN_OPERATIONS
    expected = torch.tensor(GOLDEN_MAGNITUDES, dtype=torch.float64)
    torch.testing.assert_close(drawn.randaugment.magnitude[:2].flatten(), expected, atol=1e-6, rtol=0)
    assert drawn.randaugment.cubic[:3].tolist() == GOLDEN_CUBIC
    assert drawn.erasing.box[drawn.erasing.box[:, 2] > 0][:3].tolist() == GOLDEN_ERASED


# --- erasing


def test_erasing_fills_boxes_with_unit_noise_and_leaves_the_rest() -> None:
    views = torch.rand(200, 3, 20, 20, generator=torch.Generator().manual_seed(0)) + 10
    boxes = torch.tensor([[2, 3, 10, 5], [0, 0, 0, 0], [0, 15, 20, 5], [19, 19, 1, 1]]).repeat(50, 1)
    made = erase(views.clone(), ErasingDraw(boxes, torch.arange(200)))
    noise = []
    for row, (top, left, height, width) in enumerate(boxes.tolist()):
        part = (slice(None), slice(top, top + height), slice(left, left + width))
        noise.append(made[row][part].flatten().clone())
        made[row][part] = views[row][part]
    assert torch.equal(made, views)
    values = torch.cat(noise).double()
    assert len(values) == 50 * 3 * (50 + 100 + 1)
    assert float(values.mean()) == pytest.approx(0.0, abs=0.03)
    assert float(values.std()) == pytest.approx(1.0, abs=0.02)
    assert float((values**4).mean()) == pytest.approx(3.0, abs=0.3)
    assert len(values.unique()) > 0.99 * len(values)


def test_noise_is_a_function_of_key_place_and_channel() -> None:
    made = erase(torch.zeros(2, 2, 6, 6), ErasingDraw(torch.tensor([[0, 0, 2, 3], [1, 1, 2, 2]]), torch.tensor([7, 7])))
    for row, column in ((0, 0), (1, 2)):
        for channel in (0, 1):
            expected = normal(torch.tensor(7), torch.tensor(row * 6 + column), torch.tensor(channel))
            assert float(made[0, channel, row, column]) == pytest.approx(float(expected), abs=1e-6)
    assert torch.equal(made[0, :, 1, 1:3], made[1, :, 1, 1:3])  # the box does not matter


def test_noise_in_front_of_the_normalisation_is_normalised() -> None:
    images, indices = _images(64, 3), torch.arange(64)
    made = {}
    for before in (False, True):
        erasing = {**ERASING, "probability": 0.5, "before_normalise": before}
        recipe = Recipe.from_mapping({**CROP, "erasing": erasing})
        drawn = draw(recipe, seed=0, epoch=0, indices=indices, view=0, source=(23, 31))
        made[before] = apply(images, drawn, recipe, MEAN, STD)
    plain = apply(images, drawn, Recipe.from_mapping(CROP), MEAN, STD)
    erased = made[False] != plain
    assert 0.02 < erased.double().mean() < 0.2
    assert torch.equal(erased, made[True] != plain)
    shifted = reference.normalize(made[False], MEAN, STD)
    torch.testing.assert_close(made[True][erased], shifted[erased])


# --- the whole recipe


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_strong_view_is_flip_operations_crop_normalise_erase(channels: int, interpolation: str) -> None:
    """The papers' order, by Pillow and torchvision: the crop of the flipped image lies where its mirror image says."""
    operations = [name for name in OPERATIONS if name != "rotate"]
    recipe = Recipe.from_mapping(
        {**CROP, "interpolation": interpolation, "erasing": ERASING}
        | {"randaugment": {**RANDAUGMENT, "operations": operations, "probability": 0.8}}
    )
    images, mean, std = _images(64, channels), MEAN[:channels], STD[:channels]
    drawn = draw(recipe, seed=0, epoch=0, indices=torch.arange(64), view=0, source=(23, 31))
    made = apply(images, drawn, recipe, mean, std)
    assert drawn.randaugment is not None
    assert drawn.erasing is not None
    for row in range(64):
        pil = _to_pil(images[row].flip(-1) if drawn.flip[row] else images[row])
        for code, magnitude, cubic in zip(*(part[row].tolist() for part in drawn.randaugment.parts), strict=True):
            pil = _pillow(pil, OPERATIONS[code], magnitude, cubic, fill_of(mean)) if code >= 0 else pil
        top, left, height, width = drawn.box[row].tolist()
        left = 31 - left - width if drawn.flip[row] else left
        view = reference.resized_crop(
            _from_pil(pil).float() / 255, top, left, height, width, [20, 20],
            InterpolationMode(interpolation), antialias=True,
        ).clamp(0, 1)  # fmt: skip
        expected = reference.normalize(view, mean, std)
        top, left, height, width = drawn.erasing.box[row].tolist()
        inside = torch.zeros(20, 20).bool()
        inside[top : top + height, left : left + width] = True
        torch.testing.assert_close(made[row][:, ~inside], expected[:, ~inside], atol=2e-5, rtol=0)
        assert not (made[row] == expected)[:, inside].any()
    assert 0 < (drawn.erasing.box[:, 2] > 0).sum() < 64


def test_views_do_not_depend_on_the_rest_of_the_batch() -> None:
    recipe = Recipe.from_mapping({**CROP, "randaugment": RANDAUGMENT, "erasing": ERASING, "interpolation": "bicubic"})
    images = _images(32, 3)

    def make(rows: Tensor) -> Tensor:
        drawn = draw(recipe, seed=1, epoch=2, indices=rows + 100, view=1, source=(23, 31))
        return apply(images[rows], drawn, recipe, MEAN, STD)

    whole = make(torch.arange(32))
    for rows in (torch.tensor([31, 4, 17]), torch.tensor([8])):
        assert torch.equal(make(rows), whole[rows])


@pytest.mark.gpu
def test_a_gpu_makes_the_same_strong_views() -> None:
    recipe = Recipe.from_mapping({**CROP, "randaugment": {**RANDAUGMENT, "probability": 1.0}, "erasing": ERASING})
    images, device = _images(64, 3), torch.device("cuda")
    drawn = draw(recipe, seed=1, epoch=2, indices=torch.arange(64), view=1, source=(23, 31))
    assert drawn.randaugment is not None
    on_cpu = randaugment(images, drawn.randaugment, drawn.flip, FILL)
    on_gpu = randaugment(images.to(device), drawn.randaugment.to(device), drawn.flip.to(device), FILL).cpu()
    assert (on_cpu != on_gpu).double().mean() < 1e-3
    expected = apply(images, drawn, recipe, MEAN, STD)
    made = apply(images.to(device), drawn.to(device), recipe, MEAN, STD).cpu()
    assert ((made - expected).abs() > 1e-3).double().mean() < 2e-3
