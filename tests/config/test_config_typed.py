"""What the type checker is told about a job's configuration is what the stages give it."""

from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

import pytest

from polygrain.config import typed
from polygrain.config.project import Project
from polygrain.config.stages import stage_of

PROJECT = Project(Path(__file__).resolve().parents[2])
RUN = "runs/smoke/fashion-mnist/{}/base/seed0"
METHODS = sorted(path.stem for path in (PROJECT.params / "method").glob("*.yaml"))
DATASETS = sorted(path.stem for path in (PROJECT.params / "dataset").glob("*.yaml"))
SCENES = sorted(path.stem for path in (PROJECT.params / "scenes").glob("*.yaml"))


def fits(kind: Any, value: Any) -> bool:
    if is_typeddict(kind) and not isinstance(value, dict):
        return False
    if is_typeddict(kind):
        known = get_type_hints(kind)
        present = known.keys() & set(value)
        return kind.__required_keys__ <= set(value) and all(fits(known[key], value[key]) for key in present)
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in parts
    if origin in (Union, UnionType):
        return any(fits(part, value) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(fits(parts[0], item) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(parts[1], item) for item in value.values())
    return kind is Any or isinstance(value, (int, float) if kind is float else kind)


@pytest.mark.parametrize(
    ("kind", "verb", "target"),
    [
        *((typed.Dataset, "prepare", f"data/{name}") for name in DATASETS),
        *((typed.Scenes, "compose", f"data/{name}") for name in SCENES),
        *((typed.Pretrain, "pretrain", RUN.format(method)) for method in METHODS),
        (typed.Shown, "features", RUN.format("simclr")),
        (typed.Protocol, "evaluate", f"{RUN.format('simclr')}/results/knn"),
        (typed.Protocol, "evaluate", f"{RUN.format('simclr')}/results/scene-labels"),
    ],
)
def test_stages_give_what_the_types_say(kind: Any, verb: str, target: str) -> None:
    config = stage_of(PROJECT, verb, Path(target)).config
    assert fits(kind, config), config
    if kind in (typed.Dataset, typed.Scenes):
        assert set(config) - {"format"} <= set(kind.__annotations__)
