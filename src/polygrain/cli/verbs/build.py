"""Verbs that make things, and those that say beforehand what would be made."""

import argparse

from polygrain.cli.verbs.common import Verbs, add, pin, project

WORKS = {
    "prepare": "read a data set from its source, verify it and pack it: data/NAME",
    "pretrain": "train one run: runs/SCALE/DATASET/METHOD/VARIANT/seedN",
    "features": "extract a run's frozen features for every data set it is judged on: runs/.../seedN",
    "evaluate": "judge a run by one protocol of params/evaluate: runs/.../seedN/results/PROTOCOL",
    "table": "write a table from the results: reports/[SCALE[-seedsN]/]NAME.pdf",
}


def add_to(verbs: Verbs) -> None:
    """Add these verbs to the command line."""
    for name, purpose in WORKS.items():
        verb = add(verbs, name, work, purpose)
        verb.add_argument("target")
        verb.add_argument(
            "--workflow", action="store_true", help="called by a rule: obey the inputs as written, end with it"
        )
        if name == "prepare":
            verb.add_argument(
                "--shards", action="store_true", help="only the shards of a restored copy, which are on no record"
            )
        if name == "pretrain":
            verb.add_argument(
                "--resume", action="store_true", help="go on with the half-done run or refuse; never start over"
            )
    deviations = add(
        verbs, "ledger", print_ledger, "print where a method's description, its release and our rebuild differ"
    )
    deviations.add_argument("method", nargs="?", default="", help="default: all methods")
    add(verbs, "show", show, "print a run's resolved configuration and where each value was set").add_argument("run")
    add(verbs, "plan", plan, "print the jobs behind a table with declared minutes and memory").add_argument("target")


def work(options: argparse.Namespace) -> int:
    """Run one stage of the workflow in this process."""
    pin()
    from polygrain.cli.work import pack_shards, run_stage

    if getattr(options, "shards", False):
        pack_shards(options.target, workflow=options.workflow)
        return 0
    resume = {"resume": True} if getattr(options, "resume", False) else {}
    run_stage(options.verb, options.target, workflow=options.workflow, **resume)
    return 0


def print_ledger(options: argparse.Namespace) -> int:
    """Print the ledger of all methods, or of one, as Markdown."""
    from polygrain.config.ledger import read_ledger
    from polygrain.report.ledger import render_markdown

    print(render_markdown(read_ledger(project(), options.method)), end="")
    return 0


def show(options: argparse.Namespace) -> int:
    """Print a run's configuration, a line per value."""
    from polygrain.cli.describe import show_run

    print(show_run(project(), options.run), end="")
    return 0


def plan(options: argparse.Namespace) -> int:
    """Print the jobs behind a table."""
    from polygrain.cli.describe import plan_table

    print(plan_table(project(), options.target), end="")
    return 0
