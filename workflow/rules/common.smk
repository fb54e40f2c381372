# Helpers for the rules; no rules here. Everything is asked of polygrain.config, which is torch-free and decides nothing twice.
import os
from pathlib import Path

from polygrain.config.inputs import write_inputs
from polygrain.config.project import Project
from polygrain.config.runs import SEGMENT, Run
from polygrain.config.stages import VERBS, Stage, stage_of
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


def stage(verb: str, wildcards) -> Stage:
    """The stage behind a rule's wildcards. A mistake in params/ stops the workflow with one line."""
    try:
        if verb == "prepare":
            return stage_of(PROJECT, verb, f"data/{wildcards.dataset}")
        if verb == "table":
            return table_stage(
                PROJECT, Table.parse(f"{wildcards.folder}/{wildcards.table}.pdf")
            )
        names = (
            wildcards.scale,
            wildcards.dataset,
            wildcards.method,
            wildcards.variant,
        )
        return stage_of(PROJECT, verb, str(Run(*names, int(wildcards.seed)).path))
    except UserError as error:
        raise WorkflowError(str(error)) from None


def decided_by(verb: str):
    """Input function: the configuration, code and environment files of a stage, brought up to date in the main process.

    A run's stages are written together: Snakemake takes stock of a folder once and would miss what comes later.
    """

    def paths(wildcards) -> list[str]:
        for sibling in VERBS[1:] if verb in VERBS[1:] else ():
            write_inputs(PROJECT, stage(sibling, wildcards))
        return write_inputs(PROJECT, stage(verb, wildcards))

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
