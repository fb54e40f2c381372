"""The history of `dvc.lock`: every commit behind HEAD, and the content of the lock there.

Whether a commit changed the lock is decided by comparing its blob with that of each parent, so that nothing depends on
how git simplifies the history of a path, and a merge shows which side it took.
"""

from dataclasses import dataclass

from polygrain.audit.repository import Commit, Repository
from polygrain.provenance.errors import UserError
from polygrain.provenance.lock import LOCK, Lock, LockParser


@dataclass(frozen=True)
class Snapshot:
    """What a commit holds: its lock, or why the lock cannot be read.

    A broken lock has no content, so `lock` is then that of the first parent: the next commit is compared with it.
    """

    commit: Commit
    lock: Lock
    blob: str | None
    """Git's name for the lock's bytes; None where there is no such file."""
    fault: str = ""


def read_history(repository: Repository) -> list[Snapshot]:
    """Walk the history of `dvc.lock`; parents come before children. Raises UserError when no commit holds a lock."""
    parser = LockParser()
    states: dict[str, Snapshot] = {}
    for commit in repository.commits():
        before = next((states[parent] for parent in commit.parents if parent in states), None)
        states[commit.id] = _state(repository, commit, before, parser)
    if not any(state.blob for state in states.values()):
        raise UserError(f"no commit holds {LOCK}; build a table, run `polygrain record TABLE` and commit the result")
    return list(states.values())


def _state(repository: Repository, commit: Commit, before: Snapshot | None, parser: LockParser) -> Snapshot:
    blob = repository.find(commit.id, str(LOCK))
    if blob is None:
        return Snapshot(commit, Lock({}), None)
    if before is not None and blob == before.blob:
        return Snapshot(commit, before.lock, blob, before.fault)
    try:
        return Snapshot(commit, parser.parse(repository.read(blob)), blob)
    except UserError as error:
        return Snapshot(commit, before.lock if before else Lock({}), blob, str(error))
