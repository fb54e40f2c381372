"""The verbs that make things: each reads its frozen inputs, does one stage, and leaves a record of how."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import polygrain
from polygrain.config.inputs import write_inputs
from polygrain.config.listing import is_listed
from polygrain.config.project import Project
from polygrain.config.run_stages import without_shards
from polygrain.config.stages import frozen_stage, stage_of
from polygrain.provenance.code import code_hashes
from polygrain.provenance.environment import check_installed
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import read_json, write_bytes
from polygrain.provenance.pins import pin_torch
from polygrain.provenance.sidecar import recorded
from polygrain.provenance.stage import Stage
from polygrain.provenance.unchanged import hashed, remove_leftovers, unchanged
from polygrain.train.guard import exit_with_parent


def run_stage(
    project: Project, target: str, *, kind: str, workflow: bool, shards: bool = False, **options: bool
) -> None:
    """Do one stage of the project in the working directory, by `run(stage, **options)` of its first entry module.

    Under the workflow its inputs are used as written; by hand they are brought up to date first. With `shards` only
    those of a restored data set are packed.
    """
    if shards:
        _pack_shards(project, target, workflow=workflow)
        return
    if workflow:
        stage = frozen_stage(project, kind, target)
        exit_with_parent()
    else:
        stage = stage_of(project, kind, target)
        write_inputs(project, stage)
    _check(project, stage)
    if stage.verb != "prepare":
        for folder in without_shards(project.root, stage):
            _pack_again(folder)
    remove_leftovers([*stage.outputs, stage.sidecar, stage.timing, stage.state])
    listed = [stage.listing_path] if is_listed(stage) else []
    with unchanged([stage.config_path, *stage.dependencies, *listed], [*stage.outputs, stage.sidecar]):
        if "torch" in read_json(stage.environment_path)["packages"]:
            pin_torch()
        with recorded(stage), hashed(stage.code_path, stage.outputs):
            import_module(stage.entries[0]).run(stage, **options)
        for path in listed:
            write_bytes(stage.packed_listing, path.read_bytes())


def _pack_again(folder: Path) -> None:
    """Pack the shards of a restored data set in another process, so that this one's record is of its own job alone."""
    print(f"{folder}: its shards are not recorded; packing them again", flush=True)
    command = [sys.executable, "-m", "polygrain.cli.main", "prepare", "--shards", "--workflow", str(folder)]
    done = subprocess.run(command)
    if done.returncode:
        raise UserError(f"{folder}: its shards could not be packed again; the reason is above")


def _pack_shards(project: Project, target: str, *, workflow: bool) -> None:
    """Pack the shards of a data set of encoded images where they are missing. Raises UserError for another one."""
    if workflow:
        exit_with_parent()
    stage = stage_of(project, "prepare", target)
    if stage.config["format"] != "encoded":
        raise UserError(f"{target}: holds no encoded images, so it has no shards")
    import_module(stage.entries[0]).pack_again(stage.config, stage.directory)


def _check(project: Project, stage: Stage) -> None:
    """Refuse another checkout's code, code or packages other than those that were hashed, and missing inputs."""
    imported, expected = Path(polygrain.__file__).resolve().parents[1], project.source.resolve()
    if imported != expected:
        raise UserError(
            f"{imported}: this environment runs that code, not {expected}; run make here, or set PYTHONPATH={expected}"
        )
    now, then = code_hashes(stage.entries, expected), read_json(stage.code_path)
    edited = [name for name in sorted({*now, *then}) if now.get(name) != then.get(name)]
    if edited:
        raise UserError(f"{edited[0]}: edited since {stage.code_path} was written; run the same command again")
    check_installed(read_json(stage.environment_path))
    missing = [path for path in stage.inputs if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: not there yet; build it with `snakemake --cores all {missing[0]}`")
