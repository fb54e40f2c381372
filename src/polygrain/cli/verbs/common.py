"""What the verbs share: how one is added to the command line, the project that it works in, the pinned process."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from polygrain.config.project import Project
from polygrain.provenance.pins import pin_process

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Verbs = argparse._SubParsersAction


def add(
    verbs: Verbs, name: str, function: Callable[[argparse.Namespace], int], purpose: str
) -> argparse.ArgumentParser:
    """Add a verb whose `function` returns the exit status; it imports what it needs when it is called."""
    verb = verbs.add_parser(name, help=purpose, description=purpose)
    verb.set_defaults(function=function)
    return verb


def project() -> Project:
    """The project around the working directory, which becomes its root."""
    found = Project.here()
    os.chdir(found.root)
    return found


def pin() -> None:
    """Restart this process with the pinned environment, before torch or numpy is imported."""
    pin_process([str(Path(sys.argv[0])), *sys.argv[1:]])
