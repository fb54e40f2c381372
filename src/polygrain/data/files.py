"""What a reader of image files returns: names, not pixels. Imports no torch: the job graph lists files through it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from polygrain.data.raw import Raw
from polygrain.data.tally import Left


@dataclass(frozen=True, kw_only=True)
class EncodedRaw(Raw):
    """A data set as image files; `images` is an empty stand-in of the right length, see `no_images`."""

    root: Path
    names: Sequence[str]
    """Path of each image's file below `root`, with forward slashes."""
    left: Left = field(default_factory=Counter)
    """What a reader saw and did not take."""
    duplicates: str = "allow"
    """`refuse` when no two splits may hold the same file."""


def no_images(count: int) -> np.ndarray:
    """What stands for the pixels of `count` images that are still in their files: no bytes, [count, 0, 0, 0]."""
    return np.empty((count, 0, 0, 0), dtype=np.uint8)
