"""Does each file of a chain of jobs agree with its record and with dvc.lock? Verified by hashing, file by file.

A *fault* cannot come from a correct build: a file differs from its own record, bytes changed although no dependency
did, a job used another file than the one in place. A *remark* has an ordinary cause: a build that is not recorded yet,
a configuration or code that changed since, a file that is not here.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from polygrain.audit.account import Account, Content, read_account
from polygrain.provenance.files import sha256_bytes
from polygrain.provenance.hashes import Hashes, md5_bytes
from polygrain.provenance.lock import LOCK, Lock, changes, read_lock
from polygrain.provenance.pipeline import parameters, parameters_of
from polygrain.provenance.stage import Stage, makers
from polygrain.provenance.yaml12 import parse_yaml


@dataclass(frozen=True)
class FileState:
    """A file of a job now, and as it was recorded; `None` is not known, or not here."""

    now: Content | None
    recorded: str | None
    """SHA-256 by the account of the job that made or read it."""
    locked: str | None
    """MD5 by `dvc.lock`."""

    @property
    def as_recorded(self) -> bool | None:
        """Whether the file in place is the recorded one; None when either is missing."""
        return self.now.sha256 == self.recorded if self.now and self.recorded else None

    @property
    def as_locked(self) -> bool | None:
        """Whether the file in place is that of `dvc.lock`; None when either is missing."""
        return self.now.md5 == self.locked if self.now and self.locked else None


@dataclass
class Evidence:
    """The files of `stages` under `root`; each is hashed once, when it is first asked for.

    `texts` holds contents of files as the checkout wants them now, whether or not they are written: the files that
    decide staleness. `published` are accounts from a published crate, used for stages without a record of their own.
    """

    stages: Sequence[Stage]
    root: Path
    texts: Mapping[Path, str] = field(default_factory=dict)
    published: Mapping[str, Account] = field(default_factory=dict)
    _accounts: dict[str, Account | None] = field(default_factory=dict)

    @cached_property
    def _hashes(self) -> Hashes:
        return Hashes(self.root)

    @cached_property
    def lock(self) -> Lock:
        """The lock."""
        return read_lock(self.root)

    @cached_property
    def makers(self) -> dict[Path, Stage]:
        """Which stage makes a file."""
        return makers(self.stages)

    def account(self, stage: Stage) -> Account | None:
        """The stage's own record, else its entry in a published crate."""
        if stage.name not in self._accounts:
            self._accounts[stage.name] = read_account(stage, self.root) or self.published.get(stage.name)
        return self._accounts[stage.name]

    def has_record(self, stage: Stage) -> bool:
        """Whether the account is the stage's own record, which describes the files in place."""
        account = self.account(stage)
        return account is not None and account.source == stage.sidecar

    def content(self, path: Path) -> Content | None:
        """The file's hashes now; None when it is not here."""
        if path in self.texts:
            text = self.texts[path].encode()
            return Content(sha256_bytes(text), md5_bytes(text), len(text))
        sha256, md5 = self._hashes.sha256(path), self._hashes.md5(path)
        return Content(sha256, md5, (self.root / path).stat().st_size) if sha256 and md5 else None

    def matching(self, published: Mapping[str, Account]) -> dict[str, Account]:
        """The published accounts that describe the files in place, or those of dvc.lock where none is here."""

        def agrees(path: Path, account: Account) -> bool:
            said, now = account.files.get(path.as_posix(), Content()), self.content(path)
            return said.sha256 == now.sha256 if now else said.md5 == self.lock.md5(path)

        return {
            stage.name: account
            for stage in self.stages
            if (account := published.get(stage.name)) and all(agrees(path, account) for path in stage.outputs)
        }

    def state(self, stage: Stage, path: Path) -> FileState:
        """A file that the stage read or made."""
        account, locked = self.account(stage), self.lock.find(stage)
        said = account.files.get(path.as_posix()) if account else None
        md5 = {**locked.dependencies, **locked.outputs}.get(path.as_posix()) if locked else None
        return FileState(self.content(path), said.sha256 if said else None, md5)

    def changes_since_lock(self, stage: Stage) -> list[str]:
        """What the stage depends on that is not as `dvc.lock` says: configuration keys and files in place."""
        states = {path: self.state(stage, path) for path in stage.dependencies}
        files = [str(path) for path, state in states.items() if state.now and state.as_locked is not True]
        locked, config = self.lock.find(stage), stage.config_path
        if locked is None or self.content(config) is None:
            return files
        text = self.texts.get(config)
        now = parameters(self.root / config) if text is None else parameters_of(parse_yaml(text), config)
        return [*(key for key, _, _ in changes(locked.parameters.get(config.as_posix(), {}), now)), *files]

    def faults(self, stage: Stage, inputs: Collection[Path] | None = None) -> list[str]:
        """What cannot come from a correct build; empty when all agrees. `inputs`: check only these."""
        return [*self._faults_of_outputs(stage), *self._faults_of_inputs(stage, inputs)]

    def _faults_of_outputs(self, stage: Stage) -> Iterator[str]:
        account, own = self.account(stage), self.has_record(stage)
        for path in stage.outputs:
            state = self.state(stage, path)
            published = account.files.get(path.as_posix()) if account and not own else None
            if own and state.as_recorded is False:
                yield f"{path}: changed since it was made: {stage.sidecar} says another SHA-256"
            elif published and state.locked and published.md5 != state.locked:
                yield f"{path}: the published crate and {LOCK} describe different builds"
            elif state.as_locked is False and not own:
                yield f"{path}: is not the file of {LOCK}, and no record says how it was made"
            elif state.as_locked is False and not self.changes_since_lock(stage):
                yield f"{path}: other bytes than in {LOCK}, made from the same configuration and the same files"

    def _faults_of_inputs(self, stage: Stage, inputs: Collection[Path] | None) -> Iterator[str]:
        for path in stage.dependencies:
            if path not in self.makers or (inputs is not None and path not in inputs):
                continue
            state, made = self.state(stage, path), self.lock.md5(path)
            if self.has_record(stage) and state.as_recorded is False:
                yield f"{stage.outputs[0]}: was made from another {path} than the one in place"
            if self.lock.find(stage) and made and state.locked != made:
                yield f"{stage.outputs[0]}: by {LOCK} made from another {path} than {self.makers[path].name} made"

    def remarks(self, stage: Stage) -> Iterator[str]:
        """Differences that have an ordinary cause."""
        moved = [
            path.as_posix()
            for path in (stage.config_path, *stage.dependencies)
            if path not in self.makers and self.has_record(stage) and self.state(stage, path).as_recorded is False
        ]
        if moved:
            yield f"changed since this was made: {', '.join(moved)}"
        if self.lock.find(stage) and (changed := self.changes_since_lock(stage)):
            another = any(self.state(stage, path).as_locked is False for path in stage.outputs)
            build = f"another build than in {LOCK}, which had" if another else f"{LOCK} holds a build with"
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            yield f"{build} another {', '.join(changed[:3])}{more}"
