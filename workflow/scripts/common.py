"""What the measuring scripts share: the stages that they measure, child processes, and a number with its quartiles."""

import argparse
import os
import statistics
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from polygrain.config.project import Project
from polygrain.config.stages import stages_behind
from polygrain.provenance.errors import UserError
from polygrain.provenance.pins import PINS
from polygrain.provenance.stage import Stage

Result = TypeVar("Result")
SCRIPTS = Path(__file__).resolve().parent
# the pins that choose kernels by what the processor can do
INSTRUCTION_SET = [
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "NPY_DISABLE_CPU_FEATURES",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
]


def stages_of_run(project: Project, run: str) -> Sequence[Stage]:
    """A run's own stages, training first. Raises UserError on a bad run."""
    return [stage for stage in stages_behind(project, [run]) if stage.verb != "prepare"]


def check_data(project: Project, stages: Sequence[Stage]) -> None:
    """Raise UserError, with the command that helps, where a packed data set that the stages read is missing."""
    for path in (path for stage in stages for path in stage.inputs if path.parts[0] == "data"):
        if not (project.root / path).is_file():
            raise UserError(f"{path}: not there yet; build it with `snakemake --cores all {path}`")


def words_of(stage: Stage) -> list[str]:
    """The command line of a stage's verb."""
    return [stage.verb, "--workflow", str(stage.target)]


def environment(source: Path, without: Sequence[str] = ()) -> dict[str, str]:
    """The variables of a measured process: every pin but some, whatever is set here, and where the package is."""
    others = {name: value for name, value in os.environ.items() if name not in PINS}
    pins = {name: value for name, value in PINS.items() if name not in without}
    return {**others, **pins, "PYTHONPATH": str(source)}


def spread(values: Sequence[float], digits: int) -> str:
    """Median, and first and third quartile behind it."""
    several = [*values] * 2 if len(values) == 1 else values
    low, median, high = statistics.quantiles(several, n=4, method="inclusive")
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def last_line(text: str) -> str:
    """The last line that says something."""
    return text.replace("\r", "\n").strip().rpartition("\n")[2] or "it said nothing"


@contextmanager
def side_by_side(jobs: int) -> Iterator[tuple[ThreadPoolExecutor, threading.Event]]:
    """Threads for tasks that drive processes, and an event that tells them to stop: the body has ended or failed."""
    stopped = threading.Event()
    with ThreadPoolExecutor(jobs) as threads:
        try:
            yield threads, stopped
        finally:
            stopped.set()
            threads.shutdown(cancel_futures=True)


def each(threads: ThreadPoolExecutor, tasks: Mapping[str, Callable[[], Result]]) -> Iterator[tuple[str, Result]]:
    """Run tasks and yield each one's name and result as it ends; raises the first one's error."""
    futures = {threads.submit(task): name for name, task in tasks.items()}
    for future in as_completed(futures):
        yield futures[future], future.result()


def start(parser: argparse.ArgumentParser, function: Callable[[Project, argparse.Namespace], int]) -> None:
    """Run a script in the project around the working directory; a mistake of the user is one line and exit status 1."""
    options = parser.parse_args()
    try:
        project = Project.here()
        os.chdir(project.root)
        sys.exit(function(project, options))
    except (UserError, KeyboardInterrupt) as error:
        sys.exit(f"{parser.prog}: {str(error) or 'stopped'}")
