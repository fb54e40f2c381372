"""`polygrain audit`: whether every change of a recorded result is explained, through the whole history."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import get_args

from tqdm import tqdm

from polygrain.audit.cache import State, examine, objects_of
from polygrain.audit.crate import NAME as CRATE
from polygrain.audit.explain import closing_lines, entry_lines
from polygrain.audit.judge import audit_history
from polygrain.audit.locks import Snapshot, read_history
from polygrain.audit.rebuild import Rebuilt
from polygrain.audit.rebuild import rebuild as make_again
from polygrain.audit.repository import Repository
from polygrain.audit.sources import SHAPE, Layout
from polygrain.config.compose import Config
from polygrain.config.project import Project
from polygrain.config.published import PUBLISHED
from polygrain.config.stages import KINDS
from polygrain.provenance.attestations import FILE as ATTESTATIONS
from polygrain.provenance.compare import TOLERANCE
from polygrain.provenance.curves import CURVES
from polygrain.provenance.dvccommand import cache_folder, object_path
from polygrain.provenance.errors import UserError
from polygrain.provenance.git import git
from polygrain.provenance.lock import Locked
from polygrain.provenance.scratch import run, scratch_clone, switch


def sources_of(path: str) -> tuple[str, ...]:
    """What in git decides a file that is written when the job graph is built; see `config/inputs.py`."""
    file = PurePosixPath(path)
    if path == SHAPE:
        return ("params", "src")
    if "environment" in file.with_suffix("").parts:
        return ("requirements.lock", "src")
    if "code" in file.parts[:-1] and file.suffix == ".json":
        return ("src",)
    if "config" in file.parts[:-1] and file.suffix == ".yaml":
        # a table's configuration names the hashes of its runs
        return (
            ("params", "requirements.lock", "src") if file.parts[0] == "reports" else ("params", "src/polygrain/config")
        )
    return ()


def entries_of(stage: Locked, path: str) -> Sequence[str]:
    """The modules whose import closure decides such a file, as far as the recorded configuration names them."""
    file = PurePosixPath(path)
    if file.name == "environment.json":  # one for all runs, before each stage had its own
        return ("polygrain.provenance.environment",)
    if not {"code", "environment"} & set(file.parts[:-1]):
        return ()
    if file.parts[0] == "reports":
        return ("polygrain.report.ledger" if file.stem == "ledger" else "polygrain.report.build",)
    config = _configuration(stage)
    if file.stem == "evaluate":  # one job for all protocols, before each had its own
        return ("polygrain.evaluate.run", *(f"polygrain.evaluate.{name}" for name in config["protocols"]))
    kind = KINDS[file.stem if file.stem in KINDS else "evaluate"]
    try:
        return kind.shape(Path(*file.parts[: 2 if file.parts[0] == "data" else 6]), file.stem, config).entries
    except (KeyError, TypeError, UserError):  # an older shape of the configuration
        return ()


def _configuration(stage: Locked) -> Config:
    """A stage's configuration from the dotted keys of the lock."""
    config: Config = {}
    for key, value in (item for values in stage.parameters.values() for item in values.items()):
        *folders, name = key.split(".")
        inner = config
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[name] = json.loads(value)
    return config


LAYOUT = Layout(
    published=Path(PUBLISHED),
    outputs=Path("reports"),
    sources=sources_of,
    entries=entries_of,
    # trials and further tables are published alone: the runs behind them would take dvc.lock over 1 MiB
    records=frozenset({CRATE, ATTESTATIONS.name, CURVES.name, "determinism.md", "tune", "beside"}),
)


def audit(project: Project, *, checkout: bool, cache: bool, rebuild: str | None) -> int:
    """Audit the history, or with `cache` the stored objects, or one recorded file; 1 when something is wrong."""
    if cache:
        return audit_cache(project)
    return audit_target(project, rebuild) if rebuild else audit_project(project, checkout=checkout)


def audit_project(project: Project, *, checkout: bool) -> int:
    """Print the verdicts on every commit; 0 when every change is explained and nothing contradicts itself, else 1.

    With `checkout`, also run each such commit's own `check-lock` in a scratch clone.
    """
    with Repository(project.root) as repository:
        result = audit_history(repository, read_history(repository), LAYOUT)
    for entry in result.entries:
        print("\n".join(entry_lines(entry)))
    own = _check_locks(project, [entry.state for entry in result.entries if entry.state.blob]) if checkout else True
    print("\n".join(closing_lines(result)))
    return 0 if result.holds and own else 1


def _check_locks(project: Project, states: Sequence[Snapshot]) -> bool:
    """Let each commit say whether its own code, params and environment give the hashes in its lock."""
    holds = True
    with scratch_clone(project.root, "HEAD") as clone:
        for state in states:
            switch(clone, state.commit.id)
            done = run(clone, sys.executable, "-m", "polygrain.cli.main", "check-lock", check=False)
            said = done.said.strip().splitlines() or ["said nothing"]
            if done.status not in (0, 1):
                print(f"{state.commit.short} cannot run its own check-lock: {said[-1]}")
                continue
            holds = holds and done.status == 0
            for line in said if done.status else said[-1:]:
                print(f"{state.commit.short} by its own check-lock: {line}")
    return holds


def audit_cache(project: Project) -> int:
    """Hash every object that a lock in the history refers to again; 0 when all are whole."""
    with Repository(project.root) as repository:
        objects = objects_of(read_history(repository))
    cache = cache_folder(project.root)
    bytes_ = sum(path.stat().st_size for item in objects if (path := object_path(cache, item.md5)).is_file())
    with tqdm(total=bytes_, unit="B", unit_scale=True, disable=None) as progress:
        examined = list(examine(cache, objects, progress.update))
    for item, state in examined:
        if state != "whole":
            where = "HEAD" if item.current else f"last in {item.commit.short}"
            print(f"{state.upper()} {item.md5} {item.output} ({where})")
    states = [state for _, state in examined]
    corrupt = [str(object_path(cache, item.md5)) for item, state in examined if state == "corrupt"]
    if corrupt:
        print(f"remove what is corrupt, then fetch it or build it again: rm -f {' '.join(corrupt)}")
    if "missing" in states or corrupt:
        print("what a remote has of them, also of old commits, comes back with `dvc fetch --all-commits`")
    print(f"{cache}: {', '.join(f'{states.count(state)} {state}' for state in get_args(State))}")
    return 0 if set(states) <= {"whole"} else 1


def audit_target(project: Project, target: str) -> int:
    """Make one recorded file again in a scratch clone of HEAD and print the comparison; 1 when it is different."""
    commit = git(project.root, "rev-parse", "--short=7", "HEAD").strip()
    dirty = git(project.root, "status", "--porcelain").strip()
    print(f"rebuilding {target} as {commit} (HEAD) has it" + ("; this tree has changes of its own" if dirty else ""))
    result = make_again(project.root, target)
    for compared in result.outputs:
        print(f"{compared.output}: {compared.verdict}")
        for line in compared.differences[:5]:
            print(f"    {line}")
        if len(compared.differences) > 5:
            print(f"    {len(compared.differences) - 5} more")
    if result.verdict != "identical":
        print(f"tolerance for numbers: {TOLERANCE:g} of the larger one, or of 1")
        print("\n".join(_why(result)))
    print(f"{target}: {result.verdict}")
    return 1 if result.verdict == "different" else 0


def _why(result: Rebuilt) -> Iterator[str]:
    for line in result.inputs:
        yield f"another input: {line}"
    if not result.inputs:
        yield "every input is as in dvc.lock"
    if result.circumstances is None:
        yield "machine and software cannot be compared: no record of the recorded build is here"
    elif not result.circumstances:
        yield "threads, pins, versions, processor are as recorded: the result was edited, or the build is random"
    for line in result.circumstances or ():
        yield f"another machine or software: {line}"
