"""Existing recipes keep their bits: digests of views as they were when each recipe was first run.

A change here changes every run that sees augmented views; it is meant, or it is a mistake.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from polygrain.nn.random import hash64
from polygrain.views.batch import draw_views, finish_batch, make_batch
from polygrain.views.crop import cut
from polygrain.views.recipe import Recipe

CROP: dict[str, Any] = {"size": 32, "scale": [0.2, 1.0], "ratio": [0.75, 1.3333333333333333], "flip": 0.5}
JITTER = {"probability": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
GREY_JITTER = {**JITTER, "saturation": 0.0, "hue": 0.0}
SOLARISE = {"solarise": {"probability": 0.2, "threshold": 0.5}}
LOCAL = {"size": 16, "scale": [0.08, 0.4]}
BLUR = {"blur": {"probability": 0.5, "sigma": [0.1, 2.0]}}

RECIPES: dict[str, tuple[int, dict[str, Any]]] = {
    "grey global": (1, CROP | {"jitter": GREY_JITTER}),
    "grey global_b": (1, CROP | {"jitter": GREY_JITTER} | SOLARISE),
    "grey local": (1, CROP | {"jitter": GREY_JITTER} | LOCAL),
    "grey weak": (1, CROP),
    "colour global": (3, CROP | {"jitter": JITTER, "grey": 0.2}),
    "colour global_b": (3, CROP | {"jitter": {**JITTER, "saturation": 0.2}, "grey": 0.2} | SOLARISE),
    "colour local": (3, CROP | {"jitter": JITTER, "grey": 0.2} | LOCAL),
    "imagenet global": (3, CROP | {"jitter": JITTER, "grey": 0.2} | BLUR),
}
PIXELS = {
    "grey global": "223f1950b01245bc",
    "grey global_b": "65676be24251149e",
    "grey local": "d9b8eced4dbbc085",
    "grey weak": "0b75e6644406c284",
    "colour global": "b07d6cbd41bec657",
    "colour global_b": "331d491e3eb50738",
    "colour local": "138ed3999bb76346",
    "imagenet global": "d66c9e62c9b39b8a",
}
CUT = {
    "colour global": "eee77d38fc4bee28",
    "colour global_b": "bfd945e84b85509c",
    "colour local": "d4ee0c1cd8fda83a",
    "imagenet global": "762acbbf1c54cd42",
}


def _images(count: int, channels: int, height: int, width: int) -> Tensor:
    place = torch.arange(count * channels * height * width)
    noise = (hash64("images", channels, place) & 255).view(count, channels, height, width)
    ramp = torch.arange(width)[None, None, None] * 255 // width
    return ((noise + 3 * ramp) // 4).to(torch.uint8)


def _digest(tensors: Sequence[Tensor]) -> str:
    mixer = hashlib.sha256()
    for tensor in tensors:
        mixer.update(tensor.contiguous().numpy().tobytes())
    return mixer.hexdigest()[:16]


@pytest.mark.parametrize("name", list(RECIPES))
def test_views_of_pixels(name: str) -> None:
    channels, mapping = RECIPES[name]
    images, indices = _images(40, channels, 28, 28), torch.arange(40) * 7 + 3
    recipe = Recipe.from_mapping(mapping)
    mean, std = [0.25, 0.5, 0.75][:channels], [0.5, 0.25, 0.125][:channels]
    batch = make_batch(images, indices % 10, indices, [recipe, recipe], seed=3, epoch=2, mean=mean, std=std)
    found = _digest([*batch.views, *(part for one in batch.geometry for part in (one.box, one.flip))])
    assert found == PIXELS[name]


@pytest.mark.parametrize("name", [name for name, (channels, _) in RECIPES.items() if channels == 3])
def test_views_of_encoded_images(name: str) -> None:
    recipe = Recipe.from_mapping(RECIPES[name][1])
    sizes = [(40, 61), (28, 28), (90, 33), (100, 12)]
    images = [_images(1, 3, height, width)[0] for height, width in sizes]
    indices, source = torch.tensor([5, 9, 1, 800]), torch.tensor(sizes)
    drawn = draw_views([recipe, recipe], indices, seed=3, epoch=2, source=source)
    cuts = [
        torch.stack([cut(*one, recipe.size) for one in zip(images, d.box.tolist(), d.flip.tolist(), strict=True)])
        for d in drawn
    ]
    batch = finish_batch(
        cuts, drawn, indices, indices, [recipe] * 2, source=source, mean=[0.25, 0.5, 0.75], std=[0.5, 0.25, 0.125]
    )
    assert _digest([*batch.views, *(one.box for one in batch.geometry)]) == CUT[name]
