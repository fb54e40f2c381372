"""What several files of this room train on."""

from pathlib import Path

import numpy as np
import pytest

from polygrain.data.packed import open_packed
from polygrain.provenance.files import canonical_json, sha256_file, write_text


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in ten classes, as many images as the smoke scale asks for."""
    folder = tmp_path_factory.mktemp("noise")
    generator = np.random.default_rng(0)
    np.save(folder / "images.npy", generator.integers(0, 256, (640, 1, 28, 28)).astype(np.uint8))
    np.save(folder / "labels.npy", np.arange(640) % 10)
    np.savez(folder / "splits.npz", train=np.arange(560), validation=np.arange(560, 600), test=np.arange(600, 640))
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
        for name in ("images.npy", "labels.npy", "splits.npz")
    }
    content = {"format": 1, "name": "noise", "mean": [0.5], "std": [0.3], "label_subsets": {}, "files": files}
    write_text(folder / "manifest.json", canonical_json(content))
    assert len(open_packed(folder).split("train")) == 560
    return folder
