"""The walk through git: every commit, locks read as DVC reads them, each stage parsed once."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from provenance_toy import call
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from written_past import RESULT, Past, honest, lock_text, md5, stage

from polygrain.audit.locks import Snapshot, read_history
from polygrain.audit.repository import Repository
from polygrain.provenance import lock
from polygrain.provenance.errors import UserError
from polygrain.provenance.lock import LockParser, printed
from polygrain.provenance.yaml12 import parse_yaml


def _read(root: Path) -> list[Snapshot]:
    with Repository(root) as repository:
        return read_history(repository)


TRICKY = """\
schema: '2.0'
stages:
  run:
    cmd: snakemake --cores all
      runs/a/result.json
    deps:
    - path: data/x.bin
      hash: md5
      md5: 1e10
      size: 3
    params:
      inputs/config.yaml:
        float: 1e-3
        small: 1.0E-05
        text: '1e-3'
        word: yes
        off: off
        octal: 0o17
        leading: 017
        negative: -0x1F
        clock: 1:30
        grouped: 1_000
        nothing: null
        tilde: ~
        empty:
        truth: true
        infinite: -.inf
        dotted: .5
        list: [1, 1.0, '1', {a: 2}]
        day: 2024-05-06
        binary: 0b101
        wide: 1_000.5
    outs:
    - path: runs/a/result.json
      hash: md5
      md5: 00112233445566778899aabbccddeeff
      size: 1
"""


def _same_as_dvc(text: str) -> None:
    """Compare with the library that DVC reads YAML with."""
    theirs = YAML(typ="safe").load(text)["stages"]
    ours = LockParser().parse(text.encode()).stages
    assert list(ours) == list(theirs)
    for name, said in theirs.items():
        locked = ours[name]
        assert locked.command == said["cmd"]
        assert locked.parameters == {file: printed(values) for file, values in said.get("params", {}).items()}
        for part, found in (("deps", locked.dependencies), ("outs", locked.outputs)):
            assert found == {item["path"]: item["md5"] for item in said.get(part, [])}


@given(st.text(st.sampled_from("0123456789abcdefox._+-~:nullTRUE einf"), max_size=8).map(str.strip))
def test_scalars_are_those_of_the_library_that_dvc_reads_with(text: str) -> None:
    try:
        theirs: object = YAML(typ="safe").load(f"key: {text}\n")
    except (YAMLError, ValueError):
        theirs = "a fault"
    try:
        ours: object = parse_yaml(f"key: {text}\n")
    except (yaml.YAMLError, ValueError):
        ours = "a fault"
    assert repr(ours) == repr(theirs)


def test_values_are_read_as_dvc_reads_them() -> None:
    _same_as_dvc(TRICKY.replace("md5: 1e10", f"md5: '{md5('x')}'"))


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: yaml.safe_dump(yaml.safe_load(text), indent=4),
        lambda text: text.replace("schema: '2.0'\nstages:", "stages:") + "schema: '2.0'\n",
        lambda text: text.replace("schema: '2.0'\n", "# a remark\nschema: '2.0'\n"),
        lambda text: text.replace("cmd: make data", 'cmd: "make\n  fake:\n    data"'),
        lambda text: text.replace("cmd: make data", "cmd: &cmd make data").replace("cmd: make run", "cmd: *cmd"),
        lambda text: text.replace("cmd: make data", "cmd: |\n      make\n      data"),
        lambda text: text.replace("  table:\n", "  # a remark\n  table:\n"),
        lambda text: text + "datasets: []\n",
    ],
    ids=["indent", "order", "comment", "open quote", "anchor", "block", "comment between", "more keys"],
)
def test_a_lock_in_any_form_is_read_as_a_whole(edit: object) -> None:
    text = edit(honest()["dvc.lock"])  # type: ignore[operator]
    assert text != honest()["dvc.lock"]
    _same_as_dvc(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<<<<<<< HEAD\nschema: '2.0'\n", "not valid YAML"),
        ("schema: '2.0'\nstages:\n  a:\n    cmd: 'open\n", "not valid YAML"),
        (honest()["dvc.lock"].replace("  table:", "  data:"), "a key occurs twice"),
        (honest()["dvc.lock"].replace("    cmd: make table\n", "    cmd: x\n    cmd: y\n"), "a key occurs twice"),
        ("schema: '2.0'\nstages:\n  a: 1\n", "not a DVC lock file"),
        ("schema: '2.0'\nstages:\n  a:\n    cmd: x\n    outs:\n    - path: b\n      md5: 3\n", "b has no MD5"),
        ("[1, 2]\n", "not a DVC lock file"),
        ("\x00", "not valid YAML"),
    ],
)
def test_what_is_no_lock_is_a_fault(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        LockParser().parse(text.encode())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "schema: '2.0'\nstages:\n", "schema: '2.0'\nstages: {}\n"])
def test_empty_locks_hold_no_stage(text: str) -> None:
    assert LockParser().parse(text.encode()).stages == {}


def test_each_stage_is_parsed_once_over_two_hundred_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    past, parsed = Past(tmp_path), []
    stages = {f"s{k}": stage(f"make {k}", {"d": md5(f"{k}")}, {}, {f"o{k}": md5(f"out {k}")}) for k in range(40)}
    for number in range(200):
        name = number % 40
        stages[f"s{name}"] = stage(f"make {name}", {"d": md5(f"{number}")}, {}, {f"o{name}": md5(f"new {number}")})
        past.commit({"dvc.lock": lock_text(stages)})
    real = lock.parse_yaml
    monkeypatch.setattr(lock, "parse_yaml", lambda text: parsed.append(text) or real(text))
    states = _read(past.write())
    assert len(states) == 200
    assert len(parsed) == len(set(parsed)) <= 240
    assert states[0].lock.stages["s9"] is states[8].lock.stages["s9"] is not states[9].lock.stages["s9"]


def test_commits_come_with_parents_dates_and_harmless_subjects(tmp_path: Path) -> None:
    past = Past(tmp_path, folder="sub/project")
    first = past.commit(honest(), subject="start")
    second = past.commit(honest(0.2), first, subject="up\x1b[2Jdate")
    third = past.commit(honest(), first)
    past.commit(honest(0.2), third, second, subject="merge")
    states = _read(past.write())
    assert [state.commit.subject for state in states] in (
        ["start", "up?[2Jdate", "state", "merge"],
        ["start", "state", "up?[2Jdate", "merge"],
    )
    ids = {state.commit.subject: state.commit.id for state in states}
    assert states[-1].commit.parents == (ids["state"], ids["up?[2Jdate"])
    assert states[0].commit.date == "2023-11-15"
    assert states[0].lock.makers[RESULT].name == "run-a"


def test_a_broken_lock_passes_on_what_was_known_and_a_removed_one_nothing(tmp_path: Path) -> None:
    past = Past(tmp_path)
    past.commit({"README": "before"})
    past.commit(honest())
    past.commit({"dvc.lock": "<<<<<<<"})
    past.commit({"README": "after"})
    states = _read(past.write())
    assert [len(state.lock.stages) for state in states] == [0, 3, 3, 0]
    assert [bool(state.fault) for state in states] == [False, False, True, False]


def test_no_history_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="git rev-parse failed"):
        _read(tmp_path)
    call(tmp_path, "git", "init", "--quiet")
    with pytest.raises(UserError, match="git log failed"):
        _read(tmp_path)
    past = Past(tmp_path / "other")
    past.commit({"README": "no lock"})
    with pytest.raises(UserError, match=r"no commit holds dvc\.lock"):
        _read(past.write())


def test_a_shallow_clone_is_noticed_and_replacements_are_not_believed(tmp_path: Path) -> None:
    past = Past(tmp_path / "whole")
    for lr in (0.1, 0.2, 0.3):
        past.commit(honest(lr))
    root = past.write()
    call(tmp_path, "git", "clone", "--quiet", "--depth", "2", f"file://{root}", "shallow")
    with Repository(tmp_path / "shallow") as repository:
        assert repository.shallow
        assert len(read_history(repository)) == 2
    call(root, "git", "replace", "HEAD", "HEAD~2")
    states = _read(root)
    assert len(states) == 3
    assert states[-1].lock.stages["run-a"].parameters["inputs/a/config.yaml"]["lr"] == "0.3"
