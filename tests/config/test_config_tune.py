"""Tuning: the same number of trials for all, drawn by a rule that stands, and a table over them."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from polygrain.audit.cells import find_cell
from polygrain.config.compose import origins
from polygrain.config.project import Project
from polygrain.config.resolved import configuration
from polygrain.config.runs import Run
from polygrain.config.stages import stage_of
from polygrain.config.tables import rows
from polygrain.config.tune import SEED, TRIALS, read_tuning, trial, trial_of
from polygrain.provenance.errors import UserError

PROJECT = Project(Path(__file__).resolve().parents[2])
METHODS = sorted(path.stem for path in (PROJECT.params / "tune").glob("*.yaml"))
TABLE1 = yaml.safe_load((PROJECT.params / "table/table1.yaml").read_text())


def run(method: str, number: int, scale: str = "short") -> Run:
    return Run(scale, "fashion-mnist", method, f"tune-{number}", SEED)


@pytest.fixture
def params(tmp_path: Path) -> Path:
    return shutil.copytree(PROJECT.params, tmp_path / "params")


def changed(params: Path, **keys: Any) -> Path:
    """The tuning of SimCLR with some keys replaced."""
    path = params / "tune/simclr.yaml"
    path.write_text("# x\n# Cost: x\n" + yaml.safe_dump({**yaml.safe_load(path.read_text()), **keys}))
    return params


def test_every_trained_row_of_table_1_is_tuned_and_no_seed_is_shared() -> None:
    trained = {row["method"] for group in TABLE1["groups"] for row in group["rows"]} - {"random", "pca"}
    assert trained <= set(METHODS)
    assert SEED not in TABLE1["seeds"]
    spaces = [set(read_tuning(PROJECT.params, method)["space"]) for method in METHODS]
    assert all({"optimizer.schedule.base", "optimizer.values.weight_decay"} <= space for space in spaces)


@pytest.mark.parametrize("number", [0, 1, TRIALS - 1])
@pytest.mark.parametrize("method", METHODS)
def test_a_trial_is_a_run_with_its_values(method: str, number: int) -> None:
    changes = trial(PROJECT.params, method, number)
    config, places = configuration(PROJECT, run(method, number)), origins(run(method, number), PROJECT.params)
    for key, value in changes.items():
        found: Any = config
        for part in key.split("."):
            found = found[part]
        assert found == value
        assert places[key] == f"params/tune/{method}.yaml"
    assert config["pretrain"] == configuration(PROJECT, Run("short", "fashion-mnist", method, "base", 0))["pretrain"]


def test_draws_are_those_of_always(params: Path) -> None:
    """Else a trial's name would mean other values after an upgrade. A new key changes no other."""
    expected = {
        "optimizer.schedule.base": 0.0049,
        "optimizer.schedule.warmup": 0.1,
        "optimizer.values.weight_decay": 0.058,
        "method.values.temperature": 0.25,
        "method.values.layers": 2,
        "method.values.embedding": 32,
    }
    assert trial(params, "simclr", 1) == expected
    tuning = read_tuning(params, "simclr")
    space = tuning["space"] | {"method.values.hidden": {"linear": [100, 300]}}
    more = trial(changed(params, space=space, paper=tuning["paper"] | {"method.values.hidden": 256}), "simclr", 1)
    assert 100 <= more.pop("method.values.hidden") <= 300
    assert more == expected


@pytest.mark.parametrize(("law", "low", "high"), [("log", 1e-3, 1e-1), ("linear", -1.0, 3.0)])
def test_draws_fill_their_range(params: Path, law: str, low: float, high: float) -> None:
    keys = [f"method.values.a{number}" for number in range(100)]
    space = {key: {law: [low, high]} for key in keys}
    path = changed(params, space=space, paper=dict.fromkeys(keys, 1.0))
    drawn = [value for number in range(1, TRIALS) for value in trial(path, "simclr", number).values()]
    middle = (low * high) ** 0.5 if law == "log" else (low + high) / 2
    assert low <= min(drawn) < max(drawn) <= high
    assert 0.46 < sum(value < middle for value in drawn) / len(drawn) < 0.54


def test_names_of_trials() -> None:
    assert [trial_of(name) for name in ("tune-0", "tune-12", "tune-", "tune-01", "base")] == [0, 12, None, None, None]
    for number, message in ((TRIALS, "there is no trial 16"), (0, "no tuning of 'rndom'")):
        with pytest.raises(UserError, match=message):
            trial(PROJECT.params, "simclr" if number else "rndom", number)
    with pytest.raises(UserError, match="no tuning of 'pca'"):
        configuration(PROJECT, run("pca", 1))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"method": "mugs"}, "its method is 'mugs'; the file has the name of the method"),
        ({"finalists": [1]}, r"finalists: name the best 2 trials, or none, not \[1\]"),
        ({"finalists": [1, 16]}, "below 16"),
        ({"paper": {"method.values.hidden": 64}}, "paper.method.values.hidden: not in space"),
        ({"paper": {"method.values.layers": 2}}, "paper: lacks method.values.embedding of space"),
        ({"space": {"method.values.hidden": {"log": [0, 1]}}}, "log needs two numbers, the lower first, both above 0"),
        ({"space": {"method.values.hidden": {"linear": [2, 1]}}}, "linear needs two numbers, the lower first"),
        ({"space": {"method.values.hidden": {}}}, "give one of choose, log and linear"),
        ({"space": {"method.values.hidden": {"choose": []}}}, "choose needs values"),
        ({"trials": 3}, "unknown key 'trials'"),
    ],
)
def test_a_mistake_is_one_line(params: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        trial(changed(params, **keys), "simclr", 1)
    assert str(caught.value).startswith("params/tune/simclr.yaml")
    assert "\n" not in str(caught.value)


def test_the_table_of_the_trials(tmp_path: Path) -> None:
    for name in ("params", "workflow", "src"):
        shutil.copytree(PROJECT.root / name, tmp_path / name)
    shutil.copy(PROJECT.root / "requirements.lock", tmp_path)
    changed(tmp_path / "params", finalists=[7, 0])
    config = stage_of(Project(tmp_path), "table", "reports/tune/simclr.pdf").config
    runs = [run for row in rows(config) for run in row["runs"]]
    expected = [run("simclr", number) for number in range(TRIALS)] + [run("simclr", n, "cpu") for n in (7, 0)]
    assert runs == [str(one.path) for one in expected]
    assert (config["scale"], config["order_by"]) == ("short and cpu", "score")
    assert {f"{one}/results/linear.json" for one in runs} <= set(config["inputs"])
    shown = {column["setting"] for column in config["columns"] if "setting" in column}
    assert shown == set(read_tuning(tmp_path / "params", "simclr")["space"])
    scored = [column["value"] for column in config["columns"] if column.get("split") == "validation"]
    primary = [column["value"] for column in TABLE1["columns"] if column["id"] in TABLE1["compare"]["columns"]]
    assert scored == primary
    cell = find_cell(Project(tmp_path), "reports/tune/simclr.pdf", "Trial 7 again", "transfer")
    assert (cell.split, cell.runs) == ("validation", (run("simclr", 7, "cpu"),))
    with pytest.raises(UserError, match="'score' is a mean of columns; name one of linear, linear-1, transfer"):
        find_cell(Project(tmp_path), "reports/tune/simclr.pdf", "Trial 7", "score")
