"""The versions and settings that can change a printed number, as read from the lock file.

Read from `requirements.lock` and not from the interpreter, so that every machine writes the same bytes.
Left out on purpose: the CUDA libraries, because torch's own release fixes each of them; and what only
moves files or parses texts.
"""

import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from polygrain.provenance.errors import UserError
from polygrain.provenance.pins import PINS

# What training, features and evaluation compute with.
NUMBERS = ("numpy", "pillow", "safetensors", "timm", "torch", "torchvision")
# What turns results into tables and figures.
REPORT = ("fonttools", "matplotlib", "pandas", "seaborn", "typst")
PACKAGES = NUMBERS + REPORT

_REQUIREMENT = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", re.MULTILINE)
_ALTERNATIVE = " or "


def environment(lock: Path, packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Return `{"format": 1, "packages": {name: version}, "pins": PINS}` for the packages that touch numbers.

    A package that the lock pins to several versions (one per Python) lists them all, joined by " or ".
    Raises UserError when the lock is missing or does not pin one of `packages`.
    """
    try:
        text = lock.read_text()
    except FileNotFoundError:
        raise UserError(f"{lock}: not found; restore it with `git checkout {lock.name}`") from None
    locked: dict[str, set[str]] = {}
    for name, version in _REQUIREMENT.findall(text):
        locked.setdefault(re.sub(r"[-_.]+", "-", name).lower(), set()).add(version)
    missing = [name for name in packages if name not in locked]
    if missing:
        raise UserError(f"{lock}: pins no version of {', '.join(missing)}; compile the lock again")
    versions = {name: _ALTERNATIVE.join(sorted(locked[name])) for name in sorted(packages)}
    return {"format": 1, "packages": versions, "pins": dict(PINS)}


def installed_versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Versions of `packages` in the running interpreter; None for one that is not installed."""
    return {name: _installed(name) for name in packages}


def check_installed(environment: dict[str, Any]) -> None:
    """Compare the running interpreter with an environment from the lock.

    A build label (`2.10.0+cpu`) does not count as a difference. Raises UserError naming each package with its
    locked and its installed version.
    """
    differences = []
    for name, locked in environment["packages"].items():
        found = _installed(name)
        if found is None or found.partition("+")[0] not in locked.split(_ALTERNATIVE):
            differences.append(f"{name} is locked at {locked}, installed is {found or 'none'}")
    if differences:
        raise UserError(f"{'; '.join(differences)}: install the packages of requirements.lock")


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
