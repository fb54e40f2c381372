"""What is wrong in a ledger is one line that names file and line; the ledger is a target like a table."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from polygrain.cli.claims import current_stages
from polygrain.config.inputs import input_texts
from polygrain.config.ledger import arms, read_ledger
from polygrain.config.project import Project
from polygrain.config.published import published
from polygrain.config.stages import stage_of, stages_behind
from polygrain.provenance.errors import UserError

PROJECT = Project(Path(__file__).resolve().parents[2])


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A ledger of one method with two lines."""
    (tmp_path / "params/method").mkdir(parents=True)
    (tmp_path / "params/method/toy.yaml").write_text("name: toy\n")
    write(tmp_path, content())
    return Project(tmp_path)


def arm(value: Any) -> dict[str, Any]:
    return {"says": f"Takes {value}.", "where": "section 1", "value": value}


def content() -> dict[str, Any]:
    first = {"id": "one", "kind": "deviation", "what": "First.", "switch": "method.values.a"}
    second = {"id": "two", "kind": "reconstructed", "what": "Second.", "switch": "method.values.b", "described": None}
    lines = [
        first | {"described": arm(1), "released": arm(None)},
        second | {"ours": arm("x"), "other": arm("y"), "with": {"pretrain.batch": 256, "backbone": "vit"}},
    ]
    return {"method": "toy", "lines": lines}


def write(root: Path, ledger: Any) -> None:
    path = root / "params/ledger/toy.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(ledger if isinstance(ledger, str) else yaml.safe_dump(ledger))


def test_lines_with_their_arms(project: Project) -> None:
    lines = read_ledger(project)
    assert [(line["method"], line["id"]) for line in lines] == [("toy", "one"), ("toy", "two")]
    assert [tuple(arm["value"] for arm in arms(line)) for line in lines] == [(1, None), ("x", "y")]
    assert read_ledger(project, "toy") == lines


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(metod="toy"), "unknown key 'metod'; did you mean 'method'?"),
        (lambda c: c["lines"][0].update(swich="a.b"), "unknown key 'lines.0.swich'; did you mean 'switch'?"),
        (lambda c: c["lines"][0]["described"].update(were="x"), "unknown key 'lines.0.described.were'"),
        (lambda c: c["lines"][0]["described"].pop("value"), "key 'lines.0.described.value' is missing"),
        (lambda c: c["lines"][0].pop("switch"), "key 'lines.0.switch' is missing"),
        (lambda c: c["lines"][0].update(switch="values"), "key 'lines.0.switch' must be of the form ^[a-z_]+("),
        (
            lambda c: c["lines"][0].update(kind="difference"),
            "key 'lines.0.kind' must be one of 'deviation' or 'reconstructed', not 'difference'",
        ),
        (lambda c: c["lines"][1].update({"with": {"method": 1}}), "key 'lines.1.with.method' must be of the form"),
        (
            lambda c: c["lines"][1].update({"with": {"backbone": {}}}),
            "lines.1: key 'with.backbone' must be text, not {}",
        ),
        (lambda c: c.update(lines=[]), "key 'lines' must be a list of at least 1, not []"),
        (lambda c: c.update(method="other"), "its method is 'other'; a ledger has the name of the method it is about"),
        (lambda c: c["lines"][1].update(id="one"), "line 'one' occurs more than once; give each its own id"),
        (lambda c: c["lines"][0].pop("released"), "line 'one' is of kind deviation: it needs described and released"),
        (lambda c: c["lines"][0].update(ours=arm(1)), "line 'one' is of kind deviation: it needs described and"),
        (lambda c: c["lines"][1].update(described=arm(1)), "line 'two' is of kind reconstructed: it needs ours and"),
        (lambda c: c["lines"][0].update(released=arm(1)), "line 'one' has the value 1 in both arms"),
    ],
)
def test_a_mistake_is_one_line_that_helps(
    project: Project, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    ledger = content()
    change(ledger)
    write(project.root, ledger)
    with pytest.raises(UserError) as caught:
        read_ledger(project)
    assert str(caught.value).startswith("params/ledger/toy.yaml: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_yaml_no_method_and_no_ledger(project: Project) -> None:
    with pytest.raises(UserError, match="no ledger of 'tyo'; did you mean 'toy'"):
        read_ledger(project, "tyo")
    write(project.root, "lines: [\n")
    with pytest.raises(UserError, match=r"^params/ledger/toy\.yaml: not valid YAML \(while parsing") as caught:
        read_ledger(project)
    assert "\n" not in str(caught.value)
    write(project.root, content())
    (project.params / "method/toy.yaml").rename(project.params / "method/tool.yaml")
    with pytest.raises(UserError, match="a ledger has the name of the method"):
        read_ledger(project)


def test_the_ledger_is_a_target_without_runs() -> None:
    stages = stages_behind(PROJECT, ["reports/ledger.pdf"])
    assert [str(stage.outputs[0]) for stage in stages] == ["reports/ledger.pdf"]
    (stage,) = stages
    assert stage.inputs == ()
    assert stage.config["lines"] == read_ledger(PROJECT)
    texts = input_texts(PROJECT, stage)
    assert yaml.safe_load(texts[stage.config_path]) == stage.config
    assert '"polygrain.report.escape"' in texts[stage.code_path]
    assert "typst" in texts[stage.environment_path]
    with pytest.raises(UserError, match="the ledger has no scale"):
        stage_of(PROJECT, "table", "reports/smoke/ledger.pdf")


def test_it_can_be_put_on_record(project: Project) -> None:
    for name in ("src", "requirements.lock"):
        (project.root / name).symlink_to(PROJECT.root / name)
    (job,) = current_stages(project, ["reports/ledger.pdf"])
    assert set(published(["reports/ledger.pdf"])) == set(job.outputs)
