"""The resolved and checked configuration of runs, data sets and protocols, remembered while params/ does not change."""

from dataclasses import replace
from functools import cache
from typing import Any

from polygrain.config.budget import minutes
from polygrain.config.compose import Config, choices, resolve, stamp
from polygrain.config.project import Project
from polygrain.config.runs import Run, check_name
from polygrain.config.yamlfile import read_mapping
from polygrain.provenance.errors import UserError, nearest

FEATURES = "features"  # params/evaluate/features.yaml says how features are extracted; the other files are protocols


def configuration(project: Project, run: Run) -> Config:
    """A run's resolved and checked configuration; its seed plays no part. Raises UserError on any fault in params/."""
    return _configuration(project, replace(run, seed=0), stamp(project.params))


@cache
def _configuration(project: Project, run: Run, stamp: int) -> Config:
    from polygrain.config.models import load_run  # pydantic is loaded where something is checked

    config = resolve(run, project.params)
    config["evaluate"]["protocols"] = _protocols(project, run, config["evaluate"]["protocols"], stamp)
    load_run(str(run.path), config, project.params)
    config["cost"]["pretrain"]["minutes"] = minutes(config)
    return config


def protocols(project: Project) -> list[str]:
    """Names of all protocols: the files of params/evaluate."""
    return [name for name in choices(project.params, "evaluate") if name != FEATURES]


def check_protocol(project: Project, name: str, where: str) -> None:
    """Raise UserError when there is no such protocol, which begins with `where`, or its file is no YAML."""
    if name not in protocols(project):
        raise UserError(f"{where}: no protocol '{name}'{nearest(name, protocols(project))}")
    _file(project, f"evaluate/{name}", stamp(project.params))


def _protocols(project: Project, run: Run, changes: Config, stamp: int) -> Config:
    """Every protocol as its file declares it for the run's scale, with what scale and variant change of it.

    One whose file is no YAML is left out: only a request for it is an error.
    """
    known, where = protocols(project), f"{run.path}: evaluate.protocols"
    for name in changes:
        if name not in known:
            raise UserError(f"{where}: no protocol '{name}'{nearest(name, known)}")
    found = {}
    for name in known:
        try:
            declared = dict(_file(project, f"evaluate/{name}", stamp))
        except UserError:
            continue
        here = (declared.pop("scales", None) or {}).get(run.scale, {})
        for layer in (here, changes.get(name, {})):
            declared = _changed(f"{where}.{name}", declared, layer)
        found[name] = declared
    return found


def _changed(where: str, declared: Config, changes: Config) -> Config:
    """`declared` with the values of `changes`, mapping by mapping. Raises UserError for a key that is not declared."""
    merged = dict(declared)
    for key, value in changes.items():
        if key not in declared:
            raise UserError(f"{where}: unknown key '{key}'{nearest(key, declared)}")
        deeper = isinstance(declared[key], dict) and isinstance(value, dict)
        merged[key] = _changed(f"{where}.{key}", declared[key], value) if deeper else value
    return merged


def dataset(project: Project, name: str) -> Config:
    """What params/dataset says of a data set, checked. Raises UserError when there is no such file or it is wrong."""
    check_name("params/dataset", "data set", name)
    known = choices(project.params, "dataset")
    if name not in known:
        raise UserError(f"no dataset '{name}'{nearest(name, known)}")
    return _dataset(project, name, stamp(project.params))


@cache
def _dataset(project: Project, name: str, stamp: int) -> Config:
    from polygrain.config.models import DatasetChoice

    described = {key: value for key, value in _file(project, f"dataset/{name}", stamp).items() if key != "defaults"}
    DatasetChoice.of(f"params/dataset/{name}.yaml", described)
    return described


def scenes(project: Project, name: str) -> Config:
    """What params/scenes says of scenes, checked. Raises UserError when there is no such file or it is wrong."""
    known = choices(project.params, "scenes")
    if name not in known:
        raise UserError(f"no scenes '{name}'{nearest(name, known)}")
    return _scenes(project, name, stamp(project.params))


@cache
def _scenes(project: Project, name: str, stamp: int) -> Config:
    from polygrain.config.scene_models import ScenesChoice

    where, described = f"params/scenes/{name}.yaml", _file(project, f"scenes/{name}", stamp)
    check_name(where, "scenes", name)
    ScenesChoice.of(where, described)
    if described["name"] != name:
        raise UserError(f"{where}: name is '{described['name']}'; it must be that of the file")
    if name in choices(project.params, "dataset"):
        raise UserError(f"{where}: params/dataset has that name, too; rename one, both are made as data/{name}")
    for source in described["datasets"]:
        if dataset(project, source)["format"] != "pixels":
            raise UserError(f"{where}: {source} holds encoded images; scenes are made of data sets of format pixels")
    return described


def scenes_in(project: Project) -> list[str]:
    """The names of all scenes: the files of params/scenes."""
    return choices(project.params, "scenes")


def datasets_in(project: Project, form: str) -> list[str]:
    """The data sets of one format, `pixels` or `encoded`.

    One whose file is broken counts as `pixels`: only a request for it is an error.
    """
    return [name for name in choices(project.params, "dataset") if _format(project, name) == form]


def _format(project: Project, name: str) -> str:
    try:
        return str(dataset(project, name)["format"])
    except UserError:
        return "pixels"


def evaluated(config: Config, name: str) -> list[str]:
    """Data sets on which a run trained on `name` is judged: its own first."""
    return [name, *(other for other in config["evaluate"]["transfer"] if other != name)]


@cache
def _file(project: Project, name: str, stamp: int) -> dict[str, Any]:
    return read_mapping(project.params / f"{name}.yaml", where=f"params/{name}.yaml")
