"""Packed data sets made of arrays that a test gives."""

from pathlib import Path
from typing import Any

import numpy as np

from polygrain.provenance.files import canonical_json, sha256_file, write_text


def pack(folder: Path, images: np.ndarray, labels: np.ndarray, splits: dict[str, np.ndarray], **manifest: Any) -> Path:
    """Write images [N, C, S, S] and labels [N] as `data/NAME` would hold them; `manifest` adds to its keys."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", images.astype(np.uint8))
    np.save(folder / "labels.npy", labels)
    np.savez(folder / "splits.npz", **{name: np.sort(part).astype(np.int64) for name, part in splits.items()})
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
        for name in ("images.npy", "labels.npy", "splits.npz")
    }
    channels = images.shape[1]
    content = {
        "format": 1,
        "name": "made for a test",
        "mean": [0.5] * channels,
        "std": [0.3] * channels,
        "files": files,
    }
    write_text(folder / "manifest.json", canonical_json(content | manifest))
    return folder


def pack_noise(folder: Path) -> Path:
    """Noise in ten classes, as many grey images of 28 px as the smoke scale asks for."""
    images = np.random.default_rng(0).integers(0, 256, (640, 1, 28, 28))
    order = np.arange(640)
    return pack(folder, images, order % 10, {"train": order[:560], "validation": order[560:600], "test": order[600:]})
