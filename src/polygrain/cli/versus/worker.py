"""One side of a comparison in a process of its own, and its other end: a line of JSON asks, a line of JSON answers.

The process is confined to its cores and pinned like a training job, stays warm between its turns, and is frozen with
its loader workers while the other side is timed, so that neither works in the other's time.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Protocol

from polygrain.provenance.errors import UserError
from polygrain.provenance.pins import PINS

Reply = dict[str, Any]

SIDES = {"polygrain": "polygrain.cli.versus.ours", "lightly": "polygrain.cli.versus.theirs"}


class Work(Protocol):
    """What a side does when it is asked: one class per part of the comparison, constructed from the job."""

    def prepare(self, threads: int, workers: int) -> None:
        """Use so many torch threads and loader workers from here on; called before the first `run`."""

    def run(self, steps: int) -> dict[str, float]:
        """Take `steps` steps; returns the seconds per phase, which add up to the time from end to end."""
        ...

    def close(self) -> None:
        """End what was started, so that the memory of loader workers can be read."""


class Side:
    """The near end: starts the process, asks it, freezes it between two questions."""

    def __init__(self, job: dict[str, Any]) -> None:
        """Start a side and wait until it is ready. `job`: side, part, cores and whatever that part's class reads.

        Raises UserError when the process ends or reports a fault, here and in `ask`.
        """
        self._name = f"{job['side']} {job['part']}"
        self._said = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  # lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "polygrain.cli.versus.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, **PINS},
            # a group in this session: should this process be killed, the kernel hangs up on a frozen group
            process_group=0,
            text=True,
        )
        try:
            self.ask(job)
        except BaseException:
            self.end()
            raise

    def ask(self, question: dict[str, Any]) -> Reply:
        """Thaw the process, wait for its answer, freeze it again."""
        questions, answers = self._process.stdin, self._process.stdout
        assert questions is not None, "opened as a pipe"
        assert answers is not None, "opened as a pipe"
        self._signal(signal.SIGCONT)
        try:
            questions.write(json.dumps(question) + "\n")
            questions.flush()
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise UserError(f"versus: the process of {self._name} ended without an answer: {self._last_words()}")
        self._signal(signal.SIGSTOP)
        reply: Reply = json.loads(line)
        if "error" in reply:
            raise UserError(f"versus: {self._name}: {reply['error']}")
        return reply

    def end(self) -> None:
        """End the process and all that it started, frozen or not."""
        self._signal(signal.SIGKILL)
        self._process.communicate()
        self._said.close()

    def _signal(self, number: int) -> None:
        """To the whole group: loader workers belong to it. A process that is not collected keeps its group's number."""
        if self._process.returncode is None:
            os.killpg(self._process.pid, number)

    def _last_words(self) -> str:
        self._said.seek(0)
        lines = self._said.read().split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")


@contextmanager
def side(job: dict[str, Any]) -> Iterator[Side]:
    """Start a side; it ends with the block."""
    started = Side(job)
    try:
        yield started
    finally:
        started.end()


def main() -> None:
    """Serve questions from standard input until it closes; the first one is the job."""
    # what libraries print must not get between the answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    work: Work | None = None
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if work is None:
                work, reply = _start(question), {}
            else:
                reply = _answer(work, question)
        except UserError as error:
            reply = {"error": str(error)}
        except Exception as error:  # one line for a person, whatever a library raised
            reply = {"error": f"{type(error).__name__}: {error}".replace("\n", " ")}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


def _start(job: dict[str, Any]) -> Work:
    os.sched_setaffinity(0, job["cores"])
    from polygrain.provenance.pins import pin_torch

    pin_torch()
    work: Work = import_module(SIDES[job["side"]]).WORKS[job["part"]](job)
    return work


def _answer(work: Work, question: dict[str, Any]) -> Reply:
    match question["do"]:
        case "prepare":
            work.prepare(question["threads"], question["workers"])
            return {}
        case "run":
            return {"phases": work.run(question["steps"])}
        case _:
            work.close()
            own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            return {"memory": own / 1024, "child": child / 1024}


if __name__ == "__main__":
    main()
