"""The versions and settings that can change a stage's output, as read from the lock file.

A stage's packages are those that the modules in its import closure import, as far as they can change a number or a
page. Their versions are read from `requirements.lock` and not from the interpreter, so that every machine writes the
same bytes. Left out on purpose: the CUDA libraries, because each release of torch fixes their versions; and packages
that only move files or parse texts.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from polygrain.provenance.code import Module
from polygrain.provenance.errors import UserError
from polygrain.provenance.pins import PINS

# An imported module -> the packages whose versions count then: its own, and those that it computes or draws with.
COUNTED = {
    "PIL": ("pillow",),
    "fontTools": ("fonttools",),
    "matplotlib": ("matplotlib", "fonttools"),
    "numpy": ("numpy",),
    "pandas": ("pandas",),
    "pycocotools": ("pycocotools",),
    "safetensors": ("safetensors",),
    "scipy": ("scipy",),
    "seaborn": ("seaborn", "matplotlib", "fonttools", "pandas"),
    "sklearn": ("scikit-learn", "scipy"),
    "timm": ("timm",),
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "typst": ("typst",),
}
PACKAGES = tuple(sorted({package for packages in COUNTED.values() for package in packages}))

_REQUIREMENT = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", re.MULTILINE)
_ALTERNATIVE = " or "


def packages_of(modules: Iterable[Module]) -> list[str]:
    """The packages whose versions decide what these modules compute or draw: what they import, as far as it counts."""
    imported = {name for module in modules for name in module.others}
    return sorted({package for name, packages in COUNTED.items() if name in imported for package in packages})


def environment(lock: Path, packages: Sequence[str]) -> dict[str, Any]:
    """Return `{"format": 1, "packages": {name: version}, "pins": PINS}`, the packages sorted.

    A package that the lock pins to several versions (one per Python) lists them all, joined by " or ".
    Raises UserError when the lock is missing or does not pin one of `packages`.
    """
    try:
        status = lock.stat()
    except FileNotFoundError:
        raise UserError(f"{lock}: not found; restore it with `git checkout {lock.name}`") from None
    locked = _locked(lock, status.st_mtime_ns, status.st_size)
    missing = [name for name in packages if name not in locked]
    if missing:
        raise UserError(f"{lock}: pins no version of {', '.join(missing)}; compile the lock again")
    return {"format": 1, "packages": {name: locked[name] for name in sorted(packages)}, "pins": dict(PINS)}


@cache
def _locked(lock: Path, mtime_ns: int, size: int) -> dict[str, str]:
    """Every package's version; read once per process and state of the file, given by the last two arguments."""
    versions: dict[str, set[str]] = {}
    for name, version in _REQUIREMENT.findall(lock.read_text(encoding="utf-8")):
        versions.setdefault(re.sub(r"[-_.]+", "-", name).lower(), set()).add(version)
    return {name: _ALTERNATIVE.join(sorted(found)) for name, found in versions.items()}


def check_installed(environment: dict[str, Any]) -> None:
    """Compare the running interpreter with an environment from the lock.

    A build label (`2.10.0+cpu`) does not count as a difference. Raises UserError naming each package with its
    locked and its installed version.
    """
    differences = []
    for name, locked in environment["packages"].items():
        found = installed_version(name)
        if found is None or found.partition("+")[0] not in locked.split(_ALTERNATIVE):
            differences.append(f"{name} is locked at {locked}, installed is {found or 'none'}")
    if differences:
        raise UserError(f"{'; '.join(differences)}: install the packages of requirements.lock")


def installed_version(name: str) -> str | None:
    """The version of a package in the running interpreter; None when it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
