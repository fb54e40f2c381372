"""The verbs: what each is given on the command line, and the function that does it.

A function is loaded only when its verb is called. It takes the project, then what the verb works on, then the options
by name. It returns the exit status (None: 0), or a text to print.
"""

import argparse
import os
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from polygrain.config.project import Project
from polygrain.provenance.pins import pin_process

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Verbs = argparse._SubParsersAction

WORKS = {
    "prepare": "read a data set from its source, verify it and pack it: data/NAME",
    "compose": "make scenes with exact annotations of packed data sets: data/NAME",
    "pretrain": "train one run: runs/SCALE/DATASET/METHOD/VARIANT/seedN",
    "features": "extract a run's frozen features for every data set it is judged on: runs/.../seedN",
    "evaluate": "judge a run by one protocol of params/evaluate: runs/.../seedN/results/PROTOCOL",
    "table": "write a table from the results: reports/[SCALE[-seedsN]/]NAME.pdf",
}
SUBJECTS = ("target", "targets", "run", "method", "folder")
"""What a verb works on."""


def add(verbs: Verbs, name: str, function: str, purpose: str, *, pinned: bool = False) -> argparse.ArgumentParser:
    """Add a verb that is done by `function`, MODULE:NAME in this package; `pinned`: in a process with the pins."""
    verb = verbs.add_parser(name, help=purpose, description=purpose)
    verb.set_defaults(function=partial(_do, function, pinned))
    return verb


def _do(function: str, pinned: bool, options: argparse.Namespace) -> int:
    """Call the function of a verb in the project around the working directory, which becomes its root."""
    if pinned:  # before torch or numpy is imported
        pin_process([str(Path(sys.argv[0])), *sys.argv[1:]])
    module, _, name = function.partition(":")
    project = Project.here()
    os.chdir(project.root)
    given = {key: value for key, value in vars(options).items() if key not in ("verb", "function")}
    subjects = [given.pop(key) for key in SUBJECTS if key in given]
    said: int | str | None = getattr(import_module(f"polygrain.{module}"), name)(project, *subjects, **given)
    if isinstance(said, str):
        print(said, end="")
    return said if isinstance(said, int) else 0


def add_builders(verbs: Verbs) -> None:
    """Add the verbs that make things, and those that say beforehand what would be made."""
    for name, purpose in WORKS.items():
        verb = add(verbs, name, "cli.work:run_stage", purpose, pinned=True)
        verb.set_defaults(kind=name)
        verb.add_argument("target")
        verb.add_argument(
            "--workflow", action="store_true", help="called by a rule: obey the inputs as written, end with it"
        )
        if name == "prepare":
            verb.add_argument(
                "--shards", action="store_true", help="only the shards of a restored copy, which are not recorded"
            )
        if name == "pretrain":
            verb.add_argument(
                "--resume", action="store_true", help="continue the half-done run or refuse; never start over"
            )
    purpose = "print where a method's description, its release and our rebuild differ"
    ledger = add(verbs, "ledger", "cli.describe:show_ledger", purpose)
    ledger.add_argument("method", nargs="?", default="", help="default: all methods")
    purpose = "print a run's resolved configuration and where each value was set"
    add(verbs, "show", "cli.describe:show_run", purpose).add_argument("run")
    purpose = "print the jobs behind a table with declared minutes and memory"
    add(verbs, "plan", "cli.describe:plan_table", purpose).add_argument("target")


def add_keepers(verbs: Verbs) -> None:
    """Add the verbs around what is on record: put it there, bring it back, check it; and what hinders a build."""
    purpose = "after a successful build: commit it to DVC, publish copies"
    recording = add(verbs, "record", "cli.claims:record_tables", purpose)
    recording.add_argument("targets", nargs="+", metavar="target")
    purpose = "bring recorded outputs back with proof, so that only what is stale runs"
    restoring = add(verbs, "restore", "cli.restore:restore_targets", purpose)
    restoring.add_argument("targets", nargs="+", metavar="target", help="a table, run or data set, or a file of one")
    purpose = "compare the code and params at HEAD with dvc.lock, without training"
    lock = add(verbs, "check-lock", "cli.claims:check_tables", purpose)
    lock.add_argument("targets", nargs="*", metavar="target", help="default: every table in dvc.lock")
    lock.add_argument("--mark", action="store_true", help="let the published table say that it is stale, if it is")
    purpose = "after a refactoring: prove by running that recorded runs stay as they are"
    proving = add(verbs, "attest", "cli.attest:attest_targets", purpose, pinned=True)
    proving.add_argument("targets", nargs="*", metavar="target", help="default: every table in dvc.lock")
    proving.add_argument(
        "--from", dest="commit", default="", metavar="COMMIT", help="the recorded code; default: found in git"
    )
    proving.add_argument("--steps", type=int, default=100, help="that each run repeats, at least; default: %(default)s")
    proving.add_argument("--jobs", "--cores", type=int, help="runs side by side; default: as many as there are cores")
    purpose = "say what blocks a build, and the command that clears it"
    doctor = add(verbs, "doctor", "cli.doctor:examine", purpose)
    doctor.add_argument(
        "--unlock", action="store_true", help="remove Snakemake's lock if no live process holds this tree"
    )


def add_checkers(verbs: Verbs) -> None:
    """Add the verbs that check a number: where it comes from, how it changed, whether its history is explained."""
    purpose = "print the chain from a cell of a table to the data, each file checked"
    tracing = add(verbs, "trace", "audit.trace.run:trace", purpose)
    tracing.add_argument("target")
    tracing.add_argument("--row", required=True, help="its label, or METHOD, or METHOD/VARIANT")
    tracing.add_argument("--column", required=True, help="its id in params/table")
    tracing.add_argument("--full", action="store_true", help="whole hashes")
    purpose = "write ro-crate-metadata.json beside finished tables: what ran, from what"
    crate = add(verbs, "crate", "audit.write_crate:write_crates", purpose)
    crate.add_argument("targets", nargs="+", metavar="target")
    purpose = "walk the history of dvc.lock: is every change of a result explained? Exit 1 if not"
    ways = add(verbs, "audit", "audit.run:audit", purpose).add_mutually_exclusive_group()
    ways.add_argument("--checkout", action="store_true", help="also run each commit's own check-lock")
    ways.add_argument("--cache", action="store_true", help="instead hash every stored object of that history again")
    ways.add_argument("--rebuild", metavar="TARGET", help="instead make one recorded file again, in a scratch clone")
    purpose = "print how a number of a table changed over commits, and why"
    moves = add(verbs, "history", "audit.history.run:print_history", purpose)
    moves.add_argument("target")
    moves.add_argument("--row", required=True, help="a row's label, its METHOD or METHOD/VARIANT")
    moves.add_argument("--column", required=True, help="a column's id in params/table, or its printed label")
    moves.add_argument("--plot", metavar="FILE", default="", help="also draw it: a file that ends with png, pdf or svg")
    purpose = "write a small repository with a history, to try audit on"
    # relative to where the user is, not to the project's root
    example = add(verbs, "example", "audit.example:make_example", purpose)
    example.add_argument("folder", type=lambda text: Path(text).resolve())
