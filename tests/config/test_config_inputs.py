"""The staleness files and what stands beside them when they change."""

import os
import shutil
import threading
from pathlib import Path

import pytest
import yaml

from polygrain.config.compose import choices, one_look, stamp
from polygrain.config.inputs import input_texts, write_inputs
from polygrain.config.project import Project
from polygrain.config.resolved import datasets_in
from polygrain.config.stages import stage_of
from polygrain.provenance.errors import UserError
from polygrain.provenance.stage import Stage
from polygrain.train.guard import locked

REPOSITORY = Path(__file__).resolve().parents[2]
RUN = "runs/smoke/fashion-mnist/simclr/base/seed0"
HOUR = 3600 * 10**9


@pytest.fixture
def project(tmp_path: Path) -> Project:
    for name in ("params", "src/polygrain"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(REPOSITORY / "requirements.lock", tmp_path)
    return Project(tmp_path)


def edited(project: Project) -> Stage:
    """The training with another temperature."""
    params = project.params / "method/simclr.yaml"
    params.write_text(params.read_text().replace("temperature: 0.2", "temperature: 0.31"))
    return stage_of(project, "pretrain", RUN)


def test_the_configuration_is_written_as_plain_yaml_writes_it(project):
    """libyaml breaks lines and quotes texts as Python's own emitter does, long texts of other scripts included."""
    for verb, target in (("pretrain", RUN), ("table", "reports/ledger.pdf")):
        stage = stage_of(project, verb, target)
        plain = yaml.safe_dump(stage.config, sort_keys=True, allow_unicode=True, width=120)
        assert input_texts(project, stage)[stage.config_path] == plain


def test_within_one_look_an_edit_is_not_seen_and_behind_it_it_is(project):
    before = stamp(project.params)
    with one_look():
        assert stamp(project.params) == before
        (project.params / "method/simclr.yaml").touch()
        with one_look():
            assert stamp(project.params) == before
    assert stamp(project.params) > before


def test_inputs_that_stay_the_same_touch_nothing(project):
    stage = stage_of(project, "pretrain", RUN)
    write_inputs(project, stage)
    output = project.root / stage.outputs[0]
    output.write_text("built")
    later = output.stat().st_mtime_ns + HOUR
    os.utime(output, ns=(later, later))
    with locked(project.root / RUN / "scratch"):
        write_inputs(project, stage_of(project, "pretrain", RUN))
    before = (project.root / stage.config_path).stat().st_mtime_ns
    write_inputs(project, stage)
    assert (project.root / stage.config_path).stat().st_mtime_ns == before


def test_an_output_of_older_inputs_is_older_than_them_though_the_clock_went_back(project):
    stage = stage_of(project, "pretrain", RUN)
    write_inputs(project, stage)
    whole, linked = (project.root / path for path in stage.outputs)
    whole.write_text("built")
    (project.root / "cached").write_text("built")
    linked.symlink_to(project.root / "cached")
    for path in (whole, linked):
        later = path.lstat().st_mtime_ns + HOUR
        os.utime(path, ns=(later, later), follow_symlinks=False)
    cached = (project.root / "cached").stat().st_mtime_ns
    write_inputs(project, edited(project))
    config = (project.root / stage.config_path).stat().st_mtime_ns
    assert whole.lstat().st_mtime_ns < config
    assert linked.lstat().st_mtime_ns < config
    assert (project.root / "cached").stat().st_mtime_ns == cached


def test_the_inputs_of_a_run_that_is_being_trained_stay_as_they_are(project):
    stage = stage_of(project, "pretrain", RUN)
    write_inputs(project, stage)
    text = (project.root / stage.config_path).read_text()
    changed = edited(project)
    with (
        locked(project.root / RUN / "scratch"),
        pytest.raises(UserError, match=rf"config/pretrain.yaml: would change, but process {os.getpid()} is training"),
    ):
        write_inputs(project, changed)
    assert (project.root / stage.config_path).read_text() == text
    write_inputs(project, changed)
    assert "0.31" in (project.root / stage.config_path).read_text()


def test_a_look_of_one_thread_ends_though_another_began_within_it(project):
    begun, ended = threading.Event(), threading.Event()

    def other() -> None:
        with one_look():
            begun.set()
            ended.wait()

    with one_look():
        thread = threading.Thread(target=other)
        thread.start()
        begun.wait()
    before = stamp(project.params)
    ended.set()
    thread.join()
    path = project.params / "run.yaml"
    os.utime(path, ns=(before + 10**9, before + 10**9))
    assert stamp(project.params) > before


def _broken(params: Path) -> dict[str, str]:
    """Leave files as people and their programs do: name of a data set -> what is said to whoever asks for it."""
    groups = [params / group for group in ("dataset", "evaluate", "method", "scale", "variant/mgc")]
    for group in groups:
        (group / "._fashion-mnist.yaml").write_bytes(b"\x00\x05\x16\x07Mac OS X\xff")
        (group / ".#cifar-10.yaml").symlink_to("me@host.123:1")
    (params / "dataset/half.yaml").write_text("name: mine\nreader: image-folder\n")
    (params / "dataset/latin.yaml").write_bytes("# Größe\nname: x\n".encode("latin-1"))
    (params / "dataset/cut.yaml").write_text("name: [")
    (params / "dataset/my_photos.yaml").write_text("name: x\n")
    (params / "evaluate/cut.yaml").write_text("needs: [")
    return {"half": "half.yaml", "latin": "latin.yaml", "cut": "cut.yaml", "my_photos": "rename it"}


def test_a_stray_file_in_params_stops_nobody_but_who_asks_for_it(project):
    said = _broken(project.params)
    assert stage_of(project, "pretrain", RUN).config["method"]["name"] == "simclr"
    assert stage_of(project, "evaluate", f"{RUN}/results/linear").task == "linear"
    assert {"fashion-mnist", *said} <= set(datasets_in(project, "pixels"))
    assert not [name for name in choices(project.params, "dataset") if name.startswith(".")]
    for name, words in said.items():
        with pytest.raises(UserError, match=words):
            stage_of(project, "prepare", f"data/{name}")
    with pytest.raises(UserError, match=r"params/evaluate/cut\.yaml: not valid YAML"):
        stage_of(project, "evaluate", f"{RUN}/results/cut")
