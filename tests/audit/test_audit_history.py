"""A cell through renamed labels, a forged result, an edited copy and its removal; its names; the example's guard."""

import json
from pathlib import Path
from typing import Any

import pytest
from written_past import Past, entry, lock_text, md5

from polygrain.audit.example import make_example
from polygrain.audit.history.names import Names
from polygrain.audit.history.values import Value, values
from polygrain.audit.judge import audit_history
from polygrain.audit.locks import read_history
from polygrain.audit.repository import Repository
from polygrain.audit.run import LAYOUT, entries_of, sources_of
from polygrain.config.project import Project
from polygrain.config.tables import Table
from polygrain.provenance.code import code_hashes
from polygrain.provenance.errors import UserError
from polygrain.provenance.lock import read_lock

RUN = "runs/smoke/toy/simclr/base/seed0"
HEADER = "row_group,row,column_group,column,unit,mean,sd,n,text\n"


def files(lr: float, mean: float, label: str = "SimCLR", column: str = "k-NN", **edited: Any) -> dict[str, str]:
    """A commit in which the toy's table was recorded. edited: `result` other bytes, `copy` another published copy."""
    line = f"Rows,{label},Toy,{column},%,{mean},0.2,3,{mean} ± 0.2\n" if label else ""
    csv = HEADER + line + "Rows,Random,Toy,k-NN,%,50.0,,1,50.0\nRows,Random,Toy,linear,%,51.0,,1,51.0\n"
    result = edited.get("result", f"result {lr}")
    groups = [{"label": "Rows", "rows": [{"label": label, "method": "simclr", "runs": [RUN]}]}] if label else []
    columns = [{"id": "knn", "group": "Toy", "label": column}]
    stages = {
        "evaluate": {
            "cmd": "x",
            "deps": [entry(f"{RUN}/features.bin", md5(f"features {lr}"))],
            "outs": [entry(f"{RUN}/results/knn.json", md5(result))],
        },
        "pretrain": {
            "cmd": "x",
            "params": {f"{RUN}/config/pretrain.yaml": {"lr": lr}},
            "outs": [entry(f"{RUN}/features.bin", md5(f"features {lr}"))],
        },
        "table1": {
            "cmd": "x",
            "deps": [entry(f"{RUN}/results/knn.json", md5(result))],
            "params": {"reports/smoke/config/table1/table1.yaml": {"groups": groups, "columns": columns}},
            "outs": [entry("reports/smoke/table1.csv", md5(csv))],
        },
    }
    copy = edited.get("copy", csv)
    return {
        "dvc.lock": lock_text(stages),
        "reports/published/smoke/table1.csv": copy,
        "params/x.yaml": json.dumps({"lr": lr, "label": label, "column": column}),
    }


def moved(past: Past, row: str, column: str) -> list[Value]:
    with Repository(past.write()) as repository:
        result = audit_history(repository, read_history(repository), LAYOUT)
        return list(values(repository, result, Table("table1", "smoke"), Names(row, column, None)))


@pytest.fixture
def past(tmp_path: Path) -> Past:
    """Five values: the label changes, the column's label changes under a forged result, the copy is edited, it goes."""
    past = Past(tmp_path / "past")
    for content in (
        files(0.1, 80.0),
        {**files(0.1, 80.0), "README": "nothing moved"},
        files(0.2, 81.0, "SimCLR ours"),
        files(0.2, 90.0, "SimCLR ours", "neighbours", result="better"),
        files(0.2, 90.0, "SimCLR ours", "neighbours", result="better", copy=_edited()),
        files(0.3, 85.0, "SimCLR ours", result="result 0.3"),
        files(0.3, 85.0, ""),
    ):
        past.commit(content)
    return past


def _edited() -> str:
    return files(0.2, 99.0, "SimCLR ours", "neighbours", result="better")["reports/published/smoke/table1.csv"]


@pytest.mark.parametrize(("row", "column"), [("simclr", "knn"), ("SIMCLR/base", "KNN")])
def test_a_cell_is_followed_by_method_and_id_through_new_labels(past: Past, row: str, column: str) -> None:
    found = moved(past, row, column)
    assert [(value.text, value.delta) for value in found] == [
        ("80.0 ± 0.2", ""),
        ("81.0 ± 0.2", "+1.00"),
        ("90.0 ± 0.2", "+9.00"),
        ("99.0 ± 0.2", "+9.00"),
        ("85.0 ± 0.2", "-14.00"),
        ("not in the table", ""),
    ]
    assert [value.unexplained for value in found] == [False, False, True, True, False, False]
    why = ["; ".join(value.why) for value in found]
    assert why[0] == "first recorded"
    assert why[1] == "lr 0.1 -> 0.2"
    assert why[2].startswith(f"{RUN.replace('seed0', 'seed*')}/results/knn.json: ")
    assert "other bytes from the same inputs" in why[2]
    assert "is not the reports/smoke/table1.csv of dvc.lock" in why[3]
    assert f"rests on the unexplained change of {found[2].commit.short}" in why[3]
    assert why[4] == "lr 0.2 -> 0.3"
    assert why[5] == "taken out of the table"


def test_a_row_that_is_gone_is_found_by_its_printed_labels(past: Past) -> None:
    assert [value.text for value in moved(past, "simclr ours", "toy k-nn")] == [
        "81.0 ± 0.2",
        "not in the table",
        "85.0 ± 0.2",
        "not in the table",
    ]
    assert moved(past, "nobody", "knn") == []


def test_a_printed_label_of_two_groups_needs_its_group(tmp_path: Path) -> None:
    past = Past(tmp_path / "past")
    content = files(0.1, 80.0)
    twice = content["reports/published/smoke/table1.csv"] + "Rows,Random,Other,linear,%,1.0,,1,1.0\n"
    past.commit({**content, "reports/published/smoke/table1.csv": twice})
    with pytest.raises(UserError, match="several cells fit: 'Toy linear' of 'Random', 'Other linear' of 'Random'"):
        moved(past, "random", "linear")
    assert [value.text for value in moved(past, "random", "other linear")] == ["1.0"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("runs/cpu/toy/simclr/base/seed0/code/pretrain.json", ("src",)),
        ("reports/code/table1/table1.json", ("src",)),
        ("runs/cpu/toy/simclr/base/seed0/environment/pretrain.json", ("requirements.lock", "src")),
        ("runs/environment.json", ("requirements.lock", "src")),
        ("runs/cpu/toy/simclr/base/seed0/config/evaluate.yaml", ("params", "src/polygrain/config")),
        ("reports/config/table1/table1.yaml", ("params", "requirements.lock", "src")),
        ("runs/cpu/toy/simclr/base/seed0/checkpoint.safetensors", ()),
    ],
)
def test_generated_inputs_have_their_sources_in_git(path: str, expected: tuple[str, ...]) -> None:
    assert sources_of(path) == expected
    assert all((Path(__file__).parents[2] / source).exists() for source in expected)


CODE = f"{RUN}/code/pretrain.json"
PACKAGE = {
    "src/polygrain/__init__.py": "",
    "src/polygrain/train/__init__.py": "",
    "src/polygrain/train/run.py": "import polygrain.train.loop\n",
    "src/polygrain/train/loop.py": "STEPS = 1\n",
    "src/polygrain/methods/__init__.py": "",
    "src/polygrain/methods/simclr.py": "from polygrain.train import loop\n",
    "src/polygrain/methods/mugs.py": "K = 1\n",
    "src/polygrain/train/images/__init__.py": "",
    "src/polygrain/train/images/pixels.py": "",
    "src/polygrain/views/__init__.py": "",
    "src/polygrain/views/untouched.py": "",
    "src/polygrain/backbones/__init__.py": "",
    "src/polygrain/backbones/resnet.py": "WIDTH = 1\n",
}
NAMES = {
    "augmentation": {},
    "backbone": {"name": "resnet"},
    "dataset": "toy",
    "format": "pixels",
    "method": {"name": "simclr", "values": {}},
    "pretrain": {"device": "cpu"},
}


def built(config: dict[str, Any], bytes_: str, **edited: str) -> dict[str, str]:
    """A commit with the lock of one training and a package, some of whose files are edited."""
    package = PACKAGE | {f"src/polygrain/{name}.py": text for name, text in edited.items()}
    training = {
        "cmd": "x",
        "deps": [entry(CODE, md5(json.dumps(package)))],
        "params": {f"{RUN}/config/pretrain.yaml": config},
        "outs": [entry(f"{RUN}/checkpoint.safetensors", md5(bytes_))],
    }
    return {"dvc.lock": lock_text({"pretrain": training}), **package}


@pytest.mark.parametrize(
    ("config", "edited", "named"),
    [
        (NAMES, {"methods/mugs": "K = 2\n", "train/loop": "STEPS = 2\n"}, ["train/loop"]),
        (NAMES, {"methods/mugs": "K = 2\n", "backbones/resnet": "WIDTH = 2\n"}, ["backbones/resnet"]),
        # a module that is imported no more, and one that is new
        (NAMES, {"train/run": "import polygrain.new\n", "new": ""}, ["new", "train/run"]),
        # what no longer parses is followed as it was before
        (NAMES, {"methods/mugs": "K = 2\n", "train/loop": "STEPS = (\n"}, ["train/loop"]),
        # all is named where nothing else would be, and where the configuration names no method
        (NAMES, {"methods/mugs": "K = 2\n"}, ["methods/mugs"]),
        ({"lr": 0.1}, {"methods/mugs": "K = 2\n", "train/loop": "STEPS = 2\n"}, ["methods/mugs", "train/loop"]),
    ],
)
def test_changed_code_is_named_as_far_as_the_stage_imports_it(
    tmp_path: Path, config: dict[str, Any], edited: dict[str, str], named: list[str]
) -> None:
    past = Past(tmp_path / "past")
    past.commit(built(config, "one"))
    past.commit(built(config, "two", **edited))
    with Repository(past.write()) as repository:
        result = audit_history(repository, read_history(repository), LAYOUT)
    (change,) = result.entries[-1].changes
    assert change.kind == "explained"
    assert [cause.sources for cause in change.causes] == [tuple(f"src/polygrain/{name}.py" for name in named)]


def test_every_recorded_stage_of_this_project_has_its_entries() -> None:
    root = Path(__file__).parents[2]
    for stage in read_lock(root).stages.values():
        for path in stage.dependencies:
            if sources_of(path) and "config" not in path:
                hashes = code_hashes(entries_of(stage, path), root / "src")
                assert len(hashes) > 3, (stage.name, path)


def test_an_example_never_writes_into_a_folder_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(UserError, match="there is something already"):
        make_example(Project(Path(__file__).parents[2]), tmp_path)
    with pytest.raises(UserError, match="there is something already"):
        make_example(Project(Path(__file__).parents[2]), tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
