"""What several files of this room train on."""

from pathlib import Path

import pytest
from packing import pack_noise


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in ten classes, as many images as the smoke scale asks for."""
    return pack_noise(tmp_path_factory.mktemp("noise"))
