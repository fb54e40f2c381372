"""The locked environment: machine independent, and compared with what is installed."""

from importlib import metadata
from pathlib import Path

import pytest

from polygrain.provenance.code import modules_of
from polygrain.provenance.environment import PACKAGES, check_installed, environment, packages_of
from polygrain.provenance.errors import UserError
from polygrain.provenance.pins import PINS

SOURCE = Path(__file__).parents[2] / "src"
NUMBERS = ("numpy", "pillow", "safetensors", "timm", "torch", "torchvision")
LOCK = """\
numpy==2.4.6 \\
    --hash=sha256:00
Pillow==13.0.0 ; python_full_version < '3.15' \\
    --hash=sha256:00
    # via numpy==9.9
safetensors==0.8.0
timm==1.0.31
torch==2.15.0 ; python_full_version >= '3.12'
torch==2.14.0 ; python_full_version < '3.12'
torchvision==0.29.2
nvidia-cublas==13.4.1.3 ; sys_platform == 'linux'
"""


def test_reads_versions_and_pins(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(LOCK)
    found = environment(tmp_path / "lock", NUMBERS)
    assert found["packages"] == {
        "numpy": "2.4.6",
        "pillow": "13.0.0",
        "safetensors": "0.8.0",
        "timm": "1.0.31",
        "torch": "2.14.0 or 2.15.0",
        "torchvision": "0.29.2",
    }
    assert found["pins"] == PINS
    assert found["format"] == 1


def test_reads_the_lock_of_this_project() -> None:
    assert set(environment(SOURCE.parent / "requirements.lock", PACKAGES)["packages"]) == set(PACKAGES)


def test_a_lock_that_changed_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(LOCK)
    environment(tmp_path / "lock", ["numpy"])
    (tmp_path / "lock").write_text(LOCK.replace("numpy==2.4.6", "numpy==2.4.60"))
    assert environment(tmp_path / "lock", ["numpy"])["packages"] == {"numpy": "2.4.60"}


MODULES = {
    "": "",
    "/a": "import os, PIL.Image, numpylike\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import timm\n",
    "/b": "from polygrain import a\ndef f():\n    from torch.nn import functional\n",
    "/c": "import seaborn.objects as so\nfrom . import numpy\n",
    "/numpy": "import yaml, tqdm\n",
    "/d": "from sklearn.cluster import KMeans\n",
}


@pytest.mark.parametrize(
    ("entry", "packages"),
    [
        ("a", ["pillow"]),
        ("b", ["pillow", "torch"]),
        ("c", ["fonttools", "matplotlib", "pandas", "seaborn"]),
        ("d", ["scikit-learn", "scipy"]),
        ("numpy", []),
    ],
)
def test_the_packages_are_those_that_the_closure_imports(tmp_path: Path, entry: str, packages: list[str]) -> None:
    for name, text in MODULES.items():
        path = tmp_path / f"polygrain{name or '/__init__'}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert packages_of(modules_of([f"polygrain.{entry}"], tmp_path).values()) == packages


@pytest.mark.parametrize(
    ("entries", "packages"),
    [
        (["train.run", "methods.mugs", "backbones.timm"], {"numpy", "safetensors", "timm", "torch"}),
        (["train.run", "methods.simclr", "backbones.resnet"], {"numpy", "safetensors", "torch"}),
        (["evaluate.features", "backbones.torchvision"], {"numpy", "safetensors", "torch", "torchvision"}),
        (["evaluate.run", "evaluate.knn"], {"numpy", "safetensors"}),
        (["report.build"], {"numpy", "typst"}),
        (["report.ledger"], {"typst"}),
    ],
)
def test_a_stage_depends_on_no_package_that_it_does_not_use(entries: list[str], packages: set[str]) -> None:
    modules = modules_of([f"polygrain.{name}" for name in entries], SOURCE)
    assert set(packages_of(modules.values())) == packages


def test_a_missing_package_or_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(LOCK.replace("timm==1.0.31\n", ""))
    with pytest.raises(UserError, match=r"lock: pins no version of timm;"):
        environment(tmp_path / "lock", NUMBERS)
    with pytest.raises(UserError, match="nowhere: not found"):
        environment(tmp_path / "nowhere", NUMBERS)


def test_installed_versions_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"numpy": "2.4.6", "torch": "2.15.0+cpu"}

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    check_installed({"packages": {"numpy": "2.4.6", "torch": "2.14.0 or 2.15.0"}})
    with pytest.raises(UserError, match=r"numpy is locked at 2\.4\.7, installed is 2\.4\.6; timm .* is none"):
        check_installed({"packages": {"numpy": "2.4.7", "timm": "1.0"}})
    with pytest.raises(UserError, match=r"torch is locked at 2\.1, installed is 2\.15\.0\+cpu"):
        check_installed({"packages": {"torch": "2.1"}})
