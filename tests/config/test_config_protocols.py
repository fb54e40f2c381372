"""Several protocols of one module, and protocols of some methods only."""

import shutil
from pathlib import Path

import pytest

from polygrain.config.project import Project
from polygrain.config.stages import stage_of, stages_behind
from polygrain.provenance.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
RUN = "runs/smoke/fashion-mnist/{}/base/seed0"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    shutil.copytree(ROOT / "params", tmp_path / "params")
    for name in ("src", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    return Project(tmp_path)


def test_a_protocol_may_name_the_module_that_computes_it(project: Project) -> None:
    own, other = (
        stage_of(project, "evaluate", f"{RUN.format('simclr')}/results/{name}") for name in ("knn", "knn-mugs")
    )
    assert own.entries == other.entries
    assert "polygrain.evaluate.knn" in other.entries
    assert (other.config["protocol"], other.config["module"]) == ("knn-mugs", "knn")
    assert "module" not in own.config
    assert other.config["values"]["temperature"] == 0.05
    assert [path.name for path in other.outputs] == ["knn-mugs.json", "knn-mugs.npz"]


def test_its_values_are_those_of_the_module(project: Project) -> None:
    file = project.params / "evaluate/knn-mugs.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("temperature:", "temprature:"), encoding="utf-8")
    with pytest.raises(UserError, match=r"unknown key 'evaluate\.protocols\.knn-mugs\.values\.temprature'"):
        stage_of(project, "evaluate", f"{RUN.format('simclr')}/results/knn")
    file.write_text(text.replace("module: knn\n", "module: knm\n"), encoding="utf-8")
    with pytest.raises(UserError, match=r"no module 'knm' in polygrain\.evaluate; did you mean 'knn'"):
        stage_of(project, "evaluate", f"{RUN.format('simclr')}/results/knn")


def test_a_protocol_may_name_the_methods_that_it_judges(project: Project) -> None:
    target = f"{RUN.format('simclr')}/results/knn-mugs-student"
    with pytest.raises(UserError, match=rf"^{target}: it judges runs of mugs only$"):
        stage_of(project, "evaluate", target)
    asked = {
        method: {stage.task for stage in stages_behind(project, [RUN.format(method)])} for method in ("simclr", "mugs")
    }
    assert asked["mugs"] - asked["simclr"] == {"knn-mugs-student"}
    assert {"knn", "knn-mugs"} < asked["simclr"]
