"""Packed data and results have the same bytes under every release of Python: here those that can load our packages."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
PACKAGES = sysconfig.get_paths()["purelib"]
SCRIPT = """
import hashlib, json, sys, types
from pathlib import Path
import numpy as np
from polygrain.data.prepare import prepare
from polygrain.data.raw import Raw
from polygrain.evaluate.result import ACCURACY, Examples, Number, Result

folder, draw = Path(sys.argv[1]), np.random.default_rng(0)
images, labels = draw.integers(0, 256, (60, 1, 4, 4)).astype(np.uint8), np.arange(60) % 3
raw = Raw(images, labels, np.arange(48, 60), ("a", "b", "\\u00e9"), ("all",), (0, 0, 0), {"raw": "0"}, "none", "drawn")
reader = types.ModuleType("polygrain.data.readers.drawn")
reader.read = lambda: raw
sys.modules[reader.__name__] = reader
prepare({"name": "drawn", "reader": "drawn", "validation": 12, "test": 0, "seed": 0}, folder)
scores = draw.random(5)
Result({"drawn/score": Number(float(scores.mean()), ACCURACY)}, {"drawn": {"rate": 1 / 3}},
       {"drawn": Examples(np.arange(5), {"score": scores})}, "\\u00e9").save(folder, "own")
print(json.dumps({path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}))
"""
GOLDEN = {
    "images.npy": "9c4226f62ab43e4ebafe75dca615e3db",
    "labels.npy": "5483b03e5514bf17f3cd10c0899e9753",
    "manifest.json": "5494bc79dd70a9a7ad24ec9977e5bec0",
    "own.json": "429091c8df34e286b392df7a25f2f262",
    "own.npz": "acbb83af2b74c0c684ce86c34e0a2b0c",
    "splits.npz": "83673eccfd29df170d6653342791ec2f",
}


def pythons() -> list[str]:
    """This Python, and others of the same binary interface, which load the packages of this environment."""
    wanted = f"python3.{sys.version_info.minor}"
    found = [Path("/usr/bin", wanted), *Path.home().glob(f".pyenv/versions/*/bin/{wanted}")]
    own = Path(sys.executable).resolve()
    return [sys.executable, *sorted({str(path) for path in found if path.is_file() and path.resolve() != own})]


@pytest.mark.parametrize("python", pythons())
def test_packed_data_and_results_are_these_bytes(python: str, tmp_path: Path) -> None:
    variables = {**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{PACKAGES}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [python, "-c", SCRIPT, str(tmp_path)], env=variables, check=True, capture_output=True, encoding="utf-8"
    )
    assert json.loads(done.stdout) == GOLDEN
