"""Records: how, when and where a job made its outputs. Written beside them, never hashed, never an input."""

import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polygrain.provenance.files import canonical_json, sha256_bytes, sha256_file, write_text
from polygrain.provenance.git import git, tracked
from polygrain.provenance.machine import machine
from polygrain.provenance.stage import Stage


@contextmanager
def recorded(stage: Stage) -> Iterator[None]:
    """Run a stage's job in the project root and write its record to `stage.sidecar` once the body has succeeded.

    The record holds wall and CPU seconds, peak memory (MiB of the largest process so far), command, times, commit,
    machine, and the SHA-256 and bytes of inputs and outputs; apart from them those of configuration, code and
    environment, and the data hash over the manifests of the data sets behind the outputs (none when one of them is no
    longer here: a job may read features alone). What a job reads is hashed before the body runs, what it makes after
    it. An old record is removed first and none is written when the body raises, so a record never describes other
    bytes. Raises UserError when an input, or afterwards an output, is missing.

    Format 2 adds `code`, `environment` and `data` to format 1, and machine facts; what format 1 had is unchanged.
    """
    stage.sidecar.unlink(missing_ok=True)
    record: dict[str, Any] = {
        "format": 2,
        "stage": stage.task,
        "command": list(sys.argv),
        "git": git_state(),
        "inputs": _describe(stage.dependencies),
        "config": _describe([stage.config_path]),
        "code": _describe([stage.code_path]),
        "environment": _describe([stage.environment_path]),
        "started": _now(),
    }
    read = [path for path in stage.manifests if path not in stage.outputs]
    upstream = _describe([path for path in read if path.is_file()])
    wall, cpu = time.perf_counter(), _cpu_seconds()
    yield
    record["wall_seconds"] = time.perf_counter() - wall
    record["cpu_seconds"] = _cpu_seconds() - cpu
    record["peak_memory_mib"] = _peak_memory()
    record["finished"] = _now()
    record["machine"] = machine()
    record["modules"] = sorted(name for name in sys.modules if name.partition(".")[0] == "polygrain")
    record["outputs"] = _describe(stage.outputs)
    made = _describe([path for path in stage.manifests if path in stage.outputs])
    record["data"] = data_hash({**upstream, **made}) if len(upstream) == len(read) else None
    write_text(stage.sidecar, canonical_json(record))


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """The commit of `folder` and whether files differ from it; None where git does not hold it, or before a commit."""
    root = folder or Path.cwd()
    commit = git(root, "rev-parse", "--revs-only", "HEAD").strip() if tracked(root) else ""
    return {"commit": commit, "dirty": git(root, "status", "--porcelain") != ""} if commit else None


def commit_date(folder: Path) -> str | None:
    """The date of the last commit, ISO 8601; None as for `git_state`."""
    return git(folder, "show", "--no-patch", "--format=%cs", "HEAD").strip() if git_state(folder) else None


def data_hash(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The manifests and one SHA-256 over them, by the formula of a table's footer; None for a job without data."""
    if not manifests:
        return None
    hashes = {path: manifests[path]["sha256"] for path in manifests}
    return {"sha256": sha256_bytes(canonical_json(hashes).encode()), "manifests": dict(manifests)}


def _describe(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    return {path.as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size} for path in paths}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _usages() -> list[resource.struct_rusage]:
    return [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]


def _cpu_seconds() -> float:
    return sum(usage.ru_utime + usage.ru_stime for usage in _usages())


def _peak_memory() -> float:
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return max(usage.ru_maxrss for usage in _usages()) * unit / 2**20
