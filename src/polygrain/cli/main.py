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
        print(f"polygrain {options.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"polygrain {options.verb}: stopped", file=sys.stderr)
        return 130
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
    print(f"polygrain {options.verb}: {line}", file=sys.stderr)
    return 2


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
    restoring = _verb(
        verbs, "restore", restore, "bring recorded outputs back with proof, so that only what is stale runs"
    )
    restoring.add_argument("targets", nargs="+", metavar="target", help="a table, run or data set, or a file of one")
    lock = _verb(verbs, "check-lock", check_lock, "compare the code and params at HEAD with dvc.lock, without training")
    lock.add_argument("targets", nargs="*", metavar="target", help="default: every table in dvc.lock")
    lock.add_argument("--mark", action="store_true", help="let the published table say that it is stale, if it is")
    tracing = _verb(verbs, "trace", trace, "print the chain from a cell of a table to the data, each file checked")
    tracing.add_argument("target")
    tracing.add_argument("--row", required=True, help="its label, or METHOD, or METHOD/VARIANT")
    tracing.add_argument("--column", required=True, help="its id in params/table")
    tracing.add_argument("--full", action="store_true", help="whole hashes")
    crate = _verb(
        verbs, "crate", write_crate, "write ro-crate-metadata.json beside finished tables: what ran, from what"
    )
    crate.add_argument("targets", nargs="+", metavar="target")
    auditing = _verb(
        verbs, "audit", audit, "walk the history of dvc.lock: is every change of a result explained? Exit 1 if not"
    )
    ways = auditing.add_mutually_exclusive_group()
    ways.add_argument("--checkout", action="store_true", help="also let each commit judge itself: its own check-lock")
    ways.add_argument("--cache", action="store_true", help="instead hash every stored object of that history again")
    ways.add_argument("--rebuild", metavar="TARGET", help="instead make one recorded file again, in a scratch clone")
    moves = _verb(verbs, "history", tell_history, "print how a number of a table moved over commits, and why")
    moves.add_argument("target")
    moves.add_argument("--row", required=True, help="a row's label, its METHOD or METHOD/VARIANT")
    moves.add_argument("--column", required=True, help="a column's id in params/table, or its printed label")
    moves.add_argument("--plot", metavar="FILE", default="", help="also draw it: a file that ends with png, pdf or svg")
    _verb(verbs, "example", example, "write a small repository with a real past, to try audit on").add_argument(
        "folder"
    )
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
    bench.add_argument("--determinism", action="store_true", help="instead: what the same bits cost")
    bench.add_argument("--rounds", type=int, default=5, help="of --determinism")
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
    portable = _verb(
        verbs, "portability", compare_processors, "compare bytes natively and on emulated processors; needs qemu-user"
    )
    portable.add_argument("target", nargs="?", default="reports/smoke-seeds1/table1.pdf", help="default: %(default)s")
    portable.add_argument("--cpu", nargs="+", default=["Haswell", "EPYC"], help="default: %(default)s")
    portable.add_argument("--operations", action="store_true", help="only single operations of every library: minutes")
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
    from polygrain.cli.crate import publish_crates

    project = _project()
    record_tables(project, options.targets)
    publish_crates(project, options.targets)
    return 0


def restore(options: argparse.Namespace) -> int:
    """Bring back what dvc.lock vouches for."""
    from polygrain.cli.restore import restore_targets

    return restore_targets(_project(), options.targets)


def check_lock(options: argparse.Namespace) -> int:
    """Exit 1 when the claim in dvc.lock is not what HEAD would build."""
    from polygrain.cli.claims import check_tables

    return check_tables(_project(), options.targets, mark=options.mark)


def trace(options: argparse.Namespace) -> int:
    """Print where one number comes from; exit 1 when a file on the way is not what was written down."""
    from polygrain.cli.trace.run import trace as trace_cell

    return trace_cell(_project(), options.target, options.row, options.column, full=options.full)


def write_crate(options: argparse.Namespace) -> int:
    """Write the RO-Crate of finished tables."""
    from polygrain.cli.crate import write_crates

    write_crates(_project(), options.targets)
    return 0


def audit(options: argparse.Namespace) -> int:
    """Exit 1 when a recorded result changed without a reason."""
    from polygrain.cli.audit import audit_cache, audit_project, audit_target

    if options.cache:
        return audit_cache(_project())
    if options.rebuild:
        return audit_target(_project(), options.rebuild)
    return audit_project(_project(), checkout=options.checkout)


def tell_history(options: argparse.Namespace) -> int:
    """Print the past of one cell."""
    from polygrain.cli.history.run import print_history

    return print_history(_project(), options.target, options.row, options.column, options.plot)


def example(options: argparse.Namespace) -> int:
    """Build an example repository."""
    folder = Path(options.folder).resolve()
    from polygrain.cli.example import make_example

    make_example(_project(), folder)
    return 0


def diagnose(options: argparse.Namespace) -> int:
    """Print what stands in the way of a build."""
    from polygrain.cli.doctor import examine

    return examine(_project(), unlock=options.unlock)


def measure(options: argparse.Namespace) -> int:
    """Time the training step of one or several runs and the start of each verb, or the cost of determinism."""
    if options.determinism:
        from polygrain.cli.bench.determinism import determinism

        determinism(_project(), options.runs, steps=options.steps, rounds=options.rounds)
        return 0
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
def compare_processors(options: argparse.Namespace) -> int:
    """Exit 1 when a byte depends on the processor; the compared processes pin themselves."""
    from polygrain.cli.portability.run import portability

    return portability(_project(), options.target, options.cpu, jobs=not options.operations)


def _project() -> Project:
    project = Project.here()
    os.chdir(project.root)
    return project


def _pin() -> None:
    """Restart this process with the pinned environment, before torch or numpy is imported."""
    pin_process([str(Path(sys.argv[0])), *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
