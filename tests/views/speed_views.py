"""Milliseconds to draw and make 128 views per recipe, one AVX2 thread: `python tests/views/speed_views.py`. No test.

What is measured are the recipes of params/augmentation themselves, each as the second view of a batch whose first view
is `plain` and is subtracted; then the same for one photograph of 375 x 500 as a loader's worker meets it.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from polygrain.provenance.pins import pin_process, pin_torch

pin_process(sys.argv)
pin_torch()

import torch  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from polygrain.views.batch import draw_views, make_batch  # noqa: E402
from polygrain.views.crop import cut  # noqa: E402
from polygrain.views.draw import RandAugmentDraw  # noqa: E402
from polygrain.views.randaugment import randaugment  # noqa: E402
from polygrain.views.recipe import OPERATIONS, ViewRecipe, read_recipes  # noqa: E402

FOLDER = Path(__file__).parents[2] / "params/augmentation"
CASES = [("grey", 1, 28, 32, 16), ("colour", 3, 32, 32, 16), ("colour", 3, 64, 64, 32)]


def milliseconds(work: Callable[[], object], times: int = 30) -> float:
    """Best of many by the process's own clock, so that a busy machine does not count."""
    spent = []
    for _ in range(times):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return 1e3 * min(spent)


def recipes_of(name: str, size: int, local: int) -> dict[str, ViewRecipe]:
    sides = {"input_size": size, "dataset": {"local_side": local}}
    config = OmegaConf.create(sides | {"augmentation": OmegaConf.load(FOLDER / f"{name}.yaml")})
    mapping: Any = OmegaConf.to_container(config, resolve=True)
    return read_recipes(mapping["augmentation"])


def batches() -> None:
    indices = torch.arange(128)
    for name, channels, side, size, local in CASES:
        recipes = recipes_of(name, size, local)
        images, mean = torch.randint(0, 256, (128, channels, side, side), dtype=torch.uint8), [0.3] * channels

        def draw(*views: ViewRecipe, source: tuple[int, int] = (side, side)) -> object:
            return draw_views(views, indices, seed=0, epoch=0, source=source)

        def make(*views: ViewRecipe, images: Any = images, mean: list[float] = mean) -> object:
            return make_batch(images, indices, indices, views, seed=0, epoch=0, mean=mean, std=mean)

        alone = [milliseconds(partial(do, recipes["plain"])) for do in (draw, make)]
        for view, recipe in recipes.items():
            both = [milliseconds(partial(do, recipes["plain"], recipe)) for do in (draw, make)]
            drawn, made = (two - one for two, one in zip(both, alone, strict=True))
            print(f"{name} {side} -> {size}/{local}: {view:12s} draw {drawn:5.2f} ms  draw and make {made:6.2f} ms")


def photograph() -> None:
    image = torch.randint(0, 256, (3, 375, 500), dtype=torch.uint8)
    print(f"photograph: cut to 224      {milliseconds(lambda: cut(image, (20, 30, 300, 300), True, 224)):6.1f} ms")
    for code, name in enumerate(OPERATIONS):
        for cubic in (False, True) if code == 3 or code > 10 else (False,):
            numbers = torch.tensor([[code]]), torch.tensor([[7.3]], dtype=torch.float64), torch.tensor([[cubic]])
            work = partial(randaugment, image[None], RandAugmentDraw(*numbers), torch.tensor([False]), [1, 2, 3])
            spent = milliseconds(work, 5)
            print(f"photograph: {f'{name} bicubic' if cubic else name:20s} {spent:6.1f} ms")


batches()
photograph()
