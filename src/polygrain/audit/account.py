"""What is known of how a job ran: from its record, or from a published crate where the record is not here."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polygrain.provenance.errors import UserError
from polygrain.provenance.files import read_json
from polygrain.provenance.lock import changes
from polygrain.provenance.stage import Stage
from polygrain.provenance.yaml12 import dotted


@dataclass(frozen=True)
class Content:
    """A file's content; an empty hash is one that nobody took, no size one that nobody knows."""

    sha256: str = ""
    md5: str = ""
    size: int | None = None


@dataclass(frozen=True)
class Account:
    """One execution of a stage."""

    source: Path
    """The file that this was read from."""
    command: str
    started: str
    """ISO 8601 with a zone, as is `finished`."""
    finished: str
    wall_seconds: float
    cpu_seconds: float
    peak_memory_mib: float
    commit: str
    """Empty outside git."""
    dirty: bool
    """Whether files differed from the commit: then the code fingerprint tells what ran, the commit does not."""
    machine: Mapping[str, str]
    """Facts by dotted name: `processor`, `packages.torch`, `pins.OMP_NUM_THREADS`; absent ones are left out."""
    files: Mapping[str, Content]
    """Everything read and made, by path."""


def read_account(stage: Stage, root: Path) -> Account | None:
    """What the job's record says; None without one. Raises UserError when it is broken."""
    path = root / stage.sidecar
    if not path.is_file():
        return None
    said = read_json(path)
    try:
        return _account(stage.sidecar, said)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{stage.sidecar}: not a job's record ({error!r}); rebuild {stage.outputs[0]}") from error


def environment_differences(here: Account | None, published: Account | None) -> str:
    """How the environment of a job's own record differs from the published one's; empty where one is not known."""
    if here is None or published is None:
        return ""
    facts = [
        f"{name} ({was or 'not said'} recorded, {now or 'not said'} here)"
        for name, was, now in changes(published.machine, here.machine)
    ]
    return (
        f"; its environment differs in {', '.join(facts)}" if facts else "; its environment differs in no recorded fact"
    )


def _account(source: Path, said: Mapping[str, Any]) -> Account:
    git = said["git"] or {}
    return Account(
        source=source,
        command=" ".join([Path(said["command"][0]).name, *said["command"][1:]]),
        started=said["started"],
        finished=said["finished"],
        wall_seconds=round(float(said["wall_seconds"]), 3),
        cpu_seconds=round(float(said["cpu_seconds"]), 3),
        peak_memory_mib=round(float(said["peak_memory_mib"]), 1),
        commit=git.get("commit", ""),
        dirty=bool(git.get("dirty", False)),
        machine=dict(sorted(_facts(said["machine"]))),
        files={
            path: Content(sha256=entry["sha256"], size=entry["bytes"])
            for part in ("config", "inputs", "outputs")
            for path, entry in (said[part] or {}).items()
        },
    )


def _facts(machine: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Nested facts as texts by dotted name, without empty ones."""
    for name, value in dotted(machine):
        if isinstance(value, list) and value:
            yield name, ("; " if any(" " in str(item) for item in value) else " ").join(map(str, value))
        elif value not in (None, "", [], {}):
            yield name, str(value)
