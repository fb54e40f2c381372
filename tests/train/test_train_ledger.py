"""Every line of every ledger is a switch that exists and does something: its two arms train differently."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from polygrain.config.ledger import Line, arms, read_ledger
from polygrain.config.project import Project
from polygrain.config.runs import Run
from polygrain.config.stages import stage_of
from polygrain.train.run import Training
from polygrain.train.state import Identity

PROJECT = Project(Path(__file__).resolve().parents[2])
LINES = {(line["method"], line["id"]): line for line in read_ledger(PROJECT)}
MODES = sorted((PROJECT.params / "mode").glob("*/described.yaml"))
GROUPS = ("backbone", "augmentation", "optimizer")
STEPS = 3


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as a mapping of mappings."""
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *path, last = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def arm_text(line: Line, number: int) -> str:
    """A variant that has one arm of a line: what both need, then the value of the switch."""
    needed = line.get("with", {})
    choices = [{f"override /{group}@{group}": needed[group]} for group in GROUPS if group in needed]
    settings = {key: value for key, value in needed.items() if key not in GROUPS}
    tree = nested({**settings, line["switch"]: arms(line)[number]["value"]})
    return "# @package _global_\n" + yaml.safe_dump({**({"defaults": choices} if choices else {}), **tree})


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of params/ in which both arms of every line are variants."""
    root = tmp_path_factory.mktemp("arms")
    shutil.copytree(PROJECT.params, root / "params")
    for (method, name), line in LINES.items():
        folder = root / "params" / "variant" / method
        folder.mkdir(parents=True, exist_ok=True)
        for number in (0, 1):
            (folder / f"ledger-{name}-{number}.yaml").write_text(arm_text(line, number))
    return Project(root)


def started(project: Project, data: Path, line: Line, number: int) -> Training:
    run = Run("smoke", "fashion-mnist", line["method"], f"ledger-{line['id']}-{number}", 0)
    config = stage_of(project, "pretrain", run.path).config
    value: Any = config
    for part in line["switch"].split("."):
        value = value[part]
    assert value == arms(line)[number]["value"]
    return Training(config, data, Path("unused"), Identity("", "", "", ""), resume=False)


def step(training: Training) -> dict[str, Any]:
    """What a step leaves: its loss terms, the gradient and the state."""
    terms: list[dict[str, Tensor]] = []
    handle = training.method.register_forward_hook(lambda _, inputs, output: terms.append(output[0]))
    training.take_step()
    handle.remove()
    found: dict[str, Any] = {f"loss {name}": value.detach() for name, value in terms[0].items()}
    found |= {f"gradient {name}": p.grad for name, p in training.method.named_parameters() if p.requires_grad}
    return found | {f"state {name}": value for name, value in training.method.state_dict().items()}


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    if list(first) != list(second):
        return False
    for one, other in zip(first.values(), second.values(), strict=True):
        if (one is None) != (other is None):
            return False
        if one is not None and (one.shape != other.shape or not torch.equal(one, other)):
            return False
    return True


@pytest.mark.parametrize(("method", "name"), LINES, ids=lambda part: part)
def test_both_arms_of_a_line_run_and_differ(method: str, name: str, project: Project, noise: Path) -> None:
    line = LINES[method, name]
    first, second = (started(project, noise, line, number) for number in (0, 1))
    assert any(not same(step(first), step(second)) for _ in range(STEPS)), f"{line['switch']} changes nothing"


def test_two_runs_of_one_arm_are_the_same(project: Project, noise: Path) -> None:
    """Else the test above could not fail."""
    line = LINES["wcl", "weak-weight"]
    first, second = (started(project, noise, line, 0) for _ in (0, 1))
    assert all(same(step(first), step(second)) for _ in range(STEPS))


@pytest.mark.parametrize("path", MODES, ids=lambda path: path.parent.name)
def test_every_switch_of_a_mode_has_its_line_with_the_modes_values(path: Path) -> None:
    """What was described and what was released stands in both; a part absent from the release is off in both modes."""
    described, released = (
        yaml.safe_load(file.read_text())["method"]["values"] for file in (path, path.with_name("released.yaml"))
    )
    assert described.keys() == released.keys()
    lines = {line["switch"]: line for (method, _), line in LINES.items() if method == path.parent.name}
    for key in described:
        line = lines.get(f"method.values.{key}")
        assert line is not None, f"no line for {key}"
        first, second = (arm["value"] for arm in arms(line))
        if line["kind"] == "deviation":
            assert (described[key], released[key]) == (first, second), key
        else:
            assert described[key] in (first, second), key
            assert released[key] == second, key


def test_every_method_with_modes_has_a_ledger_and_no_switch_two_lines() -> None:
    assert {path.parent.name for path in MODES} == {method for method, _ in LINES}
    switches = [(line["method"], line["switch"]) for line in LINES.values()]
    assert len(set(switches)) == len(switches)
