"""Whether every change of a result in the history of `dvc.lock` is explained by a change of what it was made from.

For each commit and output one verdict:

- *unchanged*, *new*, *removed*; *merged*: a merge took the inputs and bytes of its other parent.
- *explained*: the bytes changed, and so did a dependency, a parameter or the command of the stage that makes them.
- *attested*: other code and the same bytes, because somebody ran both and compared (`polygrain attest`); bytes that
  changed with attested code are unexplained.
- *returned*: inputs and bytes are those of an earlier commit, as after a reverted edit.
- *unexplained*: the same inputs gave other bytes before, anywhere in the history; or every input that is said to have
  changed cannot have (see below). Either the build is not deterministic, or somebody changed a result.

and for each commit what contradicts itself:

- *inconsistent*: a stage used another file than the one that its maker made, in the same lock.
- *refuted*: the lock says that an input changed, but git shows that its sources did not; or an input that git itself
  holds has other bytes there.
- *published*: a copy in git that is not the recorded output.
- *broken*: a lock that nobody can read.

What this proves: no result was replaced alone, and no hash of code, configuration or environment was edited while the
sources stayed as they were. What it does not: that the sources in a commit really give the hashes in its lock (ask that
commit's own `check-lock`: `polygrain audit --checkout`), nor that the code really gives the bytes (rebuild them:
`polygrain audit --rebuild`). First bytes are taken at their word: of a result that was forged when it was first
recorded, only a rebuild can tell.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from polygrain.audit.locks import Stage, State
from polygrain.audit.repository import Commit, Repository
from polygrain.audit.sources import SHAPE, Layout, Sources
from polygrain.provenance.attestations import FILE as ATTESTATIONS
from polygrain.provenance.attestations import attested, parse_attestations
from polygrain.provenance.checklock import without_mark
from polygrain.provenance.dvcfiles import LOCK, md5_bytes

Kind = Literal["new", "removed", "merged", "attested", "explained", "returned", "unexplained"]
Proof = tuple[tuple[str, ...], str]
"""Sources that speak for a change, and what speaks against it."""


@dataclass(frozen=True)
class Cause:
    """One input of a stage that is not what it was."""

    kind: Literal["dependency", "parameter", "command"]
    file: str
    """Path of the dependency or of the configuration; empty for the command."""
    key: str = ""
    """Of a parameter."""
    before: str | None = None
    after: str | None = None
    sources: tuple[str, ...] = ()
    """Files in git that explain the change of a generated input."""
    refuted: str = ""
    """Why this cannot be."""
    upstream: bool = False
    """Whether the dependency is an output of another stage, so that the reason lies further up."""


@dataclass(frozen=True)
class Change:
    """What happened to one output in one commit."""

    output: str
    stage: str
    kind: Kind
    causes: tuple[Cause, ...] = ()
    earlier: Commit | None = None
    """The commit that had the same inputs before, or the parent that a merge took the output from."""
    maker: Stage | None = None
    """The stage as this commit records it; None when the output was removed."""


@dataclass(frozen=True)
class Finding:
    """A contradiction within one commit."""

    kind: Literal["inconsistent", "refuted", "published", "broken"]
    line: str


@dataclass(frozen=True)
class Entry:
    """The verdicts on one commit that changed the lock or a published copy."""

    state: State
    unchanged: int
    changes: tuple[Change, ...]
    findings: tuple[Finding, ...]

    def of(self, kind: Kind) -> list[Change]:
        """The changes of one kind."""
        return [change for change in self.changes if change.kind == kind]


@dataclass(frozen=True)
class Audit:
    """The verdicts on a history."""

    states: Sequence[State]
    entries: Sequence[Entry]
    shallow: bool

    @property
    def unexplained(self) -> list[tuple[Commit, Change]]:
        """Every change that nothing explains."""
        return [(entry.state.commit, change) for entry in self.entries for change in entry.of("unexplained")]

    @property
    def findings(self) -> list[tuple[Commit, Finding]]:
        """Every contradiction."""
        return [(entry.state.commit, finding) for entry in self.entries for finding in entry.findings]

    def held(self, change: Change) -> bool:
        """Whether the last commit still has the inputs and the bytes that a change brought in."""
        now, made = self.states[-1].lock.makers.get(change.output), change.maker
        if now is None or made is None:
            return False
        return (now.inputs, now.outputs[change.output]) == (made.inputs, made.outputs[change.output])

    @property
    def holds(self) -> bool:
        """Whether nothing is unexplained and nothing contradicts itself."""
        return not self.unexplained and not self.findings


@dataclass(frozen=True)
class _Known:
    """What has been seen by the time a commit is judged."""

    bytes: dict[tuple[str, str], tuple[str, Commit]] = field(default_factory=dict)
    """(output, inputs) -> the first MD5 and who recorded it."""
    origins: dict[str, Mapping[str, Commit]] = field(default_factory=dict)
    """Commit -> stage -> the commit in its past that recorded the stage with these inputs."""


def audit_history(repository: Repository, states: Sequence[State], layout: Layout) -> Audit:
    """Judge every commit of a history, in which parents come before children."""
    return Audit(states, tuple(_Auditor(repository, layout).entries(states)), repository.shallow)


class _Auditor:
    def __init__(self, repository: Repository, layout: Layout) -> None:
        self._repository, self._layout = repository, layout
        self._sources = Sources(repository, layout)
        self._known = _Known()
        self._copies: dict[str, str | None] = {}

    def entries(self, states: Sequence[State]) -> Iterator[Entry]:
        seen: dict[str, State] = {}
        for state in states:
            parents = [seen[parent] for parent in state.commit.parents if parent in seen]
            seen[state.commit.id] = state
            copies = self._repository.find(state.commit.id, self._layout.published.as_posix())
            self._copies[state.commit.id] = copies
            now = (state.blob, copies)
            same = [parent for parent in parents if (parent.blob, self._copies[parent.commit.id]) == now]
            if parents and same[:1] == parents[:1]:
                self._known.origins[state.commit.id] = self._known.origins[parents[0].commit.id]
            else:
                entry = self._judge(state, parents, nothing_new=bool(same))
                if entry.changes or entry.findings or entry.unchanged or parents:
                    yield entry

    def _judge(self, state: State, parents: Sequence[State], *, nothing_new: bool) -> Entry:
        """Judge a commit; with `nothing_new` it took lock and copies of one parent as they were judged there."""
        changed = self._changed_inputs(state, parents)
        changes = list(self._changes(state, parents, changed))
        findings: list[Finding] = []
        if not nothing_new:
            findings += _refuted(changed)
            findings += _inconsistent(state, parents)
            findings += [Finding("broken", f"{LOCK} is {state.fault}")] if state.fault else self._published(state)
        unchanged = len(state.lock.makers) - sum(change.kind != "removed" for change in changes)
        return Entry(state, unchanged, tuple(changes), tuple(findings))

    def _changed_inputs(self, state: State, parents: Sequence[State]) -> dict[str, tuple[Cause, ...]]:
        """Stage -> what changed in its inputs, for stages whose inputs are those of no parent."""
        origins: dict[str, Commit] = {}
        changed: dict[str, tuple[Cause, ...]] = {}
        for stage in state.lock.stages.values():
            befores = [(parent, before) for parent in parents if (before := _counterpart(stage, parent)) is not None]
            holding = [pair for pair in befores if pair[1].inputs == stage.inputs]
            origins[stage.name] = self._origin(*holding[0]) if holding else state.commit
            if not holding:
                changed[stage.name] = tuple(self._causes(state, stage, befores[0] if befores else None))
        self._known.origins[state.commit.id] = origins
        return changed

    def _origin(self, parent: State, stage: Stage) -> Commit:
        """The commit that recorded a stage as `parent` holds it: from its sources came all of the stage's inputs."""
        return self._known.origins[parent.commit.id].get(stage.name, parent.commit)

    def _causes(self, state: State, stage: Stage, parent: tuple[State, Stage] | None) -> Iterator[Cause]:
        """What changed since `parent`; without one only what the commit's own files refute."""
        before = parent[1] if parent else Stage(stage.name, stage.command, {}, {}, {})
        if before.command != stage.command:
            yield Cause("command", "", "", before.command, stage.command, *self._proof(state, parent, SHAPE))
        for key in sorted({*before.parameters, *stage.parameters}):
            was, now = before.parameters.get(key), stage.parameters.get(key)
            if was != now:
                proof = self._proof(state, parent, SHAPE if was is None or now is None else key[0])
                yield Cause("parameter", *key, was, now, *proof)
        for path in sorted({*before.dependencies, *stage.dependencies}):
            was, now = before.dependencies.get(path), stage.dependencies.get(path)
            if was != now:
                proof = self._proof_of_file(state, parent, path, was, now)
                yield Cause("dependency", path, "", was, now, *proof, upstream=path in state.lock.makers)

    def _proof_of_file(
        self, state: State, parent: tuple[State, Stage] | None, path: str, was: str | None, now: str | None
    ) -> Proof:
        """A file that git holds itself speaks first."""
        blob = self._repository.find(state.commit.id, path) if now else None
        if blob and md5_bytes(self._repository.read(blob)) != now:
            return (), f"{path} has other bytes in this commit"
        if was is None or now is None:
            return self._proof(state, parent, SHAPE)
        return ((), "") if blob or path in state.lock.makers else self._proof(state, parent, path)

    def _proof(self, state: State, parent: tuple[State, Stage] | None, file: str) -> Proof:
        """Which sources in git speak for a change of an input file or of the stage's shape, and what against it."""
        if parent is None:
            return (), ""
        origin = self._origin(*parent)
        sources = self._sources.differing(origin, state.commit, parent[1], file)
        if sources is None or sources:
            return tuple(sources or ()), ""
        where = " and ".join(self._layout.sources(file))
        return (), f"git holds the same {where} here as in {origin.short}, comments aside"

    def _changes(
        self, state: State, parents: Sequence[State], causes: Mapping[str, tuple[Cause, ...]]
    ) -> Iterator[Change]:
        for path, stage in sorted(state.lock.makers.items()):
            change = self._change(path, stage, state, parents, causes.get(stage.name, ()))
            self._known.bytes.setdefault((path, stage.inputs), (stage.outputs[path], state.commit))
            if change is not None:
                yield change
        for path, stage in sorted(parents[0].lock.makers.items()) if parents else ():
            if path not in state.lock.makers:
                yield Change(path, stage.name, "removed")

    def _change(
        self, path: str, stage: Stage, state: State, parents: Sequence[State], causes: tuple[Cause, ...]
    ) -> Change | None:
        befores = [(parent, parent.lock.makers.get(path)) for parent in parents]
        md5 = stage.outputs[path]
        for position, (parent, before) in enumerate(befores):
            if before is not None and (before.inputs, before.outputs[path]) == (stage.inputs, md5):
                return Change(path, stage.name, "merged", (), parent.commit, stage) if position else None
        first = self._known.bytes.get((path, stage.inputs))
        if first is not None and first[0] != md5:
            return Change(path, stage.name, "unexplained", causes, first[1], stage)
        olds = [before for _, before in befores if before is not None]
        if (same := next((before for before in olds if before.outputs[path] == md5), None)) is not None:
            attested = self._attested(state, same, stage)
            return Change(path, stage.name, "attested", causes, None, stage) if attested else None
        if first is not None:
            return Change(path, stage.name, "returned", causes, first[1], stage)
        if not olds:
            return Change(path, stage.name, "new", maker=stage)
        contradicted = any(self._attested(state, before, stage) for before in olds)
        speaks = any(not cause.refuted for cause in causes) and not contradicted
        kind: Kind = "explained" if speaks else "unexplained"
        return Change(path, stage.name, kind, causes, None, stage)

    def _attested(self, state: State, before: Stage, stage: Stage) -> bool:
        """Whether a commit says that a stage gives the bytes of `before`, because only attested code is different."""
        then, now = before.dependencies, stage.dependencies
        blob = self._repository.find(state.commit.id, ATTESTATIONS.as_posix())
        if blob is None or (before.command, before.parameters) != (stage.command, stage.parameters):
            return False
        said = parse_attestations(self._repository.read(blob).decode(), f"{state.commit.short}:{ATTESTATIONS}")
        passed = attested(said, before.outputs, then, now)
        return bool(passed) and all(then.get(path) == now.get(path) for path in {*then, *now} - passed)

    def _published(self, state: State) -> Iterator[Finding]:
        """Copies in git that are not what the lock of the same commit says."""
        tree = self._copies[state.commit.id]
        for name, blob in sorted(self._repository.files(tree).items()):
            if Path(name).name in self._layout.records:
                continue
            output = (self._layout.outputs / name).as_posix()
            copy = (self._layout.published / name).as_posix()
            stage = state.lock.makers.get(output)
            if stage is None:
                yield Finding("published", f"{copy}: {LOCK} knows no {output}")
            elif md5_bytes(without_mark(self._repository.read(blob))) != stage.outputs[output]:
                yield Finding("published", f"{copy}: is not the {output} of {LOCK}")


def _counterpart(stage: Stage, state: State) -> Stage | None:
    """The stage of another lock that made the same outputs, whatever it was called; else the one of that name."""
    makers = state.lock.makers
    return next((makers[path] for path in stage.outputs if path in makers), state.lock.stages.get(stage.name))


def _refuted(changed: Mapping[str, tuple[Cause, ...]]) -> Iterator[Finding]:
    stages: dict[tuple[str, str], list[str]] = {}
    for name, causes in changed.items():
        for cause in causes:
            if cause.refuted:
                stages.setdefault((cause.file, cause.refuted), []).append(name)
    for (file, reason), names in stages.items():
        unique = sorted(set(names))
        more = f" and {len(unique) - 1} more" if len(unique) > 1 else ""
        yield Finding("refuted", f"{unique[0]}{more}: {LOCK} says that {file} changed, but {reason}")


def _inconsistent(state: State, parents: Iterable[State]) -> Iterator[Finding]:
    """Stages that used another file than its maker made; said once, where it came up."""
    old = {pair for parent in parents for pair in _contradictions(parent)}
    for stage, path, used, made in _contradictions(state):
        if (stage, path, used, made) not in old:
            maker = state.lock.makers[path].name
            yield Finding("inconsistent", f"{stage}: used {path} {used[:8]}, but {maker} made {made[:8]}")


def _contradictions(state: State) -> Iterator[tuple[str, str, str, str]]:
    makers = state.lock.makers
    for stage in state.lock.stages.values():
        for path, used in stage.dependencies.items():
            if path in makers and makers[path].outputs[path] != used:
                yield stage.name, path, used, makers[path].outputs[path]
