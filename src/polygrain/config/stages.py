"""From a target to its stage, and to all stages behind it.

A kind of stage says where it stands (`place`), which part of the configuration decides it (`choose`), and which files
and code follow from that configuration (`shape`). `choose` reads params/; a job under the workflow reads what was
frozen instead, and both go through `shape`.
"""

from collections.abc import Iterable
from pathlib import Path

from polygrain.config import run_stages, tables
from polygrain.config.compose import one_look
from polygrain.config.kind import Kind
from polygrain.config.project import Project
from polygrain.config.resolved import configuration, protocols, scenes_in
from polygrain.config.run_stages import judges
from polygrain.config.runs import Run
from polygrain.config.yamlfile import read_mapping
from polygrain.provenance.errors import UserError, nearest
from polygrain.provenance.stage import Stage

KINDS: dict[str, Kind] = {
    "prepare": run_stages.PREPARE,
    "compose": run_stages.COMPOSE,
    "pretrain": run_stages.PRETRAIN,
    "features": run_stages.FEATURES,
    "evaluate": run_stages.EVALUATE,
    "table": tables.TABLE,
}


def stage_of(project: Project, verb: str, target: str | Path) -> Stage:
    """The stage that a verb and its target mean, from params/. Raises UserError when they do not fit each other."""
    kind = KINDS[verb]
    return kind.stage(project, *kind.place(Path(target)))


def frozen_stage(project: Project, verb: str, target: str | Path) -> Stage:
    """The stage as written when the job graph was built: what a running job obeys, whatever params/ says now."""
    kind = KINDS[verb]
    directory, task = kind.place(Path(target))
    path = project.root / Stage(verb, task, directory, {}, (), (), ()).config_path
    if not path.is_file():
        raise UserError(f"{path}: not written; build through snakemake, or leave out --workflow")
    return kind.shape(directory, task, read_mapping(path, "delete it and build through snakemake, which writes it"))


def patterns(verb: str, form: str = "") -> list[str]:
    """The outputs of all stages of a verb with Snakemake's wildcards in them; for `prepare` of one format."""
    run = Path("runs/{scale}/{dataset}/{method}/{variant}/seed{seed}")
    match verb:
        case "prepare":
            return [str(path) for path in run_stages.packed("{dataset}", form)]
        case "compose":
            return [str(path) for path in run_stages.composed("{dataset}")]
        case "evaluate":
            return [str(run / name) for name in run_stages.results("{protocol}")]
    return [str(run / name) for name in KINDS[verb].files]


def maker(project: Project, path: Path) -> Stage | None:
    """The stage that writes a file; None for a file that people write. Raises UserError for a file of no stage."""
    match path.parts[:1]:
        case ("data",):
            verb = "compose" if path.parts[1:2] and path.parts[1] in scenes_in(project) else "prepare"
            return stage_of(project, verb, Path(*path.parts[:2]))
        case ("runs",):
            run, name = Path(*path.parts[:6]), Path(*path.parts[6:])
            for verb in ("pretrain", "features"):
                if str(name) in KINDS[verb].files:
                    return stage_of(project, verb, run)
            return stage_of(project, "evaluate", path)
        case ("reports",):
            return stage_of(project, "table", path)
    return None


def stages_behind(project: Project, targets: Iterable[str | Path]) -> list[Stage]:
    """Every stage behind some targets, each once, after those that it reads from.

    A target is a table, a run (with all protocols that can judge it), a data set, or a file of one of them.
    """
    found: dict[str, Stage] = {}
    made: dict[Path, Stage | None] = {}
    with one_look():
        for target in targets:
            for stage in _asked(project, Path(target)):
                _collect(project, stage, found, made)
    return list(found.values())


def _asked(project: Project, target: Path) -> list[Stage]:
    """The stages that a target names."""
    if target.parts[:1] == ("runs",) and len(target.parts) <= 6:
        run = Run.parse(target)
        declared = configuration(project, run)["evaluate"]["protocols"]
        asked = [name for name in protocols(project) if judges(declared.get(name, {}), run)]
        return [stage_of(project, "evaluate", run.path / "results" / name) for name in asked]
    made = maker(project, target)
    if made is None:
        places = ("data/NAME", "runs/SCALE/DATASET/METHOD/VARIANT/seedN", "reports/[SCALE[-seedsN]/]NAME.pdf")
        raise UserError(f"{target}: made by no stage{nearest(str(target), places)}; there are {', '.join(places)}")
    return [made]


def _collect(project: Project, stage: Stage, found: dict[str, Stage], made: dict[Path, Stage | None]) -> None:
    """Add a stage to `found`, after every stage that it reads from; `made` remembers the makers of files."""
    if stage.name in found:
        return
    for path in stage.inputs:
        if path not in made:
            made[path] = maker(project, path)
        before = made[path]
        if before is not None:
            _collect(project, before, found, made)
    found[stage.name] = stage
