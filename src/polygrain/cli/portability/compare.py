"""What was seen and made on each processor, side by side with the native one."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from polygrain.cli.portability.processor import NATIVE, Processor
from polygrain.provenance.errors import UserError


@dataclass(frozen=True)
class Seen:
    """What one processor's processes saw and chose, and the hash of each operation's result by library."""

    processor: Processor
    chosen: dict[str, str]
    operations: dict[str, dict[str, str]]
    seconds: float


@dataclass
class Outcome:
    """Seconds of each job on one processor, and the hashes of its files."""

    seconds: dict[str, float] = field(default_factory=dict)
    files: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, job: str, seconds: float, files: dict[str, str]) -> None:
        """Note a finished job."""
        self.seconds[job], self.files[job] = seconds, files


def read_operations(said: Path, mkl: Path, seconds: float) -> Seen:
    """Read what the module `operations` printed, and which branch MKL reported.

    Raises UserError where it printed nothing of its own.
    """
    lines = [line for line in said.read_text().splitlines() if line.startswith(("{", "["))]
    branch = re.search(r"\bCNR:(\S+)", mkl.read_text() if mkl.is_file() else "")
    if not lines or branch is None:
        raise UserError(f"{said}: holds no operations, or MKL reported none of its calls")
    head = json.loads(lines[0])
    found = Processor(head["vendor"], head["model"], tuple(head["features"]))
    operations: dict[str, dict[str, str]] = {}
    for library, name, digest in map(json.loads, lines[1:]):
        operations.setdefault(library, {})[name] = digest
    chosen = {"torch": head["torch"], "numpy": head["numpy"], "MKL": branch[1]}
    return Seen(found, chosen, operations, seconds)


def operation_lines(seen: Mapping[str, Seen]) -> list[str]:
    """The processors, and how many operations of each library gave the native bits."""
    native, lines = seen[NATIVE], ["processors, as CPUID shows them, and what the libraries chose there:"]
    for name, what in seen.items():
        choices = ", ".join(f"{library} {choice}" for library, choice in what.chosen.items())
        lines.append(f"  {name:<10}{what.processor}; {choices}; {what.seconds:.0f} s")
    others = [name for name in seen if name != NATIVE]
    lines += ["", f"{'operations':<28}{'number':>8}" + "".join(f"{name:>18}" for name in others)]
    for library, operations in native.operations.items():
        row = f"{library:<28}{len(operations):>8}"
        for name in others:
            wrong = unequal(operations, seen[name].operations.get(library, {}))
            row += f"{f'{len(wrong)} differ' if wrong else 'identical':>18}"
        lines.append(row)
    return [*lines, ""]


def job_lines(jobs: Sequence[str], outcomes: Mapping[str, Outcome]) -> list[str]:
    """A line per job: number of files, native seconds, and the verdict and the seconds on each other processor."""
    others = [name for name in outcomes if name != NATIVE]
    width = max(map(len, jobs), default=0) + 2
    head = f"{'job':<{width}}{'files':>6}{NATIVE:>10}" + "".join(f"{name:>22}" for name in others)
    lines, native = [head], outcomes[NATIVE]
    for job in jobs:
        row = f"{job:<{width}}{len(native.files[job]):>6}{native.seconds[job]:>8.0f} s"
        for name in others:
            wrong = unequal(native.files[job], outcomes[name].files[job])
            row += f"{f'{len(wrong)} differ' if wrong else 'identical':>14}{outcomes[name].seconds[job]:>6.0f} s"
        lines.append(row)
    total = "".join(f"{'':>14}{sum(outcomes[name].seconds.values()):>6.0f} s" for name in others)
    files = sum(map(len, native.files.values()))
    return [*lines, f"{'all':<{width}}{files:>6}{sum(native.seconds.values()):>8.0f} s{total}"]


def differences(seen: Mapping[str, Seen], outcomes: Mapping[str, Outcome]) -> list[str]:
    """A line per operation and file that is not the native one."""
    lines = []
    for name in seen:
        for library, operations in seen[NATIVE].operations.items():
            for wrong in unequal(operations, seen[name].operations.get(library, {})):
                lines.append(f"different on {name}: {library}, {wrong}")
    for name, outcome in outcomes.items():
        for job, files in outcomes[NATIVE].files.items():
            lines += [f"different on {name}: {wrong}" for wrong in unequal(files, outcome.files.get(job, {}))]
    return lines


def unequal(first: Mapping[str, str], second: Mapping[str, str]) -> list[str]:
    """Names whose hashes differ or that only one side has."""
    return [name for name in {**first, **second} if first.get(name) != second.get(name)]
