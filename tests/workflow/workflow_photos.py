"""An image folder of generated photographs, and a data set that names it."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES, TRAIN, TEST = ("bars", "checks", "rings"), 250, 20
DATASET = (
    "# Patterns made for a test.\n# Cost: seconds.\n"
    "defaults:\n  - override /augmentation@_global_.augmentation: colour\n\n"
    "name: photos\nreader: image-folder\nformat: encoded\nfolder: photos\nclasses: null\n"
    "expected: {classes: null, train: null, test: null}\nstatistics: null\nlicence: none\nsource: null\n"
    "side: 32\nlocal_side: 16\nvalidation: 60\ntest: 0\nseed: 0\ncost: {minutes: 1, memory: 1000}\n"
)


def make_photos(root: Path) -> Path:
    """Write three classes of JPEG and PNG files of many sizes to `root`/photos, as any image folder has them."""
    generator = np.random.default_rng(0)
    for kind, name in enumerate(CLASSES):
        for part, count in (("train", TRAIN), ("val", TEST)):
            folder = root / "photos" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                suffix = "png" if number % 5 == 0 else "jpg"
                _picture(kind, generator).save(folder / f"{number:03d}.{suffix}", quality=90)
    return root


def add_photos(checkout: Path) -> None:
    """Name the folder in a checkout's params."""
    (checkout / "params/dataset/photos.yaml").write_text(DATASET)


def photos_table(protocol: str) -> str:
    """A table of one control on them: what params/table holds."""
    return (
        "# A control on patterns.\n# Cost: seconds.\n"
        "name: Photos\ntitle: Patterns\ncaption: Made for a test.\ndataset: photos\nseeds: [0, 1]\n"
        "groups: [{label: Controls, rows: [{label: Random, method: random}]}]\n"
        f"columns: [{{id: {protocol}, label: {protocol}, protocol: {protocol}, value: photos/top1}}]\n"
    )


def _picture(kind: int, generator: np.random.Generator) -> Image.Image:
    height, width = generator.integers(34, 60, 2)
    row, column = np.mgrid[:height, :width]
    radius = np.hypot(row - height / 2, column - width / 2)
    pattern = (column // 5 % 2, (row // 5 + column // 5) % 2, radius // 5 % 2)[kind]
    colours = generator.integers(0, 256, (2, 3))
    noise = generator.integers(-20, 20, (height, width, 3))
    return Image.fromarray(np.clip(colours[pattern.astype(int)] + noise, 0, 255).astype(np.uint8))
