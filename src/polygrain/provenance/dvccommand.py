"""DVC by its command line, its only stable interface."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from polygrain.provenance.errors import UserError
from polygrain.provenance.git import inside


def dvc(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run one DVC command. On a terminal its progress bars and warnings are shown as they come."""
    errors = None if sys.stderr.isatty() else subprocess.PIPE
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=root, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8", errors="replace")


def complaint(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the line in which DVC says why it failed."""
    said = [line.strip() for line in ((done.stderr or "") + done.stdout).splitlines() if line.strip()]
    return next((line for line in said if line.startswith("ERROR")), said[-1] if said else "its message is above")


def settings(root: Path) -> Mapping[str, str]:
    """Read DVC's settings from all its files: `core.remote`, `cache.type` and so on.

    Raises UserError when DVC cannot read them, where DVC expects git and there is none, and for hard links: a
    hard-linked output is read-only, so Snakemake cannot replace it, and it shares its times with the cache and with
    every other checkout that uses this cache, so file times cannot be ordered.
    """
    done = dvc(root, "config", "--list")
    if done.returncode:
        raise UserError(f"{root / '.dvc/config'}: dvc config failed ({complaint(done)}); correct that file")
    values = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    if not inside(root) and values.get("core.no_scm") != "true":
        raise UserError(
            f"{root}: no git repository (an archive of the project?), and DVC must be told so: run"
            " `dvc config --local core.no_scm true`, then the same command again"
        )
    if "hardlink" in values.get("cache.type", "").split(","):
        raise UserError(
            f"cache.type {values['cache.type']}: outputs that are hard links cannot be replaced or ordered in time;"
            " run `dvc config --local cache.type symlink` (as small), or reflink,copy"
        )
    return values


def cache_folder(root: Path) -> Path:
    """Where this project's DVC keeps its objects. Raises UserError with DVC's reason when it does not say."""
    done = dvc(root, "cache", "dir")
    if done.returncode:
        raise UserError(f"{root}: dvc cache dir failed ({complaint(done)}); correct DVC's settings")
    return root / done.stdout.strip()


def object_path(cache: Path, md5: str) -> Path:
    """Where DVC keeps the object of that MD5."""
    return cache / "files" / "md5" / md5[:2] / md5[2:]
