"""The configuration of a small folder of images, `zoo`, and its listing."""

from typing import Any

from polygrain.data.files import EncodedRaw
from polygrain.data.readers import image_folder

CONFIG: dict[str, Any] = {
    "name": "zoo", "reader": "image-folder", "format": "encoded", "validation": 2, "test": 0, "seed": 0,
    "folder": None, "classes": None, "expected": None, "statistics": None, "licence": "CC0", "source": "drawn by hand",
}  # fmt: skip


def read(**changes: Any) -> EncodedRaw:
    """What the reader finds, with some values of the configuration changed."""
    return image_folder.read({**CONFIG, **changes})
