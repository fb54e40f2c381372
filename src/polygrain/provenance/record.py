"""Putting a finished build on record: `dvc.yaml`, `dvc.lock` and the published copies, in one step.

Runs after Snakemake, never inside a job. Nothing re-runs after it: DVC replaces each output by a link or a
copy with a new modification time, and the old one is put back. Git is left alone: committing is up to people.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from polygrain.provenance.attestations import read_attestations, write_attestations
from polygrain.provenance.curves import publish_curves
from polygrain.provenance.dvccommand import complaint, dvc, settings
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import write_bytes, write_if_changed
from polygrain.provenance.git import git, inside
from polygrain.provenance.hashes import Hashes
from polygrain.provenance.judge import judge, objection_to_inputs, objection_to_outputs
from polygrain.provenance.lock import LOCK, is_configurations, read_lock, read_locks
from polygrain.provenance.pipeline import PIPELINE, dvc_yaml, recorded_entries
from polygrain.provenance.stage import Stage, makers
from polygrain.provenance.yaml12 import dump_yaml, load_yaml


def record(stages: Sequence[Stage], root: Path, published: Mapping[Path, Path], beside: Sequence[Stage] = ()) -> None:
    """Record the outputs of `stages` in DVC, copy the published files and write the curves of the trainings.

    `published` maps an output to its copy; all paths are relative to `root`. Every output must still be what
    its stage made, from inputs that are still in place. Afterwards `dvc.lock` lists exactly these stages, those
    `beside` them (other tables' that `objection_to_keeping` lets pass) as it did before, and the configurations of all.
    Raises UserError naming the file that does not fit, or what DVC said.
    """
    together = [*stages, *beside]
    pipeline, whole = dvc_yaml(stages, root), dvc_yaml(together, root)
    _check(stages, root)
    settings(root)
    before = _entries(root)
    write_if_changed(root / PIPELINE, pipeline)
    with _modification_times([root / path for stage in stages for path in (*stage.outputs, stage.config_path)]):
        # one commit over all stages: stage by stage it takes quadratic time
        done = dvc(root, "commit", "--force", str(PIPELINE))
        write_if_changed(root / PIPELINE, whole)
        if done.returncode:
            raise UserError(f"{root / LOCK}: dvc commit failed ({complaint(done)}); correct that and record again")
    _tidy_lock(together, root, before)
    for source, copy in sorted(published.items()):
        content = (root / source).read_bytes()
        if not ((root / copy).is_file() and (root / copy).read_bytes() == content):
            write_bytes(root / copy, content)
    publish_curves(stages, root, beside)


def objection_to_keeping(table: Sequence[Stage], recorded: Sequence[Stage], root: Path) -> str | None:
    """Say why the lock cannot hold a table as it does now beside stages that are recorded anew; None when it can.

    `table`: the table's stage and all behind it.
    """
    lock, hashes, made = read_lock(root), Hashes(root), makers(recorded)
    anew = {stage.name for stage in recorded}
    for stage in table:
        if stage.name in anew:
            continue
        locked = lock.stages.get(stage.name)
        named = [{path.as_posix() for path in paths} for paths in (stage.outputs, stage.dependencies)]
        if locked is None or [set(locked.outputs), set(locked.dependencies)] != named:
            return f"{stage.outputs[0]} is not on record as params and src describe it now"
        for path, md5 in locked.dependencies.items():
            if Path(path) in made and hashes.md5(Path(path)) != md5:
                return f"{stage.outputs[0]} was made from another {path}"
    return None


def _check(stages: Sequence[Stage], root: Path) -> None:
    """Refuse outputs that neither a stage's record nor the present lock ties to the inputs in place.

    What `restore` brought back has no record: records stay on the machine that ran the stage.
    """
    _check_links(stages, root)
    for stage in stages:
        for output in stage.outputs:
            if not (root / output).is_file():
                raise UserError(f"{output}: not built, or no plain file; run `snakemake --cores all {output}`")
    hashes = Hashes(root)
    findings = judge(stages, root, read_locks(root), hashes)
    doubtful = [stage for stage in stages if findings[stage.name].state not in ("in place", "built here")]
    for objection_to in (objection_to_outputs, objection_to_inputs):
        for stage in doubtful:
            if objection := objection_to(stage, root, hashes):
                raise UserError(objection)


def _check_links(stages: Sequence[Stage], root: Path) -> None:
    """Refuse folders that are links out of the repository, before DVC does so half-way."""
    if not inside(root):
        return
    top = Path(git(root, "rev-parse", "--show-toplevel").rstrip("\n")).resolve()
    for folder in sorted({folder for stage in stages for path in stage.outputs for folder in path.parents}):
        place = (root / folder).resolve()
        if (root / folder).is_symlink() and not place.is_relative_to(top):
            raise UserError(
                f"{folder}: a link to {place}, and DVC records nothing outside of the repository; move the folder back"
                f" (`rm {folder} && mv {place} {folder}`) and let DVC keep the bytes on the other disk instead:"
                " `dvc cache dir --local FOLDER-THERE && dvc config --local cache.type symlink`"
            )


def clear_attestations(stages: Sequence[Stage], root: Path) -> int:
    """Drop the attestations of outputs that the present code has made since; returns how many there were."""
    hashes, known = Hashes(root), read_attestations(root)
    attested = {path for item in known for path in item.outputs}
    made: set[str] = set()
    for stage in stages:
        names = {path.as_posix() for path in stage.outputs}
        if (
            names & attested
            and not objection_to_outputs(stage, root, hashes)
            and not objection_to_inputs(stage, root, hashes)
        ):
            made |= names
    kept = [item for item in known if not made & set(item.outputs)]
    if len(kept) < len(known):
        write_attestations(root, kept)
    return len(known) - len(kept)


@contextmanager
def _modification_times(paths: Sequence[Path]) -> Iterator[None]:
    """Put back the modification times of `paths` after the body, also when it raises.

    For a link into DVC's cache both times count to Snakemake: the link's own, and, for an input, also that of
    the cached file, which outputs with equal bytes share. So a cached file is set back to its oldest link.
    """
    before = {path: path.lstat().st_mtime_ns for path in paths}
    try:
        yield
    finally:
        for path, modified in before.items():
            if not os.path.lexists(path):
                continue
            os.utime(path, ns=(modified, modified), follow_symlinks=False)
            if path.is_symlink() and path.exists() and path.stat().st_mtime_ns > modified:
                with suppress(PermissionError):  # a cache shared with other people
                    os.utime(path, ns=(modified, modified))


def _entries(root: Path) -> dict[str, Any]:
    """What the lock holds, by name; nothing without one."""
    content = load_yaml(root / LOCK) if (root / LOCK).is_file() else None
    return dict((content or {}).get("stages") or {})


def _tidy_lock(stages: Sequence[Stage], root: Path, before: Mapping[str, Any]) -> None:
    """Drop stages that exist no longer, put back what DVC dropped, and sort, in DVC's own style.

    An entry that keeps configurations may be shared by tables: of each file that it lists the newest record counts.
    """
    content = load_yaml(root / LOCK)
    known = {**before, **content["stages"]}
    files = {
        file["path"]: file
        for entries in (before, content["stages"])
        for name, entry in entries.items()
        if is_configurations(name)
        for file in entry["outs"]
    }
    kept = {
        name: {**entry, "outs": [files[path] for path in entry["outs"] if path in files]}
        if is_configurations(name)
        else known[name]
        for name, entry in recorded_entries(stages)
    }
    write_if_changed(root / LOCK, dump_yaml({**content, "stages": kept}))
