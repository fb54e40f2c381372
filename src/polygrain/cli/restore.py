"""`polygrain restore`: recorded outputs back into a checkout, and a table of what became of each."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from polygrain.cli.claims import current_stages
from polygrain.cli.doctor import obstacles
from polygrain.config.project import Project
from polygrain.config.run_stages import without_shards
from polygrain.provenance.errors import UserError
from polygrain.provenance.lock import LOCK
from polygrain.provenance.restore import Outcome, Restored, restore
from polygrain.provenance.stage import Stage, to_run

BACK = ("restored", "in place")


def restore_targets(project: Project, targets: Sequence[str]) -> int:
    """Restore the tables, runs or single files named, with everything that they are made from; print the verdicts.

    Returns 0, also when something is left to train. Raises UserError for a target that does not exist.
    """
    stages = current_stages(project, targets)
    wanted = [name for target in targets for name in _makers(stages, Path(target))]
    found = restore(stages, project.root, lambda: _refuse_if_busy(project))
    print("\n".join(report(stages, found, wanted)))
    for stage in stages:
        if stage.verb == "prepare" and found[stage.name].outcome in BACK:
            for folder in without_shards(project.root, stage):
                print(
                    f"{folder}: its images are on no record; the first job that reads them packs them again from their"
                    " folder below POLYGRAIN_DATA, and is refused without"
                )
    return 0


def _makers(stages: Sequence[Stage], target: Path) -> list[str]:
    """The jobs that make a file, or anything in a folder."""
    names = [stage.name for stage in stages if any(target in (path, *path.parents) for path in stage.outputs)]
    if not names:
        raise UserError(f"{target}: no job makes it; polygrain plan TABLE and polygrain show RUN say what there is")
    return names


def _refuse_if_busy(project: Project) -> None:
    lines = obstacles(project.root)
    if lines:
        raise UserError(f"{lines[0]}; then restore again")


def report(stages: Sequence[Stage], found: Mapping[str, Restored], wanted: Sequence[str]) -> list[str]:
    """A line for each job that was asked for or is not back, counts per verdict, and what runs next."""
    special = [stage.name for stage in stages if stage.name in wanted or found[stage.name].outcome not in BACK]
    width = max(map(len, special))
    lines = [f"{'stage':{width}}  {'verdict':10}  {'md5':8}  reason"]
    for name in special:
        md5 = next(iter(found[name].md5.values()), "")
        lines.append(f"{name:{width}}  {found[name].outcome:10}  {md5[:8]:8}  {found[name].reason}".rstrip())
    counts = Counter(result.outcome for result in found.values())
    lines.append(", ".join(f"{counts[outcome]} {outcome}" for outcome in get_args(Outcome) if counts[outcome]))
    removed = sum(len(result.removed) for result in found.values())
    lines += [f"removed {removed} files that neither {LOCK} nor a record confirms"] * bool(removed)
    return [*lines, _next(stages, found, wanted)]


def _next(stages: Sequence[Stage], found: Mapping[str, Restored], wanted: Sequence[str]) -> str:
    """What Snakemake will run for the targets."""
    absent = {path for result in found.values() for path in result.lacking}
    running = to_run(stages, absent, wanted)
    trainings = sum(name.startswith("pretrain-") for name in running)
    if not running:
        return "nothing to train: everything is in place"
    rest = f"{len(running)} jobs" if len(running) > 1 else "1 job"
    if not trainings:
        return f"nothing to train: snakemake runs {rest}, no training"
    return f"snakemake runs {trainings} training{'s' if trainings > 1 else ''} ({rest} in all)"
