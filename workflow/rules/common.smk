# Helpers for the rules; no rules here. Everything is asked of polygrain.config, which is torch-free and decides nothing twice.
import os
import re
from functools import cache
from pathlib import Path

from polygrain.config.compose import one_look
from polygrain.config.inputs import write_inputs
from polygrain.config.models import WorkflowModel
from polygrain.config.project import Project
from polygrain.config.resolved import datasets_in, scenes_in
from polygrain.config.runs import SEGMENT
from polygrain.config.stages import patterns, stage_of
from polygrain.provenance.errors import UserError
from polygrain.provenance.stage import Stage
from snakemake.exceptions import WorkflowError

# The job graph is built once, from params/ and src/ as they are now: each is looked at once.
LOOK = one_look()
LOOK.__enter__()
PROJECT = Project(Path(workflow.basedir))
TOGETHER = ("pretrain", "features")
RUN = "runs/{scale}/{dataset}/{method}/{variant}/seed{seed}"

try:
    WorkflowModel.of("--config", config)
except UserError as error:
    raise WorkflowError(str(error)) from None
if "data" in config:
    os.environ.update(POLYGRAIN_DATA=str(Path(config["data"]).resolve()))


wildcard_constraints:
    scale=SEGMENT,
    dataset=SEGMENT,
    method=SEGMENT,
    variant=SEGMENT,
    seed=SEGMENT,
    protocol=SEGMENT,
    folder=r"reports(/[a-z0-9.-]+)?",
    table=r"[a-z0-9-]+",


def stage(verb: str, wildcards) -> Stage:
    """The stage behind a rule's wildcards. A mistake in params/ stops the workflow with one line."""
    match verb:
        case "prepare" | "compose":
            return stage_at(verb, f"data/{wildcards.dataset}")
        case "table":
            return stage_at(verb, f"{wildcards.folder}/{wildcards.table}.pdf")
        case "evaluate":
            return stage_at(
                verb, f"{RUN.format(**wildcards)}/results/{wildcards.protocol}"
            )
    return stage_at(verb, RUN.format(**wildcards))


@cache
def stage_at(verb: str, target: str) -> Stage:
    """The same by target; remembered, because Snakemake asks for each job's inputs and resources many times."""
    try:
        return stage_of(PROJECT, verb, target)
    except UserError as error:
        raise WorkflowError(str(error)) from None


@cache
def written(stage: Stage) -> list[str]:
    """The staleness files of a stage, brought up to date once per build of the job graph."""
    try:
        return write_inputs(PROJECT, stage)
    except UserError as error:
        raise WorkflowError(str(error)) from None


def decided_by(verb: str):
    """Input function: the configuration, code and environment files of a stage, brought up to date in the main process.

    Those that share a folder are written together: Snakemake lists a folder once and would miss what comes later.
    """

    def paths(wildcards) -> list[str]:
        if verb in TOGETHER:
            for sibling in TOGETHER:
                written(stage(sibling, wildcards))
        return written(stage(verb, wildcards))

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
