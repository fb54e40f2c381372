"""`polygrain portability`: operations, then every job of a table or a run, natively and on emulated processors."""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from polygrain.cli.claims import stages_of
from polygrain.cli.portability.children import Children, children
from polygrain.cli.portability.compare import Outcome, Seen, differences, job_lines, operation_lines, read_operations
from polygrain.cli.portability.processor import NATIVE, command, emulator, variables
from polygrain.config.inputs import write_inputs
from polygrain.config.project import Project
from polygrain.config.stages import VERBS, Stage
from polygrain.provenance.files import sha256_file

# what jobs read of a checkout; all else they make
CHECKOUT = ("Snakefile", "params", "pyproject.toml", "requirements.lock", "src", "workflow")
# how many times as long an emulated job takes; only the estimate of the remaining time depends on it
EMULATED = 30


def portability(project: Project, targets: Sequence[str], cpus: Sequence[str], *, jobs: bool) -> int:
    """Compare operations and, with `jobs`, the outputs of every job behind tables or runs; 1 when a byte differs.

    All that is made lies in a temporary folder, which stays if something differs. Raises UserError without the
    emulator, and when a child fails.
    """
    emulator()
    stages = stages_of(project, targets) if jobs else []
    names = (NATIVE, *dict.fromkeys(cpus))
    folder = Path(tempfile.mkdtemp(prefix="polygrain-portability-"))
    with children() as several:
        seen = look(project, names, folder, several)
        print("\n".join(operation_lines(seen)), flush=True)
        outcomes = work(project, stages, seen, folder, several) if jobs else {}
        if jobs:
            print("\n".join(job_lines([stage.name for stage in stages], outcomes)))
    found = differences(seen, outcomes)
    print("\n".join(found) or f"the same bytes on {', '.join(names)}")
    if found:
        print(f"everything that was made lies in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def look(project: Project, names: Sequence[str], folder: Path, several: Children) -> dict[str, Seen]:
    """What each processor's processes see, and the hash of every operation there."""

    def ask(name: str) -> Seen:
        start, place = time.perf_counter(), folder / name
        verbose = place / "mkl.txt"
        environment = {**variables(project.source), "MKL_VERBOSE": "1", "MKL_VERBOSE_OUTPUT_FILE": str(verbose)}
        arguments = command(name, "polygrain.cli.portability.operations")
        several.run(arguments, project.root, environment, place / "operations.txt")
        return read_operations(place / "operations.txt", verbose, time.perf_counter() - start)

    tasks = {name: partial(ask, name) for name in names}
    with tqdm(total=len(tasks), desc="operations", unit="processor") as bar:
        found = {}
        for name, answer in several.each(tasks):
            found[name] = answer
            bar.update()
    return {name: found[name] for name in names}


def work(
    project: Project, stages: Sequence[Stage], seen: dict[str, Seen], folder: Path, several: Children
) -> dict[str, Outcome]:
    """Do the jobs on every processor, each in a checkout of its own; native packing comes first, as it may fetch."""
    outcomes = {name: Outcome() for name in seen}
    for name in seen:
        checkout(project, folder / name)
        for stage in stages:
            write_inputs(Project(folder / name), stage)
    cost = {name: 1 if name == NATIVE else EMULATED for name in seen}
    weight = {stage.name: round(60 * stage.minutes) + 5 for stage in stages}
    with tqdm(total=sum(weight.values()) * sum(cost.values()), desc="jobs", unit="") as bar:

        def do(name: str, chain: Sequence[Stage]) -> None:
            for stage in chain:
                start = time.perf_counter()
                expected = str(seen[name].processor)
                run = command(name, "polygrain.cli.portability.child", expected, *words_of(stage))
                log = folder / name / "logs" / f"{stage.name}.log"
                several.run(run, folder / name, variables(project.source), log)
                hashes = {str(path): sha256_file(folder / name / path) for path in stage.outputs}
                outcomes[name].add(stage.name, time.perf_counter() - start, hashes)
                bar.update(weight[stage.name] * cost[name])

        for phase in phases(stages, list(seen)):
            tasks: dict[str, Callable[[], None]] = {}
            for name, chain in phase:
                tasks[f"{name} {chain[0].name}"] = partial(do, name, chain)
            for _ in several.each(tasks):
                pass
    return outcomes


def checkout(project: Project, folder: Path) -> None:
    """A checkout whose sources are links to the project's."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in CHECKOUT:
        (folder / name).symlink_to((project.root / name).resolve())


def words_of(stage: Stage) -> tuple[str, str, str]:
    """The command line of a stage's verb: a table's stage is named after the table."""
    if stage.verb in VERBS:
        return stage.verb, "--workflow", str(stage.directory)
    return "table", "--workflow", str(stage.outputs[0])


def phases(stages: Sequence[Stage], names: Sequence[str]) -> list[list[tuple[str, list[Stage]]]]:
    """Chains of jobs by processor: those of a phase run side by side, phases one after the other."""
    packing = [[stage] for stage in stages if stage.verb == "prepare"]
    runs: dict[Path, list[Stage]] = {}
    for stage in stages:
        if stage.verb in VERBS and stage.verb != "prepare":
            runs.setdefault(stage.directory, []).append(stage)
    tables = [[stage] for stage in stages if stage.verb not in VERBS]
    others = [name for name in names if name != NATIVE]
    order = ((packing, [NATIVE]), (packing, others), (list(runs.values()), names), (tables, names))
    return [[(name, chain) for chain in chains for name in where] for chains, where in order]
