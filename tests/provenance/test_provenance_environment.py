"""The locked environment: machine independent, and compared with what is installed."""

from importlib import metadata
from pathlib import Path

import pytest

from polygrain.provenance.environment import NUMBERS, check_installed, environment
from polygrain.provenance.errors import UserError
from polygrain.provenance.pins import PINS

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
    packages = environment(Path(__file__).parents[2] / "requirements.lock")["packages"]
    assert {"torch", "numpy", "typst", "matplotlib"} <= set(packages)
    assert not [name for name in packages if name.startswith("nvidia")]


def test_a_missing_package_or_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(LOCK.replace("timm==1.0.31\n", ""))
    with pytest.raises(UserError, match=r"lock: pins no version of timm;"):
        environment(tmp_path / "lock", NUMBERS)
    with pytest.raises(UserError, match="nowhere: not found"):
        environment(tmp_path / "nowhere")


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
