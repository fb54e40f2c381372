"""A folder of photographs through the whole workflow: packed as shards, trained on in colour, judged with grey sets."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

RUN = "runs/smoke/photos/smog/base/seed0"
CLASSES, TRAIN, TEST = ("bars", "checks", "rings"), 250, 20

pytestmark = pytest.mark.workflow


def picture(kind: int, generator: np.random.Generator) -> Image.Image:
    height, width = generator.integers(34, 60, 2)
    row, column = np.mgrid[:height, :width]
    radius = np.hypot(row - height / 2, column - width / 2)
    pattern = (column // 5 % 2, (row // 5 + column // 5) % 2, radius // 5 % 2)[kind]
    colours = generator.integers(0, 256, (2, 3))
    noise = generator.integers(-20, 20, (height, width, 3))
    return Image.fromarray(np.clip(colours[pattern.astype(int)] + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of JPEG files of many sizes, as any image folder has them."""
    root, generator = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    for kind, name in enumerate(CLASSES):
        for part, count in (("train", TRAIN), ("val", TEST)):
            folder = root / "photos" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                picture(kind, generator).save(folder / f"{number:03d}.jpg", quality=90)
    return root


def test_a_folder_of_photographs_goes_from_files_to_results(copy_of_built, photos: Path) -> None:
    checkout = copy_of_built()
    (checkout.root / "params/dataset/photos.yaml").write_text(
        "# Patterns made for a test.\n# Cost: seconds.\n"
        "defaults:\n  - override /augmentation@_global_.augmentation: colour\n\n"
        "name: photos\nreader: image-folder\nformat: encoded\nfolder: photos\nclasses: null\n"
        "expected: {classes: null, train: null, test: null}\nstatistics: null\nlicence: none\nsource: null\n"
        "side: 32\nlocal_side: 16\nvalidation: 60\ntest: 0\nseed: 0\ncost: {minutes: 1, memory: 1000}\n"
    )
    target = f"{RUN}/results/linear.json"
    checkout.run("snakemake", "--cores", "2", "--config", f"data={photos}", "--", target)
    manifest = json.loads((checkout.root / "data/photos/manifest.json").read_text())
    assert manifest["splits"] == {"train": 3 * TRAIN - 60, "validation": 60, "test": 3 * TEST}
    assert (checkout.root / "data/photos/shards/shard-00000.bin").is_file()
    values = json.loads((checkout.root / target).read_text())["values"]
    assert {"photos/top1", "animal-mnist/top1", "mnist-5k/top1"} <= set(values)
    with np.load(checkout.root / RUN / "results/linear.npz") as predictions:
        assert np.bincount(predictions["photos.label"]).tolist() == [TEST] * 3
        right = predictions["photos.predicted"] == predictions["photos.label"]
    assert right.mean() == pytest.approx(values["photos/top1"])
    done = checkout.run("snakemake", "-n", "--config", f"data={photos}", "--", target)
    assert "Nothing to be done" in done.stdout + done.stderr
