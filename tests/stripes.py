"""Images that a small network tells apart: six classes of stripes, for protocols that run images through a network."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from packing import pack

from polygrain.backbones.load import load_backbone
from polygrain.data.packed import open_packed
from polygrain.evaluate.given import Encoder

BACKBONE = {"name": "resnet", "widths": [8, 16], "strides": [1, 2], "blocks": [1, 1], "stem_stride": 1}
SHOWN = {"size": 16, "resize": None, "batch": 32, "workers": 0, "train": None, "validation": None, "test": None}


def striped_encoder(root: Path, labels: npt.NDArray[np.int64]) -> Encoder:
    """Six classes of stripes with their own period and direction, under noise."""
    noise = np.random.default_rng(0).normal(0, 20, (240, 1, 16, 16))
    row, column = np.indices((16, 16))
    waves = [np.sin(place * step) for place in (row, column) for step in (0.5, 1.2, 2.4)]
    images = np.stack([128 + 90 * waves[number % 6] for number in range(240)])[:, None] + noise
    splits = {"train": np.arange(150), "validation": np.arange(150, 180), "test": np.arange(180, 240)}
    data = open_packed(pack(root, images.clip(0, 255), labels, splits, classes=list("abcdef")))
    torch.manual_seed(0)
    network = load_backbone(**BACKBONE, channels=1).eval().requires_grad_(False)
    return Encoder(network, {"toy": data}, (data.mean, data.std), **SHOWN)
