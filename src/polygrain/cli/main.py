"""The command line: the verbs that people type are the verbs that the workflow's rules call."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from polygrain.config.project import Project
from polygrain.provenance.errors import UserError
from polygrain.provenance.pins import pin_process

WORKS = {
    "prepare": "read a data set from its source, verify it and pack it: data/NAME",
    "pretrain": "train one run: runs/SCALE/DATASET/METHOD/VARIANT/seedN",
    "features": "extract a run's frozen features for every data set it is judged on",
    "evaluate": "run the frozen-feature protocols of a run",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status: 0, or 2 after one line that says what is wrong and what to do."""
    options = parser().parse_args(arguments)
    verb: Callable[[argparse.Namespace], int] = options.function
    try:
        status = verb(options)
        sys.stdout.flush()
        return status
    except UserError as error:
        return _say(options, str(error), 2)
    except KeyboardInterrupt:
        return _say(options, "stopped", 130)
    except Exception as error:
        return _fault(options, error)


def _fault(options: argparse.Namespace, error: Exception) -> int:
    """One line for a fault of the machine; what is a mistake of ours is raised again."""
    from polygrain.cli.faults import explain

    line = explain(error, getattr(options, "directory", None) or getattr(options, "target", None) or "here")
    if line is None:
        raise error
    with suppress(OSError):  # what could not be written there would be tried again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):  # whoever reads our output has seen enough
        return 141
    return _say(options, line, 2)


def _say(options: argparse.Namespace, line: str, status: int) -> int:
    """Print how a verb ended and return its status, also where the log is on the disk that is full."""
    with suppress(OSError):
        print(f"polygrain {options.verb}: {line}", file=sys.stderr, flush=True)
    return status


def parser() -> argparse.ArgumentParser:
    """The whole command line; a test freezes it."""
    top = argparse.ArgumentParser(prog="polygrain", description="Rebuild, ablate, compare and audit, bit for bit.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, purpose in WORKS.items():
        verb = verbs.add_parser(name, help=purpose, description=purpose)
        verb.add_argument("directory")
        verb.add_argument(
            "--workflow",
            action="store_true",
            help="called by a rule: obey the inputs as written, end with it",
        )
        if name == "pretrain":
            verb.add_argument(
                "--resume",
                action="store_true",
                help="go on with the half-done run or refuse; never start over",
            )
        verb.set_defaults(function=work)
    table = _verb(verbs, "table", write_table, "write a table from the results: reports/[SCALE[-seedsN]/]NAME.pdf")
    table.add_argument("target")
    table.add_argument(
        "--workflow", action="store_true", help="called by a rule: obey the inputs as written, end with it"
    )
    deviations = _verb(
        verbs, "ledger", print_ledger, "print where a method's description, its release and our rebuild differ"
    )
    deviations.add_argument("method", nargs="?", default="", help="default: all methods")
    _verb(verbs, "show", show, "print a run's resolved configuration and where each value was set").add_argument("run")
    _verb(verbs, "plan", plan, "print the jobs behind a table with declared minutes and memory").add_argument("target")
    recording = _verb(verbs, "record", record, "after a successful build: commit it to DVC, publish copies")
    recording.add_argument("targets", nargs="+", metavar="target")
    lock = _verb(verbs, "check-lock", check_lock, "compare the code and params at HEAD with dvc.lock, without training")
    lock.add_argument("targets", nargs="*", metavar="target", help="default: every table that has published copies")
    lock.add_argument("--mark", action="store_true", help="let the published table say that it is stale, if it is")
    doctor = _verb(verbs, "doctor", diagnose, "say what stands in the way of a build, and the command that clears it")
    doctor.add_argument(
        "--unlock", action="store_true", help="remove Snakemake's lock if no live process holds this tree"
    )
    bench = _verb(
        verbs,
        "bench",
        measure,
        "print where a training step spends its time, and what a verb costs to start",
    )
    bench.add_argument("runs", nargs="*", help="default: every method at cpu scale")
    bench.add_argument("--steps", type=int, default=60)
    versus = _verb(verbs, "versus", compare, "compare speed and memory with lightly: a step, views, SMoG's groups")
    versus.add_argument("--parts", default="abc", help="a: a whole step; b: views alone; c: SMoG's groups")
    versus.add_argument("--rounds", type=int, default=9)
    versus.add_argument("--steps", type=int, default=20, help="steps of each side in a round")
    determinism = _verb(
        verbs, "determinism", rebuild, "rebuild runs under random SIGKILLs, compare every byte with the recorded claim"
    )
    determinism.add_argument("runs", nargs="*", metavar="run", help="default: each method's base run at cpu scale")
    determinism.add_argument("--kills", type=int, default=207, help="over all runs")
    determinism.add_argument("--seed", type=int, default=0, help="decides where the kills strike")
    determinism.add_argument("--jobs", type=int, default=1, help="runs side by side")
    return top


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    function: Callable[[argparse.Namespace], int],
    purpose: str,
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=purpose, description=purpose)
    verb.set_defaults(function=function)
    return verb


def work(options: argparse.Namespace) -> int:
    """Run one stage of the workflow in this process."""
    _pin()
    from polygrain.cli.work import run_stage

    run_stage(options.verb, options.directory, workflow=options.workflow, resume=getattr(options, "resume", False))
    return 0


def write_table(options: argparse.Namespace) -> int:
    """Write one table from results that exist."""
    _pin()
    from polygrain.cli.work import run_table

    run_table(options.target, workflow=options.workflow)
    return 0


def print_ledger(options: argparse.Namespace) -> int:
    """Print the ledger of all methods, or of one, as Markdown."""
    from polygrain.config.ledger import read_ledger
    from polygrain.report.ledger import render_markdown

    print(render_markdown(read_ledger(_project(), options.method)), end="")
    return 0


def show(options: argparse.Namespace) -> int:
    """Print a run's configuration, a line per value."""
    from polygrain.cli.describe import show_run

    print(show_run(_project(), options.run), end="")
    return 0


def plan(options: argparse.Namespace) -> int:
    """Print the jobs behind a table."""
    from polygrain.cli.describe import plan_table

    print(plan_table(_project(), options.target), end="")
    return 0


def record(options: argparse.Namespace) -> int:
    """Commit finished builds to DVC and publish their copies."""
    from polygrain.cli.claims import record_tables

    record_tables(_project(), options.targets)
    return 0


def check_lock(options: argparse.Namespace) -> int:
    """Exit 1 when the claim in dvc.lock is not what HEAD would build."""
    from polygrain.cli.claims import check_tables

    return check_tables(_project(), options.targets, mark=options.mark)


def diagnose(options: argparse.Namespace) -> int:
    """Print what stands in the way of a build."""
    from polygrain.cli.doctor import examine

    return examine(_project(), unlock=options.unlock)


def measure(options: argparse.Namespace) -> int:
    """Time the training step of one or several runs and the start of each verb."""
    _pin()
    from polygrain.cli.bench.run import bench

    bench(_project(), options.runs, options.steps)
    return 0


def compare(options: argparse.Namespace) -> int:
    """Measure this package against lightly, side by side; the measured processes pin themselves."""
    from polygrain.cli.versus.run import versus

    versus(_project(), parts=options.parts, rounds=options.rounds, steps=options.steps)
    return 0


def rebuild(options: argparse.Namespace) -> int:
    """Exit 1 when a run that was killed and resumed differs from the claim in any byte."""
    from polygrain.cli.determinism.run import determinism

    return determinism(_project(), options.runs, kills=options.kills, seed=options.seed, jobs=options.jobs)


def _project() -> Project:
    project = Project.here()
    os.chdir(project.root)
    return project


def _pin() -> None:
    """Restart this process with the pinned environment, before torch or numpy is imported."""
    pin_process([str(Path(sys.argv[0])), *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
