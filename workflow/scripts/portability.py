"""The same bytes on every x86-64 processor with AVX2: operations, then whole jobs, natively and under an emulator.

python workflow/scripts/portability.py [TARGET ...] [--cpu NAME ...] [--operations]    needs Debian's qemu-user
python workflow/scripts/portability.py --pins    natively: what each pin of the instruction set is for

Exit status 1 when a byte differs. A processor is known by the name that the emulator was given and by the features that
numpy finds in it; /proc/cpuinfo would show the machine's own.
"""

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd
from common import INSTRUCTION_SET, SCRIPTS, environment, last_line, start
from tqdm import tqdm

from polygrain.attest.children import side_by_side
from polygrain.cli.main import main as verb
from polygrain.config.project import Project
from polygrain.config.stages import stages_behind
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import sha256_file
from polygrain.provenance.pins import pinned as all_pins
from polygrain.provenance.stage import Stage

EMULATOR, NATIVE = "qemu-x86_64", "native"
SMOKE = "reports/smoke-seeds1/table1.pdf"
FEATURES = (
    "from numpy._core._multiarray_umath import __cpu_features__ as found\n"
    "print(*(name for name in ('AVX2', 'FMA3', 'AVX512F', 'AVX512_SPR') if found.get(name)))"
)


@dataclass
class Findings:
    """What was found on one processor: its features, the libraries' choices, hashes by library or job, their seconds.

    The hashes are those of a library's operations, or of a job's files.
    """

    features: str
    choices: str
    hashes: dict[str, dict[str, str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def unequal(self, other: "Findings", group: str) -> list[str]:
        """What differs in a group, or is on one side only."""
        first, second = self.hashes.get(group, {}), other.hashes.get(group, {})
        return [name for name in {**first, **second} if first.get(name) != second.get(name)]


def command(cpu: str, *arguments: str) -> list[str]:
    """How to run Python natively or on an emulated processor.

    The interpreter itself, not its launcher in a virtual environment: what a launcher starts is not emulated.
    """
    interpreter = [str(Path(sys.executable).resolve()), *arguments]
    return interpreter if cpu == NATIVE else [EMULATOR, "-cpu", cpu, *interpreter]


def run(arguments: Sequence[str], folder: Path, pins: Mapping[str, str], log: Path, stop: threading.Event) -> None:
    """Run a process with its output in `log`. Raises UserError that shows its last line when it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("wb") as stream,
        subprocess.Popen(arguments, cwd=folder, env=pins, stdout=stream, stderr=stream) as made,
    ):
        while made.poll() is None and not stop.wait(0.05):
            pass
        made.kill()
    if made.returncode:
        status = f"ended by {signal.Signals(-made.returncode).name}" if made.returncode < 0 else "failed"
        said = last_line(log.read_text(encoding="utf-8", errors="replace"))
        raise UserError(f"{' '.join(arguments)}: {status}: {said} (see {log})")


def look(project: Project, cpu: str, pins: Mapping[str, str], place: Path, stop: threading.Event) -> Findings:
    """Ask one processor for its features and, with these pins, for the hash of every operation."""
    mkl, said = place / "mkl.txt", place / "operations.txt"
    free = environment(project, ["NPY_DISABLE_CPU_FEATURES"])  # numpy hides what a pin forbids
    run(command(cpu, "-c", FEATURES), project.root, free, place / "features.txt", stop)
    asked = {**pins, "MKL_VERBOSE": "1", "MKL_VERBOSE_OUTPUT_FILE": str(mkl)}
    run(command(cpu, str(SCRIPTS / "operations.py")), project.root, asked, said, stop)
    return read_operations((place / "features.txt").read_text(encoding="utf-8").splitlines()[-1], said, mkl)


def read_operations(features: str, said: Path, mkl: Path) -> Findings:
    """Read what `operations.py` printed, and which branch MKL reported. Raises UserError where it printed nothing."""
    lines = [json.loads(line) for line in said.read_text(encoding="utf-8").splitlines() if line.startswith(("{", "["))]
    branch = re.search(r"\bCNR:(\S+)", mkl.read_text(encoding="utf-8") if mkl.is_file() else "")
    if not lines or branch is None:
        raise UserError(f"{said}: holds no operations, or MKL reported none of its calls")
    seen = Findings(features, ", ".join(f"{name} {choice}" for name, choice in {**lines[0], "MKL": branch[1]}.items()))
    for library, name, digest, seconds in lines[1:]:
        seen.hashes.setdefault(library, {})[name] = digest
        seen.seconds[library] = seen.seconds.get(library, 0.0) + seconds
    return seen


def table(groups: Sequence[str], found: Mapping[str, Findings]) -> str:
    """A line per library or job: how many things were compared, native seconds, verdict and seconds elsewhere."""
    native, columns = found[NATIVE], pd.DataFrame(index=pd.Index(groups))
    columns["number"] = [len(native.hashes[group]) for group in groups]
    for name, seen in found.items():
        wrong = [len(native.unequal(seen, group)) for group in groups]
        columns[name] = [f"{count} differ" if count else "identical" for count in wrong]
        columns[f"{name}, s"] = [round(seen.seconds.get(group, 0)) for group in groups]
    return columns.drop(columns=NATIVE).to_string()


def pin_lines(pinned: Findings, others: Mapping[str, Findings]) -> list[str]:
    """A table in Markdown: what was left out, whose results are then other bits, and what the libraries choose."""
    total = sum(map(len, pinned.hashes.values()))
    rows = [f"| left out | other bits of {total} | by library | choices |", "| --- | ---: | --- | --- |"]
    for name, seen in others.items():
        wrong = {library: len(pinned.unequal(seen, library)) for library in pinned.hashes}
        where = "; ".join(f"{library}: {count}" for library, count in wrong.items() if count) or "none"
        label = f"{name} in place of its value" if "=" in name else name
        rows.append(f"| {label} | {sum(wrong.values())} | {where} | {seen.choices} |")
    return [pinned.features, "", *rows]


def child(cpu: str, arguments: Sequence[str]) -> int:
    """A job's process: refuse to work natively where an emulator was meant, or unpinned; then do the verb."""
    emulated = Path("/proc/self/comm").read_text(encoding="utf-8").startswith("qemu")
    if emulated != (cpu != NATIVE) or not all_pins():
        raise UserError(f"expected {cpu} with all pins; emulated: {emulated}, pinned: {all_pins()}")
    return verb(arguments)


def checkout(project: Project, place: Path) -> None:
    """A checkout of what jobs read; code and params are links to the project's."""
    shutil.copytree(project.root / "workflow", place / "workflow", dirs_exist_ok=True)
    shutil.copy2(project.root / "Snakefile", place)  # Snakemake works where the real file lies
    for source in ("params", "pyproject.toml", "requirements.lock", "src"):
        (place / source).symlink_to(project.root / source)


def build(project: Project, cpu: str, place: Path, stages: Sequence[Stage], seen: Findings) -> None:
    """Let Snakemake make everything in a checkout at `place`; what it calls `polygrain` runs on that processor."""
    checkout(project, place)
    wrapper, job = place / "bin" / "polygrain", command(cpu, str(SCRIPTS / "portability.py"), "--child", cpu)
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(job)} "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    path = {"PATH": os.pathsep.join((str(wrapper.parent), os.environ["PATH"]))}
    outputs = [str(stage.outputs[0]) for stage in stages]
    snakemake = [sys.executable, "-m", "snakemake", "--cores", "all", "--quiet", "all", "--", *outputs]
    run(snakemake, place, {**environment(project), **path}, place / "snakemake.txt", threading.Event())
    for stage in stages:
        seen.hashes[stage.name] = {str(path): sha256_file(place / path) for path in stage.outputs}
        timed = place / "benchmarks" / stage.sidecar.relative_to("records").with_suffix(".tsv")
        seen.seconds[stage.name] = float(timed.read_text(encoding="utf-8").splitlines()[1].split()[0])


def main(project: Project, options: argparse.Namespace) -> int:
    """Compare as the command line asks; all that is made lies in a temporary folder, which stays if something differs.

    Raises UserError without the emulator, on another kind of machine, and when a child fails.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        raise UserError(f"this machine is {platform.machine()}: the claim is about x86-64 processors; run it on one")
    if not options.pins and shutil.which(EMULATOR) is None:
        raise UserError(f"{EMULATOR} is not installed; on Debian and Ubuntu: apt-get install qemu-user")
    stages = [] if options.operations or options.pins else stages_behind(project, options.targets)
    sides = {name: (name, environment(project)) for name in (NATIVE, *dict.fromkeys(options.cpu))}
    if options.pins:
        left_out = {name: environment(project, [name]) for name in INSTRUCTION_SET}
        left_out["MKL_CBWR=AVX2"] = {**environment(project), "MKL_CBWR": "AVX2"}
        left_out["all of these"] = environment(project, INSTRUCTION_SET)
        sides = {NATIVE: sides[NATIVE], **{name: (NATIVE, pins) for name, pins in left_out.items()}}
    folder = Path(tempfile.mkdtemp(prefix="polygrain-portability-"))
    stop, cores = threading.Event(), len(os.sched_getaffinity(0))
    tasks = [partial(look, project, *side, folder / name, stop) for name, side in sides.items()]
    with tqdm(total=len(tasks), desc="operations", unit="process") as bar:
        found = dict(zip(sides, side_by_side(tasks, cores, stop.set, bar.update), strict=True))
    if options.pins:
        print("\n".join(pin_lines(found.pop(NATIVE), found)))
        shutil.rmtree(folder)
        return 0
    print("processors, and what the libraries chose there:")
    print("\n".join(f"  {name:<10}{seen.features}; {seen.choices}" for name, seen in found.items()), end="\n\n")
    print(table(list(found[NATIVE].hashes), found), end="\n\n", flush=True)
    if stages:
        for name in tqdm(found, desc="jobs", unit="processor"):  # natively first, as packing may fetch
            build(project, name, folder / name, stages, found[name])
        print(table([stage.name for stage in stages], found), end="\n\n")
    groups = [(name, group) for name in found for group in found[NATIVE].hashes]
    wrong = [f"{name}: {group}, {each}" for name, group in groups for each in found[NATIVE].unequal(found[name], group)]
    print("\n".join(f"different on {each}" for each in wrong) or f"the same bytes on {', '.join(found)}")
    if wrong:
        print(f"everything that was made lies in {folder}")
    else:
        shutil.rmtree(folder)
    return 1 if wrong else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(sys.argv[2], sys.argv[3:]))
    arguments = argparse.ArgumentParser(prog="portability.py", description="Same bytes on emulated processors?")
    arguments.add_argument("targets", nargs="*", default=[SMOKE], help="tables or runs; default: %(default)s")
    arguments.add_argument("--cpu", nargs="+", default=["Haswell", "EPYC"], help="default: %(default)s")
    arguments.add_argument("--operations", action="store_true", help="only single operations of every library: minutes")
    arguments.add_argument("--pins", action="store_true", help="only what each pin is for, natively: a minute")
    start(arguments, main)
