"""From a run's coordinates to its resolved configuration, by Hydra's compose over the groups in params/.

Layers, later ones win: augmentation, backbone, optimizer, dataset, `mode/{method}` (the preset of switches in which a
paper's text and its released code differ; the method's file chooses one, a variant may choose the other), method,
evaluate, scale, then `recipe/{method}/{scale}` (what this method takes at this scale; without such a file, at the scale
that this one extends), then `variant/{method}/{variant}` (the ablation cell; `base` is none) or the values of a trial
(`tune-N`).

Hydra is imported only where it is used: a job under the workflow reads the stored result, and starts faster without it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import yaml

from polygrain.config.runs import Run
from polygrain.config.tune import GROUP, hydra_overrides, trial, trial_of
from polygrain.config.yamlfile import read_mapping
from polygrain.provenance.errors import UserError, nearest

Config = dict[str, Any]


def choices(params: Path, group: str) -> list[str]:
    """Names that a config group offers; hidden files, as editors leave them, are ignored."""
    return sorted(path.stem for path in (params / group).glob("[!.]*.yaml"))


def overrides(run: Run, params: Path) -> list[str]:
    """The choices that a run makes. Raises UserError with the nearest name for what does not exist."""
    for group, name in (("scale", run.scale), ("dataset", run.dataset), ("method", run.method)):
        if name not in choices(params, group):
            raise UserError(f"{run.path}: no {group} '{name}'{nearest(name, choices(params, group))}")
    variants, number = ["base", *choices(params, f"variant/{run.method}")], trial_of(run.variant)
    if number is None and run.variant not in variants:
        raise UserError(f"{run.path}: {run.method} has no variant '{run.variant}'{nearest(run.variant, variants)}")
    chosen = [f"dataset={run.dataset}", f"method={run.method}", f"scale={run.scale}"]
    if recipe := _recipe(run, params):
        chosen.append(f"recipe={run.method}/{recipe}")
    if number is not None:
        return chosen + hydra_overrides(trial(params, run.method, number))
    if run.variant != "base":
        chosen.append(f"variant={run.method}/{run.variant}")
    return chosen


def _recipe(run: Run, params: Path) -> str | None:
    """The scale whose recipe a run takes: its own or, where the method has none, that of the scale which it extends."""
    scale: str | None = run.scale
    recipes = choices(params, f"recipe/{run.method}")
    while scale is not None and scale not in recipes:
        defaults = read_mapping(params / "scale" / f"{scale}.yaml").get("defaults", [])
        scale = next((entry for entry in defaults if isinstance(entry, str) and entry != "_self_"), None)
    return scale


def stamp(folder: Path, suffix: str = ".yaml") -> int:
    """Latest modification of the files with a suffix under a folder, ns: the key of everything cached of them."""
    known = _stamps.get()
    if known is not None and (folder, suffix) in known:
        return known[folder, suffix]
    latest, folders = 0, [str(folder)]
    while folders:  # by scandir: twice as fast as a Path's rglob
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.path)
                elif entry.name.endswith(suffix) and not entry.name.startswith("."):
                    latest = max(latest, entry.stat().st_mtime_ns)
    if known is not None:
        known[folder, suffix] = latest
    return latest


# one for each thread
_stamps: ContextVar[dict[tuple[Path, str], int] | None] = ContextVar("stamps", default=None)


@contextmanager
def one_look() -> Iterator[None]:
    """Inside this context `stamp` reads each folder once: a graph of a thousand jobs asks thousands of times."""
    known = _stamps.get()
    token = _stamps.set({} if known is None else known)
    try:
        yield
    finally:
        _stamps.reset(token)


def resolve(run: Run, params: Path) -> Config:
    """The whole resolved configuration of a run, without its seed. Raises UserError on any fault in the files."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    chosen = overrides(run, params)
    GlobalHydra.instance().clear()
    OmegaConf.register_new_resolver("epochs", _share, replace=True)
    try:
        with initialize_config_dir(str(params.resolve()), version_base="1.3"):
            config = OmegaConf.to_container(compose("run", chosen), resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{params.resolve().name}/: {' '.join(str(error).split())}") from None
    return cast(Config, config)


def _share(epochs: float, *, _root_: Any) -> float:
    """`${epochs:10}` in a file of params/: the share of the run that ten epochs are."""
    if _root_.pretrain.epochs is None:
        raise UserError("pretrain.epochs is null, so ${epochs:N} is no share of the run; give the share")
    return epochs / float(_root_.pretrain.epochs)


def origins(run: Run, params: Path) -> dict[str, str]:
    """Where each resolved value was set last: dotted key -> `file:line`."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    chosen = overrides(run, params)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(params.resolve()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        layers = loader.compute_defaults_list("run", chosen, RunMode.RUN).defaults
    found: dict[str, str] = {}
    for layer in layers:
        path = params / f"{layer.config_path}.yaml"
        if layer.config_path and path.is_file():
            found |= _lines(path, layer.package or "", f"{params.name}/{layer.config_path}.yaml")
    number = trial_of(run.variant)
    drawn = trial(params, run.method, number) if number is not None else {}
    found |= dict.fromkeys(drawn, f"{params.name}/{GROUP}/{run.method}.yaml")
    protocols = _protocol_lines(run, params)
    return {key: place for key, place in (protocols | found).items() if not key.startswith("defaults")}


def _protocol_lines(run: Run, params: Path) -> dict[str, str]:
    """The same for what the files of params/evaluate declare of each protocol, the run's scale above the rest."""
    found: dict[str, str] = {}
    for name in choices(params, "evaluate"):
        file = f"evaluate/{name}.yaml"
        lines = _lines(params / file, "", f"{params.name}/{file}")
        scale, prefix = f"scales.{run.scale}.", f"evaluate.protocols.{name}."
        found |= {prefix + key: place for key, place in lines.items() if not key.startswith("scales.")}
        found |= {prefix + key.removeprefix(scale): place for key, place in lines.items() if key.startswith(scale)}
    return found


def place_of(key: str, places: dict[str, str]) -> str:
    """Where a value was set, of `origins`; one inside a mapping that was written as one node has that node's place."""
    while key not in places and "." in key:
        key = key.rpartition(".")[0]
    return places.get(key, "")


def _lines(path: Path, prefix: str, file: str) -> dict[str, str]:
    """The place in a YAML file, which is called `file`, of each of its values, by dotted key behind `prefix`."""

    def places(node: yaml.Node, key: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                yield from places(value, f"{key}.{name.value}" if key else str(name.value))
        else:
            yield key, f"{file}:{node.start_mark.line + 1}"

    node = yaml.compose(path.read_text(encoding="utf-8"))
    return dict(places(node, prefix)) if node is not None else {}
