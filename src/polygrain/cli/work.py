"""The verbs that make things: each reads its frozen inputs, does one stage, and leaves a record of how."""

import os
from collections.abc import Callable
from pathlib import Path

import polygrain
from polygrain.config.inputs import write_inputs
from polygrain.config.ledger import NAME as LEDGER
from polygrain.config.project import Project
from polygrain.config.stages import VERBS, Stage, frozen_stage, stage_of
from polygrain.config.tables import Table, frozen_table, table_stage
from polygrain.config.yamlfile import read_mapping
from polygrain.provenance.code import code_hashes
from polygrain.provenance.environment import check_installed
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import read_json, sha256_file
from polygrain.provenance.leftovers import remove_leftovers
from polygrain.provenance.sidecar import recorded
from polygrain.provenance.unchanged import hashed, unchanged

REBUILD = "delete it and build through snakemake, which writes it"


def run_stage(verb: str, directory: str, *, workflow: bool, resume: bool = False) -> None:
    """Do one stage.

    Under the workflow its inputs stand as they were written; by hand they are brought up to date first.
    """
    project = _enter()
    directory = directory.rstrip("/")
    if workflow:
        frozen = Path(directory, "config", f"{verb}.yaml")
        if frozen.is_file():
            read_mapping(frozen, REBUILD)
        stage = frozen_stage(project, verb, directory)
    else:
        stage = stage_of(project, verb, directory)
        write_inputs(project, stage)
    _guarded(stage, workflow, lambda: _do(stage, resume))


def run_table(target: str, *, workflow: bool) -> None:
    """Write one table from the results of its runs."""
    project = _enter()
    table = Table.parse(target)
    if workflow:
        stage = frozen_table(table)
    else:
        stage = table_stage(project, table)
        write_inputs(project, stage)

    def build() -> None:
        outputs = {path.suffix.lstrip("."): path for path in stage.outputs}
        if table.name == LEDGER:
            from polygrain.report.ledger import build_ledger

            build_ledger(stage.config["lines"], outputs)
        else:
            from polygrain.report.build import build_table

            build_table(stage.config, Path(), outputs)

    _guarded(stage, workflow, build)


def _enter() -> Project:
    project = Project.here()
    os.chdir(project.root)
    return project


def _guarded(stage: Stage, workflow: bool, body: Callable[[], None]) -> None:
    """Check the environment and the inputs, then run `body` and record it."""
    from polygrain.provenance.pins import pin_torch
    from polygrain.train.guard import exit_with_parent

    if workflow:
        exit_with_parent()
    _check_source(stage)
    check_installed(read_json(stage.environment_path))
    missing = [path for path in stage.inputs if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: not there yet; build it with `snakemake --cores all {missing[0]}`")
    scratch = stage.directory / "scratch" / "state.pt"
    remove_leftovers([*stage.outputs, stage.sidecar, stage.sidecar.with_name("timing.jsonl"), scratch])
    inputs = [*stage.inputs, stage.code_path, stage.environment_path]
    with unchanged([stage.config_path, *inputs], [*stage.outputs, stage.sidecar]):
        if stage.verb in VERBS:
            pin_torch()
        with (
            recorded(
                stage.sidecar,
                stage=stage.verb,
                inputs=inputs,
                outputs=list(stage.outputs),
                config=stage.config_path,
                code=stage.code_path,
                environment=stage.environment_path,
                manifests=manifests_behind(stage),
            ),
            hashed(stage.code_path, stage.outputs),
        ):
            body()


def manifests_behind(stage: Stage) -> list[Path]:
    """The manifests of the data sets that a stage's outputs come from, also when it reads them through features."""
    datasets: list[str] = []
    match stage.verb:
        case "prepare":
            datasets = [stage.directory.name]
        case "pretrain":
            datasets = [stage.config["dataset"]]
        case "features":
            datasets = stage.config["datasets"]
        case "evaluate":
            run, project = str(stage.directory), Project.here()
            frozen = (stage.directory / "config" / "features.yaml").is_file()
            features = frozen_stage(project, "features", run) if frozen else stage_of(project, "features", run)
            datasets = features.config["datasets"]
        case _:
            return [path for path in stage.inputs if path.name == "manifest.json"]
    return [Path("data", name, "manifest.json") for name in datasets]


def _check_source(stage: Stage) -> None:
    """The code that runs must be the code that was hashed: this checkout's, as it was when the job graph was built."""
    imported, expected = Path(polygrain.__file__).resolve().parents[1], Project.here().source.resolve()
    if imported != expected:
        raise UserError(
            f"{imported}: this environment runs that code, not {expected}; run make here, or set PYTHONPATH={expected}"
        )
    if not stage.entries:  # a table under the workflow: its few files are hashed with its inputs
        return
    now, then = code_hashes(stage.entries, expected), read_json(stage.code_path)
    edited = [name for name in sorted({*now, *then}) if now.get(name) != then.get(name)]
    if edited:
        raise UserError(f"{edited[0]}: edited since {stage.code_path} was written; run the same command again")


def _do(stage: Stage, resume: bool) -> None:
    """Call the stage's entry; each is imported only here, so that a job loads no more than it needs."""
    match stage.verb:
        case "prepare":
            if stage.config["format"] == "encoded":
                from polygrain.data.shards import prepare
            else:
                from polygrain.data.prepare import prepare
            prepare(stage.config, stage.directory)
        case "pretrain":
            from polygrain.train.run import pretrain
            from polygrain.train.state import Identity

            data = Path("data", stage.config["dataset"])
            identity = Identity(
                config=sha256_file(stage.config_path),
                code=sha256_file(stage.code_path),
                environment=sha256_file(stage.environment_path),
                data=sha256_file(data / "manifest.json"),
            )
            timing = stage.sidecar.with_name("timing.jsonl")
            pretrain(stage.config, data=data, run=stage.directory, timing=timing, identity=identity, resume=resume)
        case "features":
            from polygrain.evaluate.features import extract

            data_sets = {name: Path("data", name) for name in stage.config["datasets"]}
            extract(stage.config, stage.directory / "checkpoint.safetensors", data_sets, stage.outputs[0])
        case "evaluate":
            from polygrain.evaluate.run import evaluate

            evaluate(stage.config, stage.inputs[0], stage.directory / "results")
