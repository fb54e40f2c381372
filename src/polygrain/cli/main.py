"""The command line: the verbs that people type are the verbs that the workflow's rules call."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import TextIOWrapper

from polygrain.cli.faults import explain  # imported early: with a full disk no module can be loaded
from polygrain.cli.verbs import add_builders, add_checkers, add_keepers
from polygrain.provenance.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status: 0, or 2 after one line that says what is wrong and what to do."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # no locale decides what can be printed
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
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
    """One line for a fault of the machine; a bug is raised again."""
    line = explain(error, getattr(options, "target", None) or "here")
    if line is None:
        raise error
    with suppress(OSError):  # else Python writes the rest of the output at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):  # the reader of our output has closed it
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
    for add_group in (add_builders, add_keepers, add_checkers):
        add_group(verbs)
    return top


if __name__ == "__main__":
    sys.exit(main())
