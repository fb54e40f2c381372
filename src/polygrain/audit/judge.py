"""Judge each commit of a history: the verdict on every output, and the contradictions."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from polygrain.audit.locks import Snapshot
from polygrain.audit.repository import Commit, Repository
from polygrain.audit.sources import SHAPE, Layout, Sources
from polygrain.audit.verdicts import Audit, Cause, Change, Contradiction, Judged, Kind
from polygrain.provenance.attestations import FILE as ATTESTATIONS
from polygrain.provenance.attestations import attested, parse_attestations
from polygrain.provenance.checklock import without_mark
from polygrain.provenance.hashes import md5_bytes
from polygrain.provenance.lock import LOCK, Locked, changes

Proof = tuple[tuple[str, ...], str]
"""Sources in git that explain a change; else the reason why the change is impossible."""


def audit_history(repository: Repository, states: Sequence[Snapshot], layout: Layout) -> Audit:
    """Judge every commit of a history, in which parents come before children."""
    return Audit(states, tuple(_Auditor(repository, layout).entries(states)), repository.shallow)


class _Auditor:
    def __init__(self, repository: Repository, layout: Layout) -> None:
        self._repository, self._layout = repository, layout
        self._sources = Sources(repository, layout)
        self._copies: dict[str, str | None] = {}
        self._bytes: dict[tuple[str, str], tuple[str, Commit]] = {}
        """(output, inputs) -> the first MD5 and who recorded it, among the commits judged so far."""
        self._origins: dict[str, Mapping[str, Commit]] = {}
        """Commit -> stage -> the commit in its past that recorded the stage with these inputs."""

    def entries(self, states: Sequence[Snapshot]) -> Iterator[Judged]:
        seen: dict[str, Snapshot] = {}
        for state in states:
            parents = [seen[parent] for parent in state.commit.parents if parent in seen]
            seen[state.commit.id] = state
            copies = self._repository.find(state.commit.id, self._layout.published.as_posix())
            self._copies[state.commit.id] = copies
            now = (state.blob, copies)
            same = [parent for parent in parents if (parent.blob, self._copies[parent.commit.id]) == now]
            if parents and same[:1] == parents[:1]:
                self._origins[state.commit.id] = self._origins[parents[0].commit.id]
            else:
                entry = self._judge(state, parents, nothing_new=bool(same))
                if entry.changes or entry.findings or entry.unchanged or parents:
                    yield entry

    def _judge(self, state: Snapshot, parents: Sequence[Snapshot], *, nothing_new: bool) -> Judged:
        """Judge a commit; with `nothing_new` it took lock and copies of one parent as they were judged there."""
        changed = self._changed_inputs(state, parents)
        changes = list(self._changes(state, parents, changed))
        findings: list[Contradiction] = []
        if not nothing_new:
            broken = [Contradiction("broken", f"{LOCK} is {state.fault}")] if state.fault else self._published(state)
            findings += [*_refuted(changed), *_inconsistent(state, parents), *broken]
        unchanged = len(state.lock.makers) - sum(change.kind != "removed" for change in changes)
        return Judged(state, unchanged, tuple(changes), tuple(findings))

    def _changed_inputs(self, state: Snapshot, parents: Sequence[Snapshot]) -> dict[str, tuple[Cause, ...]]:
        """Stage -> what changed in its inputs, for stages whose inputs are those of no parent."""
        origins: dict[str, Commit] = {}
        changed: dict[str, tuple[Cause, ...]] = {}
        for stage in state.lock.stages.values():
            befores = [(parent, before) for parent in parents if (before := _counterpart(stage, parent)) is not None]
            holding = [pair for pair in befores if pair[1].inputs == stage.inputs]
            origins[stage.name] = self._origin(*holding[0]) if holding else state.commit
            if not holding:
                changed[stage.name] = tuple(self._causes(state, stage, befores[0] if befores else None))
        self._origins[state.commit.id] = origins
        return changed

    def _origin(self, parent: Snapshot, stage: Locked) -> Commit:
        """The commit that recorded a stage as `parent` holds it: from its sources came all of the stage's inputs."""
        return self._origins[parent.commit.id].get(stage.name, parent.commit)

    def _causes(self, state: Snapshot, stage: Locked, parent: tuple[Snapshot, Locked] | None) -> Iterator[Cause]:
        """What changed since `parent`; without one only what the commit's own files refute."""
        before = parent[1] if parent else Locked(stage.name, stage.command, {}, {}, {})
        if before.command != stage.command:
            yield Cause("command", "", "", before.command, stage.command, *self._proof(state, parent, SHAPE))
        for file in sorted({*before.parameters, *stage.parameters}):
            for key, was, now in changes(before.parameters.get(file, {}), stage.parameters.get(file, {})):
                proof = self._proof(state, parent, SHAPE if was is None or now is None else file)
                yield Cause("parameter", file, key, was, now, *proof)
        for path, was, now in changes(before.dependencies, stage.dependencies):
            proof = self._proof_of_file(state, parent, path, was, now)
            yield Cause("dependency", path, "", was, now, *proof, upstream=path in state.lock.makers)

    def _proof_of_file(
        self, state: Snapshot, parent: tuple[Snapshot, Locked] | None, path: str, was: str | None, now: str | None
    ) -> Proof:
        """The same for a dependency; where git holds the file itself, its bytes decide."""
        blob = self._repository.find(state.commit.id, path) if now else None
        if blob and md5_bytes(self._repository.read(blob)) != now:
            return (), f"{path} has other bytes in this commit"
        if was is None or now is None:
            return self._proof(state, parent, SHAPE)
        return ((), "") if blob or path in state.lock.makers else self._proof(state, parent, path)

    def _proof(self, state: Snapshot, parent: tuple[Snapshot, Locked] | None, file: str) -> Proof:
        """Which sources in git explain a change of an input file or of the stage's shape, or why it is impossible."""
        if parent is None:
            return (), ""
        origin = self._origin(*parent)
        sources = self._sources.differing(origin, state.commit, parent[1], file)
        if sources is None or sources:
            return tuple(sources or ()), ""
        where = " and ".join(self._layout.sources(file))
        return (), f"git holds the same {where} here as in {origin.short}, comments aside"

    def _changes(
        self, state: Snapshot, parents: Sequence[Snapshot], causes: Mapping[str, tuple[Cause, ...]]
    ) -> Iterator[Change]:
        for path, stage in sorted(state.lock.makers.items()):
            change = self._change(path, stage, state, parents, causes.get(stage.name, ()))
            self._bytes.setdefault((path, stage.inputs), (stage.outputs[path], state.commit))
            if change is not None:
                yield change
        for path, stage in sorted(parents[0].lock.makers.items()) if parents else ():
            if path not in state.lock.makers:
                yield Change(path, stage.name, "removed")

    def _change(
        self, path: str, stage: Locked, state: Snapshot, parents: Sequence[Snapshot], causes: tuple[Cause, ...]
    ) -> Change | None:
        befores = [(parent, parent.lock.makers.get(path)) for parent in parents]
        md5 = stage.outputs[path]
        for position, (parent, before) in enumerate(befores):
            if before is not None and (before.inputs, before.outputs[path]) == (stage.inputs, md5):
                return Change(path, stage.name, "merged", (), parent.commit, stage) if position else None
        first = self._bytes.get((path, stage.inputs))
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
        explained = any(not cause.refuted for cause in causes) and not contradicted
        kind: Kind = "explained" if explained else "unexplained"
        return Change(path, stage.name, kind, causes, None, stage)

    def _attested(self, state: Snapshot, before: Locked, stage: Locked) -> bool:
        """Whether a commit says that a stage gives the bytes of `before`, because only attested code is different."""
        then, now = before.dependencies, stage.dependencies
        blob = self._repository.find(state.commit.id, ATTESTATIONS.as_posix())
        if blob is None or (before.command, before.parameters) != (stage.command, stage.parameters):
            return False
        said = parse_attestations(self._repository.read(blob).decode(), f"{state.commit.short}:{ATTESTATIONS}")
        passed = attested(said, before.outputs, then, now)
        return bool(passed) and all(then.get(path) == now.get(path) for path in {*then, *now} - passed)

    def _published(self, state: Snapshot) -> Iterator[Contradiction]:
        """Copies in git that are not what the lock of the same commit says."""
        tree = self._copies[state.commit.id]
        for name, blob in sorted(self._repository.files(tree).items()):
            if self._layout.records & set(Path(name).parts):
                continue
            output = (self._layout.outputs / name).as_posix()
            copy = (self._layout.published / name).as_posix()
            stage = state.lock.makers.get(output)
            if stage is None:
                yield Contradiction("published", f"{copy}: {LOCK} lists no {output}")
            elif md5_bytes(without_mark(self._repository.read(blob))) != stage.outputs[output]:
                yield Contradiction("published", f"{copy}: is not the {output} of {LOCK}")


def _counterpart(stage: Locked, state: Snapshot) -> Locked | None:
    """The stage of another lock that made the same outputs, whatever it was called; else the one of that name."""
    makers = state.lock.makers
    return next((makers[path] for path in stage.outputs if path in makers), state.lock.stages.get(stage.name))


def _refuted(changed: Mapping[str, tuple[Cause, ...]]) -> Iterator[Contradiction]:
    stages: dict[tuple[str, str], set[str]] = {}
    for name, cause in ((name, cause) for name, causes in changed.items() for cause in causes):
        if cause.refuted:
            stages.setdefault((cause.file, cause.refuted), set()).add(name)
    for (file, reason), names in stages.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield Contradiction("refuted", f"{min(names)}{more}: {LOCK} says that {file} changed, but {reason}")


def _inconsistent(state: Snapshot, parents: Iterable[Snapshot]) -> Iterator[Contradiction]:
    """Stages that used another file than its maker made; said once, where it came up."""
    old = {found for parent in parents for found in _contradictions(parent)}
    for stage, path, used, made in (found for found in _contradictions(state) if found not in old):
        maker = state.lock.makers[path].name
        yield Contradiction("inconsistent", f"{stage}: used {path} {used[:8]}, but {maker} made {made[:8]}")


def _contradictions(state: Snapshot) -> Iterator[tuple[str, str, str, str]]:
    makers = state.lock.makers
    for stage in state.lock.stages.values():
        for path, used in stage.dependencies.items():
            if path in makers and makers[path].outputs[path] != used:
                yield stage.name, path, used, makers[path].outputs[path]
