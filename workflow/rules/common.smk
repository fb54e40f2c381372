# Helpers for the rules; no rules here. Everything is asked of polygrain.config, which is torch-free and decides nothing twice.
import os
from functools import cache
from pathlib import Path

from polygrain.config.inputs import write_inputs
from polygrain.config.project import Project
from polygrain.config.runs import SEGMENT, Run
from polygrain.config.stages import VERBS, Stage, datasets_in, stage_of
from polygrain.config.tables import Table, table_stage
from polygrain.provenance.errors import UserError
from snakemake.exceptions import WorkflowError
from snakemake.utils import validate

PROJECT = Project(Path(workflow.basedir))

validate(config, str(PROJECT.schemas / "config.schema.yaml"))
if "data" in config:
    os.environ.update(POLYGRAIN_DATA=str(Path(config["data"]).resolve()))


wildcard_constraints:
    scale=SEGMENT,
    dataset=SEGMENT,
    method=SEGMENT,
    variant=SEGMENT,
    seed=r"\d+",
    folder=r"reports(/[a-z0-9.-]+)?",
    table=r"[a-z0-9-]+",


def datasets_of(form: str) -> str:
    """A wildcard's pattern for the data sets of one format."""
    return "|".join(datasets_in(PROJECT.params, form))


def stage(verb: str, wildcards) -> Stage:
    """The stage behind a rule's wildcards. A mistake in params/ stops the workflow with one line."""
    if verb == "prepare":
        return stage_at(verb, f"data/{wildcards.dataset}")
    if verb == "table":
        return stage_at(verb, f"{wildcards.folder}/{wildcards.table}.pdf")
    names = (wildcards.scale, wildcards.dataset, wildcards.method, wildcards.variant)
    return stage_at(verb, str(Run(*names, int(wildcards.seed)).path))


@cache
def stage_at(verb: str, path: str) -> Stage:
    """The same by path; remembered, because Snakemake asks for each job's inputs and resources many times."""
    try:
        if verb == "table":
            return table_stage(PROJECT, Table.parse(path))
        return stage_of(PROJECT, verb, path)
    except UserError as error:
        raise WorkflowError(str(error)) from None


@cache
def written(verb: str, path: str) -> list[str]:
    """The staleness files of a stage, brought up to date once per build of the job graph."""
    try:
        return write_inputs(PROJECT, stage_at(verb, path))
    except UserError as error:
        raise WorkflowError(str(error)) from None


def decided_by(verb: str):
    """Input function: the configuration, code and environment files of a stage, brought up to date in the main process.

    A run's stages are written together: Snakemake takes stock of a folder once and would miss what comes later.
    """

    def paths(wildcards) -> list[str]:
        if verb == "table":
            return written(verb, f"{wildcards.folder}/{wildcards.table}.pdf")
        directory = str(stage(verb, wildcards).directory)
        for sibling in VERBS[1:] if verb in VERBS[1:] else ():
            written(sibling, directory)
        return written(verb, directory)

    return paths


def made_from(verb: str):
    """Input function: the files that a stage reads."""
    return lambda wildcards: [str(path) for path in stage(verb, wildcards).inputs]


def memory(verb: str):
    """Declared peak memory of a stage in MB, more at each new attempt."""
    return lambda wildcards, attempt: stage(verb, wildcards).memory * attempt


def minutes(verb: str):
    """Time limit of a stage: three times its declared minutes, more at each new attempt."""
    return (
        lambda wildcards, attempt: int(10 + 3 * stage(verb, wildcards).minutes)
        * attempt
    )
