import argparse
import inspect
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from polygrain.cli.main import main, parser
from polygrain.cli.verbs import SUBJECTS

REPOSITORY = Path(__file__).resolve().parents[2]


def options(top: argparse.ArgumentParser) -> dict[str, list[str]]:
    verbs = next(action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    return {
        name: sorted(
            action.option_strings[-1] if action.option_strings else action.dest
            for action in verb._actions
            if action.dest != "help"
        )
        for name, verb in verbs.choices.items()
    }


def test_the_command_line_is_frozen():
    """People and rules depend on it: a change here is a change of the product's interface."""
    assert options(parser()) == {
        "prepare": ["--shards", "--workflow", "target"],
        "compose": ["--workflow", "target"],
        "pretrain": ["--resume", "--workflow", "target"],
        "features": ["--workflow", "target"],
        "evaluate": ["--workflow", "target"],
        "table": ["--workflow", "target"],
        "ledger": ["method"],
        "show": ["run"],
        "plan": ["target"],
        "record": ["targets"],
        "restore": ["targets"],
        "check-lock": ["--mark", "targets"],
        "attest": ["--cores", "--from", "--steps", "targets"],
        "trace": ["--column", "--full", "--row", "target"],
        "crate": ["targets"],
        "audit": ["--cache", "--checkout", "--rebuild"],
        "history": ["--column", "--plot", "--row", "target"],
        "example": ["folder"],
        "doctor": ["--unlock"],
    }


def test_every_verb_has_a_function_that_takes_its_options():
    verbs = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    for verb in verbs.choices.values():
        module, _, name = verb.get_default("function").args[0].partition(":")
        given = {action.dest for action in verb._actions if action.dest != "help"}
        given |= {"kind"} if verb.get_default("kind") else set()
        subjects = [key for key in SUBJECTS if key in given]
        signature = inspect.signature(getattr(import_module(f"polygrain.{module}"), name))
        signature.bind("project", *subjects, **dict.fromkeys(given - set(subjects)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "runs/cpu/fashion-mnist/simclr/seed0"], "not a run; a run is runs/SCALE"),
        (["show", "runs/cpu/fashion-mnist/simclrr/base/seed0"], "no method 'simclrr'; did you mean 'simclr'?"),
        (["plan", "reports/table1.docx"], "not a table; a table is reports/NAME.pdf"),
        (["plan", "reports/cpu-seeds9/table1.pdf"], "the table has 3 seeds, 9 asked"),
        (["plan", "reports/smoke/ledger.pdf"], "reports/smoke/ledger.pdf: the ledger has no scale"),
        (["ledger", "wlc"], "no ledger of 'wlc'; did you mean 'wcl'?"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(arguments, words, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"polygrain {arguments[0]}: ")
    assert words in said.err
    assert len(said.err.splitlines()) == 1


def test_outside_a_project_the_line_says_where_to_go(tmp_path):
    command = [sys.executable, "-m", "polygrain.cli.main", "plan", "reports/table1.pdf"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "not inside a polygrain project" in done.stderr


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom polygrain.cli.main import parser\nparser().format_help()\n"
        "assert not {'torch', 'numpy', 'hydra', 'yaml'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_doctor_finds_nothing_in_a_quiet_tree(tmp_path, capsys):
    from polygrain.cli.doctor import examine
    from polygrain.config.project import Project

    assert examine(Project(tmp_path), unlock=True) == 0
    assert capsys.readouterr().out == "nothing stands in the way of a build\n"


def test_doctor_names_the_run_that_a_live_process_holds(tmp_path, capsys):
    from polygrain.cli.doctor import examine
    from polygrain.config.project import Project
    from polygrain.train.guard import locked

    run = tmp_path / "runs/cpu/fashion-mnist/simclr/base/seed0"
    locks = tmp_path / ".snakemake/locks"
    locks.mkdir(parents=True)
    (locks / "0.input.lock").touch()
    with locked(run / "scratch"):
        assert examine(Project(tmp_path), unlock=True) == 1
    assert "runs/cpu/fashion-mnist/simclr/base/seed0: process" in capsys.readouterr().out
    assert examine(Project(tmp_path), unlock=False) == 0
    assert "snakemake --unlock" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("ledger", "mncl"), ("show", "runs/cpu/fashion-mnist/wcl/base/seed0")])
def test_text_is_utf8_in_any_locale(words: tuple[str, ...]):
    """Files and output, also where the locale knows ASCII alone."""
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "polygrain.cli.main", *words]
    printed = [
        subprocess.run(command, cwd=REPOSITORY, env={**os.environ, **variables}, capture_output=True, check=True).stdout
        for variables in ({"PYTHONUTF8": "1"}, ascii_only)
    ]
    assert printed[0] == printed[1]
