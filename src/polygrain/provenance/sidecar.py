"""Records: how, when and where a job made its outputs. Written beside them, never hashed, never an input."""

import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polygrain.provenance.environment import PACKAGES, installed_versions
from polygrain.provenance.files import canonical_json, sha256_file, write_text
from polygrain.provenance.pins import PINS


@contextmanager
def recorded(
    sidecar: Path,
    *,
    stage: str,
    inputs: Sequence[Path],
    outputs: Sequence[Path],
    config: Path | None,
) -> Iterator[None]:
    """Run a job's body and write its record to `sidecar` once the body has succeeded.

    The record holds wall and CPU seconds, peak memory (MiB of the largest process so far), command, times,
    commit, machine, and the SHA-256 and bytes of inputs and outputs. Inputs and config are hashed before the
    body runs, outputs after it. An old record is removed first and none is written when the body raises, so a
    record never describes other bytes. Raises UserError when an input, or afterwards an output, is missing.
    """
    sidecar.unlink(missing_ok=True)
    record: dict[str, Any] = {
        "format": 1,
        "stage": stage,
        "command": list(sys.argv),
        "git": git_state(),
        "inputs": _describe(inputs),
        "config": _describe([config]) if config else None,
        "started": _now(),
    }
    wall, cpu = time.perf_counter(), _cpu_seconds()
    yield
    record["wall_seconds"] = time.perf_counter() - wall
    record["cpu_seconds"] = _cpu_seconds() - cpu
    record["peak_memory_mib"] = _peak_memory()
    record["finished"] = _now()
    record["machine"] = _machine()
    record["modules"] = sorted(name for name in sys.modules if name.partition(".")[0] == "polygrain")
    record["outputs"] = _describe(outputs)
    write_text(sidecar, canonical_json(record))


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """Return the commit of `folder` and whether files differ from it; None outside git or before a commit."""
    commit = _git("rev-parse", "HEAD", folder=folder)
    changes = _git("status", "--porcelain", folder=folder)
    if commit is None or changes is None:
        return None
    return {"commit": commit, "dirty": changes != ""}


def _git(*arguments: str, folder: Path | None) -> str | None:
    try:
        # without optional locks a status beside a running commit disturbs nobody
        command = ["git", "--no-optional-locks", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _describe(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    return {_name(path): {"sha256": sha256_file(path), "bytes": path.stat().st_size} for path in paths}


def _name(path: Path) -> str:
    """Name a file relative to the project root, where jobs run, when it lies inside."""
    here = Path.cwd()
    inside = path.is_absolute() and path.is_relative_to(here)
    return (path.relative_to(here) if inside else path).as_posix()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _usages() -> list[resource.struct_rusage]:
    return [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]


def _cpu_seconds() -> float:
    return sum(usage.ru_utime + usage.ru_stime for usage in _usages())


def _peak_memory() -> float:
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return max(usage.ru_maxrss for usage in _usages()) * unit / 2**20


def _machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "accelerator": _accelerator(),
        "threads": _threads(),
        "packages": installed_versions(PACKAGES),
        "pins": {name: os.environ.get(name) for name in PINS},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor())


def _threads() -> int | None:
    """Threads per operation; torch is asked only when the job has loaded it."""
    if "torch" in sys.modules:
        return int(sys.modules["torch"].get_num_threads())
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() else None


def _accelerator() -> str | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return str(torch.cuda.get_device_name())
