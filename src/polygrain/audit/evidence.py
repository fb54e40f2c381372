"""Does each file of a chain of jobs agree with its record and with dvc.lock? Verified by hashing, file by file.

A *fault* is what no correct build causes: a file that differs from its own record, bytes that changed while nothing
that they depend on did, a job that used another file than the one in place. A *remark* has an ordinary reason: a build
that is not recorded yet, a configuration or code that changed since, a file that is not here.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from polygrain.audit.account import Account, Content, read_account
from polygrain.provenance.dvcfiles import LOCK, Locked, md5_bytes, md5_file, parse_yaml, read_lock
from polygrain.provenance.files import sha256_bytes, sha256_file
from polygrain.provenance.pipeline import Job, by_job, inputs_of, parameters_of


@dataclass(frozen=True)
class FileState:
    """A file of a job now, and as it was recorded; `None` is not known, or not here."""

    path: Path
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
    """The files of `jobs` under `root`; each is hashed once, when it is first asked for.

    `texts` holds contents of files as the checkout wants them now, whether or not they are written: the files that
    decide staleness. `published` are accounts from a published crate, used for jobs without a record of their own.
    """

    jobs: Sequence[Job]
    root: Path
    texts: Mapping[Path, str] = field(default_factory=dict)
    published: Mapping[str, Account] = field(default_factory=dict)
    _contents: dict[Path, Content | None] = field(default_factory=dict)
    _accounts: dict[str, Account | None] = field(default_factory=dict)

    @cached_property
    def lock(self) -> dict[str, Locked]:
        """The stages of `dvc.lock`."""
        return by_job(read_lock(self.root), self.jobs)

    @cached_property
    def makers(self) -> dict[Path, Job]:
        """Which job makes a file."""
        return {path: job for job in self.jobs for path in job.outputs}

    def account(self, job: Job) -> Account | None:
        """The job's own record, else what a published crate tells of it."""
        if job.name not in self._accounts:
            self._accounts[job.name] = read_account(job, self.root) or self.published.get(job.name)
        return self._accounts[job.name]

    def has_record(self, job: Job) -> bool:
        """Whether the account is the job's own record, which speaks of the files in place."""
        account = self.account(job)
        return account is not None and account.source == job.sidecar

    def content(self, path: Path) -> Content | None:
        """The file's hashes now; None when it is not here."""
        if path not in self._contents:
            self._contents[path] = self._read(path)
        return self._contents[path]

    def _read(self, path: Path) -> Content | None:
        if path in self.texts:
            text = self.texts[path].encode()
            return Content(sha256_bytes(text), md5_bytes(text), len(text))
        place = self.root / path
        return Content(sha256_file(place), md5_file(place), place.stat().st_size) if place.is_file() else None

    def matching(self, published: Mapping[str, Account]) -> dict[str, Account]:
        """Those of some published accounts that tell of the files in place, or of dvc.lock's where none is here."""
        return {job.name: published[job.name] for job in self.jobs if self._tells_of(job, published.get(job.name))}

    def _tells_of(self, job: Job, account: Account | None) -> bool:
        return account is not None and all(self._agrees(job, path, account) for path in job.outputs)

    def _agrees(self, job: Job, path: Path, account: Account) -> bool:
        said, now, locked = account.files.get(path.as_posix()), self.content(path), self.lock.get(job.name)
        if said is None:
            return False
        if now is not None:
            return said.sha256 == now.sha256
        return locked is not None and said.md5 == locked.outputs.get(path.as_posix())

    def state(self, job: Job, path: Path) -> FileState:
        """A file that the job read or made."""
        account, locked = self.account(job), self.lock.get(job.name)
        said = account.files.get(path.as_posix()) if account else None
        md5 = {**locked.dependencies, **locked.outputs}.get(path.as_posix()) if locked else None
        return FileState(path, self.content(path), said.sha256 if said else None, md5)

    def ancestry(self, job: Job) -> list[Job]:
        """The job and everything behind it, nearest first, each once."""
        found, waiting = [job], [job]
        while waiting:
            for path in waiting.pop(0).dependencies:
                maker = self.makers.get(path)
                if maker is not None and maker not in found:
                    found.append(maker)
                    waiting.append(maker)
        return found

    def config_changes(self, job: Job) -> list[str] | None:
        """Keys whose values differ between `dvc.lock` and the checkout; None when either is unknown."""
        locked, text = self.lock.get(job.name), self.texts.get(job.config)
        if text is None and (self.root / job.config).is_file():
            text = (self.root / job.config).read_text()
        if locked is None or text is None:
            return None
        then = locked.parameters.get(job.config.as_posix(), {})
        now = parameters_of(parse_yaml(text, job.config), job.config)
        return [key for key in sorted({*then, *now}) if _typed(then, key) != _typed(now, key)]

    def changes_since_lock(self, job: Job) -> list[str]:
        """What the job depends on that is not as `dvc.lock` says: configuration keys and files in place."""
        states = [self.state(job, path) for path in inputs_of(job)]
        files = [str(state.path) for state in states if state.now and state.as_locked is not True]
        return [*(self.config_changes(job) or []), *files]

    def faults(self, job: Job, inputs: Collection[Path] | None = None) -> list[str]:
        """What no correct build causes; empty when all agrees. `inputs`: look at these alone."""
        return [*self._faults_of_outputs(job), *self._faults_of_inputs(job, inputs)]

    def _faults_of_outputs(self, job: Job) -> Iterator[str]:
        account = self.account(job)
        for path in job.outputs:
            state = self.state(job, path)
            if state.as_recorded is False and account is not None and self.has_record(job):
                yield f"{path}: changed since it was made: {account.source} says another SHA-256"
            elif self._published_otherwise(job, path):
                yield f"{path}: the published crate and {LOCK} speak of different builds"
            elif state.as_locked is False and not self.has_record(job):
                yield f"{path}: is not the file of {LOCK}, and no record tells how it was made"
            elif state.as_locked is False and not self.changes_since_lock(job):
                yield f"{path}: other bytes than in {LOCK}, made from the same configuration and the same files"

    def _published_otherwise(self, job: Job, path: Path) -> bool:
        """Whether a published account and the lock, committed together, name different bytes."""
        account, locked = self.account(job), self.state(job, path).locked
        if account is None or locked is None or self.has_record(job):
            return False
        said = account.files.get(path.as_posix())
        return said is not None and said.md5 != locked

    def _faults_of_inputs(self, job: Job, inputs: Collection[Path] | None) -> Iterator[str]:
        locked = self.lock.get(job.name)
        for path in (path for path in inputs_of(job) if path in self.makers and (inputs is None or path in inputs)):
            if self.has_record(job) and self.state(job, path).as_recorded is False:
                yield f"{job.outputs[0]}: was made from another {path} than the one in place"
            upstream = self.lock.get(self.makers[path].name)
            if locked and upstream:
                used, made = (side.get(path.as_posix()) for side in (locked.dependencies, upstream.outputs))
                if used != made:
                    yield f"{job.outputs[0]}: by {LOCK} made from another {path} than {self.makers[path].name} made"

    def remarks(self, job: Job) -> list[str]:
        """What differs for an ordinary reason."""
        return list(self._remarks(job))

    def _remarks(self, job: Job) -> Iterator[str]:
        moved = [
            path.as_posix()
            for path in (job.config, *inputs_of(job))
            if path not in self.makers and self.has_record(job) and self.state(job, path).as_recorded is False
        ]
        if moved:
            yield f"changed since this was made: {', '.join(moved)}"
        if job.name in self.lock and (changes := self.changes_since_lock(job)):
            another = any(self.state(job, path).as_locked is False for path in job.outputs)
            build = f"another build than in {LOCK}, which had" if another else f"{LOCK} holds a build with"
            yield f"{build} another {_few(changes)}"


def _typed(values: Mapping[str, object], key: str) -> str:
    """A value with its type visible, so that 1, 1.0 and "1" differ."""
    return repr(values[key]) if key in values else ""


def _few(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest
