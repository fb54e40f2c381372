"""What the measuring scripts share: stages to measure, a process's environment, and a number with its quartiles."""

import argparse
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from polygrain.config.project import Project
from polygrain.provenance.errors import UserError
from polygrain.provenance.pins import PINS
from polygrain.provenance.stage import Stage

SCRIPTS = Path(__file__).resolve().parent
# the pins that choose kernels by what the processor can do
INSTRUCTION_SET = [
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "NPY_DISABLE_CPU_FEATURES",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
]


def check_data(project: Project, stages: Sequence[Stage]) -> None:
    """Raise UserError, with the command that helps, where a packed data set that the stages read is missing."""
    for path in (path for stage in stages for path in stage.inputs if path.parts[0] == "data"):
        if not (project.root / path).is_file():
            raise UserError(f"{path}: not there yet; build it with `snakemake --cores all {path}`")


def environment(project: Project, without: Sequence[str] = ()) -> dict[str, str]:
    """The variables of a measured process: every pin but some, whatever is set here, and where its modules are."""
    others = {name: value for name, value in os.environ.items() if name not in PINS}
    pins = {name: value for name, value in PINS.items() if name not in without}
    installed = sysconfig.get_paths()  # an emulated interpreter does not know its virtual environment
    modules = dict.fromkeys((str(project.source), str(SCRIPTS), installed["purelib"], installed["platlib"]))
    return {**others, **pins, "PYTHONPATH": os.pathsep.join(modules)}


def spread(values: Iterable[float], digits: int) -> str:
    """Median, and first and third quartile behind it."""
    low, median, high = np.quantile(list(values), (0.25, 0.5, 0.75))
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not 1 or more")
    return int(text)


def last_line(text: str) -> str:
    """The last line that says something."""
    return text.replace("\r", "\n").strip().rpartition("\n")[2] or "it said nothing"


def start(parser: argparse.ArgumentParser, function: Callable[[Project, argparse.Namespace], int]) -> None:
    """Run a script in the project around the working directory; a mistake of the user is one line and exit status 1."""
    options = parser.parse_args()
    try:
        project = Project.here()
        os.chdir(project.root)
        sys.exit(function(project, options))
    except (UserError, KeyboardInterrupt) as error:
        sys.exit(f"{parser.prog}: {str(error) or 'stopped'}")
