"""Verbs that check a number: where it comes from, how it changed, whether its history is explained."""

import argparse
from pathlib import Path

from polygrain.cli.verbs.common import Verbs, add, project


def add_to(verbs: Verbs) -> None:
    """Add these verbs to the command line."""
    tracing = add(verbs, "trace", trace, "print the chain from a cell of a table to the data, each file checked")
    tracing.add_argument("target")
    tracing.add_argument("--row", required=True, help="its label, or METHOD, or METHOD/VARIANT")
    tracing.add_argument("--column", required=True, help="its id in params/table")
    tracing.add_argument("--full", action="store_true", help="whole hashes")
    crate = add(verbs, "crate", write_crate, "write ro-crate-metadata.json beside finished tables: what ran, from what")
    crate.add_argument("targets", nargs="+", metavar="target")
    auditing = add(
        verbs, "audit", audit, "walk the history of dvc.lock: is every change of a result explained? Exit 1 if not"
    )
    ways = auditing.add_mutually_exclusive_group()
    ways.add_argument("--checkout", action="store_true", help="also run each commit's own check-lock")
    ways.add_argument("--cache", action="store_true", help="instead hash every stored object of that history again")
    ways.add_argument("--rebuild", metavar="TARGET", help="instead make one recorded file again, in a scratch clone")
    moves = add(verbs, "history", tell_history, "print how a number of a table changed over commits, and why")
    moves.add_argument("target")
    moves.add_argument("--row", required=True, help="a row's label, its METHOD or METHOD/VARIANT")
    moves.add_argument("--column", required=True, help="a column's id in params/table, or its printed label")
    moves.add_argument("--plot", metavar="FILE", default="", help="also draw it: a file that ends with png, pdf or svg")
    add(verbs, "example", example, "write a small repository with a history, to try audit on").add_argument("folder")


def trace(options: argparse.Namespace) -> int:
    """Print where one number comes from; exit 1 when a file on the way differs from its record."""
    from polygrain.audit.trace.run import trace as trace_cell

    return trace_cell(project(), options.target, options.row, options.column, full=options.full)


def write_crate(options: argparse.Namespace) -> int:
    """Write the RO-Crate of finished tables."""
    from polygrain.audit.write_crate import write_crates

    write_crates(project(), options.targets)
    return 0


def audit(options: argparse.Namespace) -> int:
    """Exit 1 when a recorded result changed without a reason."""
    from polygrain.audit.run import audit_cache, audit_project, audit_target

    if options.cache:
        return audit_cache(project())
    if options.rebuild:
        return audit_target(project(), options.rebuild)
    return audit_project(project(), checkout=options.checkout)


def tell_history(options: argparse.Namespace) -> int:
    """Print the history of one cell."""
    from polygrain.audit.history.run import print_history

    return print_history(project(), options.target, options.row, options.column, options.plot)


def example(options: argparse.Namespace) -> int:
    """Build an example repository."""
    folder = Path(options.folder).resolve()
    from polygrain.audit.example import make_example

    make_example(project(), folder)
    return 0
