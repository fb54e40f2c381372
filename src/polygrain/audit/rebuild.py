"""One recorded file made again: the stage behind it in a scratch clone of HEAD, from the recorded upstream outputs.

Only that stage runs. What the stages before it made is linked in after its MD5 was compared with `dvc.lock`; what is
written at parse time (code hashes, configuration, environment) is written anew by HEAD's own code and compared with the
lock as well, so that an input hash edited by hand shows here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from polygrain.audit.repository import Repository
from polygrain.provenance.compare import Compared, compare_bytes
from polygrain.provenance.dvccommand import cache_folder, object_path
from polygrain.provenance.errors import UserError, nearest
from polygrain.provenance.files import read_json, sha256_file
from polygrain.provenance.hashes import md5_file
from polygrain.provenance.lock import LOCK, Lock, Locked, LockParser, changes
from polygrain.provenance.pipeline import parameters
from polygrain.provenance.scratch import run, scratch_clone
from polygrain.provenance.yaml12 import dotted


@dataclass(frozen=True)
class Rebuilt:
    """The outcome of a rebuild."""

    outputs: tuple[Compared, ...]
    inputs: tuple[str, ...]
    """Inputs that HEAD's code writes otherwise than the lock says."""
    circumstances: tuple[str, ...] | None
    """How machine and software differ from the recorded ones; None where no record of that build is here."""

    @property
    def verdict(self) -> Literal["identical", "within tolerance", "different"]:
        """Of all outputs; without numbers to compare, other bytes are different."""
        verdicts = {compared.verdict for compared in self.outputs}
        if verdicts == {"identical"}:
            return "identical"
        if "different" in verdicts or "within tolerance" not in verdicts:
            return "different"
        return "within tolerance"


def _locked_stage(root: Path, target: str) -> tuple[Lock, Locked]:
    """The lock at HEAD and the stage in it that makes `target`. Raises UserError when there is none."""
    with Repository(root) as repository:
        blob = repository.find("HEAD", str(LOCK))
        if blob is None:
            raise UserError(f"{LOCK}: not in the last commit; run `polygrain record TABLE` and commit the result")
        try:
            lock = LockParser().parse(repository.read(blob))
        except UserError as error:
            raise UserError(f"{LOCK} at HEAD is {error}; restore it from an earlier commit") from None
    path = Path(target).as_posix()
    if path not in lock.makers:
        raise UserError(f"{target}: no output of {LOCK} at HEAD{nearest(target, lock.makers)[:200]}")
    return lock, lock.makers[path]


def rebuild(root: Path, target: str) -> Rebuilt:
    """Make `target` again and compare it and its sibling outputs with what HEAD's lock says.

    Raises UserError when it is no recorded output, when an upstream output is neither here nor in the cache, and
    with the last line of the job's log when it fails.
    """
    lock, stage = _locked_stage(root, target)
    store = _Store(root)
    upstream: dict[str, Path] = {}
    for path in (path for path in stage.dependencies if path in lock.makers):
        source = store.find(path, stage.dependencies[path])
        if source is None:
            raise UserError(
                f"{path}: the bytes that {LOCK} names are neither in this tree nor in the cache;"
                f" fetch them with `dvc fetch`, or build them with `snakemake --cores all {path}`"
            )
        upstream[path] = source
    with scratch_clone(root, "HEAD") as clone:
        # the first run writes the inputs that belong to HEAD, so that the links are newer than they
        run(clone, "snakemake", "--dry-run", "--quiet", "--cores", "1", target)
        for path, source in upstream.items():
            (clone / path).parent.mkdir(parents=True, exist_ok=True)
            (clone / path).symlink_to(source.resolve())
        _build(clone, target)
        return Rebuilt(
            outputs=tuple(_compare(clone, path, md5, store) for path, md5 in stage.outputs.items()),
            inputs=tuple(_changed_inputs(clone, stage, upstream)),
            circumstances=_circumstances(root, clone, stage, store),
        )


class _Store:
    """Finds recorded bytes in the tree or in DVC's cache, and only the right ones."""

    def __init__(self, root: Path) -> None:
        self._root, self._cache = root, cache_folder(root)

    def find(self, path: str, md5: str) -> Path | None:
        """A file that holds the bytes of that MD5, hashed just now."""
        for place in (self._root / path, object_path(self._cache, md5)):
            if place.is_file() and md5_file(place) == md5:
                return place
        return None


def _build(clone: Path, target: str) -> None:
    try:
        run(clone, "snakemake", "--quiet", "--cores", "1", target)
    except UserError as error:
        logs = sorted(clone.glob("logs/**/*.log"), key=lambda path: path.stat().st_mtime)
        words = logs[-1].read_text(errors="replace", encoding="utf-8").strip().splitlines() if logs else []
        raise UserError(f"{target}: could not be rebuilt: {words[-1] if words else error}") from None


def _compare(clone: Path, path: str, md5: str, store: _Store) -> Compared:
    made = clone / path
    if md5_file(made) == md5:
        return Compared(path, "identical")
    recorded = store.find(path, md5)
    if recorded is None:
        return Compared(path, "other bytes", ("the recorded bytes are not here, so no numbers were compared",))
    return compare_bytes(path, recorded.read_bytes(), made.read_bytes())


def _changed_inputs(clone: Path, stage: Locked, upstream: Mapping[str, Path]) -> Iterator[str]:
    for path, md5 in stage.dependencies.items():
        if path not in upstream and (not (clone / path).is_file() or md5_file(clone / path) != md5):
            yield path
    for file, then in sorted(stage.parameters.items()):
        now = parameters(clone / file) if (clone / file).is_file() else {}
        for key, was, is_now in changes(then, now):
            yield f"{key} in {file}: recorded {was or 'absent'}, HEAD gives {is_now or 'absent'}"


def _circumstances(root: Path, clone: Path, stage: Locked, store: _Store) -> tuple[str, ...] | None:
    """Compare the machine part of the two records; None unless this tree has the record of the recorded bytes."""
    for path in sorted(clone.glob("records/**/*.json")):
        new = read_json(path)
        if set(new.get("outputs", ())) >= set(stage.outputs):
            record = root / path.relative_to(clone)
            old = read_json(record) if record.is_file() else {}
            if not _describes(old, stage, store):
                return None
            facts = (dict(dotted(said.get("machine", {}))) for said in (old, new))
            return tuple(f"{key.replace('.', ' ')}: recorded {was}, here {now}" for key, was, now in changes(*facts))
    return None


def _describes(record: Mapping[str, Any], stage: Locked, store: _Store) -> bool:
    """Whether a record is of the build that the lock holds."""
    said, kept = record.get("outputs", {}), {path: store.find(path, md5) for path, md5 in stage.outputs.items()}
    return all(place and path in said and sha256_file(place) == said[path]["sha256"] for path, place in kept.items())
