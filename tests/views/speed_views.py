"""Milliseconds to draw and make 128 views per recipe, one AVX2 thread: `python tests/views/speed_views.py`. No test."""

import sys
import time
from collections.abc import Callable
from typing import Any

from polygrain.provenance.pins import pin_process, pin_torch

pin_process(sys.argv)
pin_torch()

import torch  # noqa: E402

from polygrain.views.apply import apply  # noqa: E402
from polygrain.views.draw import draw  # noqa: E402
from polygrain.views.recipe import Recipe  # noqa: E402

CROP = {"size": 32, "scale": [0.2, 1.0], "ratio": [0.75, 1.3333333333333333], "flip": 0.5}
GREY = {"jitter": {"probability": 0.8, "brightness": 0.4, "contrast": 0.4}}
COLOUR = {"jitter": {**GREY["jitter"], "saturation": 0.2, "hue": 0.1}, "grey": 0.2}
BLUR = {"blur": {"probability": 0.5, "sigma": [0.1, 0.5]}}
CASES: list[tuple[str, int, int, dict[str, Any]]] = [
    ("grey 28 -> 32: crop, flip", 1, 28, CROP),
    ("grey 28 -> 32: crop, flip, jitter", 1, 28, CROP | GREY),
    ("grey 28 -> 32: crop, flip, jitter, blur", 1, 28, CROP | GREY | BLUR),
    ("grey 28 -> 16: crop, flip, jitter", 1, 28, CROP | GREY | {"size": 16, "scale": [0.08, 0.4]}),
    ("colour 32 -> 32: crop, flip, jitter, greyscale", 3, 32, CROP | COLOUR),
    ("colour 64 -> 64: crop, flip, jitter, greyscale, blur", 3, 64, CROP | COLOUR | BLUR | {"size": 64}),
]


def milliseconds(work: Callable[[], object]) -> float:
    """Best of 30 by the process's own clock, so that a busy machine does not count."""
    spent = []
    for _ in range(30):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return 1e3 * min(spent)


for label, channels, side, mapping in CASES:
    recipe = Recipe.from_mapping(mapping)
    images = torch.randint(0, 256, (128, channels, side, side), dtype=torch.uint8)

    def drawing(recipe: Recipe = recipe, side: int = side) -> Any:
        return draw(recipe, seed=0, epoch=0, indices=torch.arange(128), view=0, source=(side, side))

    drawn, mean = drawing(), [0.3] * channels
    applied = milliseconds(lambda d=drawn, i=images, r=recipe, m=mean: apply(i, d, r, m, m))  # type: ignore[misc]
    print(f"{label:54s} draw {milliseconds(drawing):5.2f} ms  apply {applied:5.2f} ms")
