"""Rebuild runs under random kills and compare every byte with the recorded claim."""

import shutil
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

from tqdm import tqdm

from polygrain.cli.determinism.child import run as run_verb
from polygrain.cli.determinism.plan import shares
from polygrain.cli.determinism.rebuild import Rebuild, Tally
from polygrain.cli.determinism.scratch import FOLDER, Reference, folder_of, hashes, recorded, scratch_project, stages_of
from polygrain.config.compose import choices
from polygrain.config.project import Project
from polygrain.config.runs import Run
from polygrain.config.stages import Stage
from polygrain.provenance.errors import UserError

SCALE, DATASET = "cpu", "fashion-mnist"
PLACES = (
    ("start-up", "while it started, before the first step"),
    ("mid-epoch", "inside an epoch"),
    ("about an epoch's end", "within a few steps of an epoch's end"),
    ("saving", "while the resume state was written"),
    ("publishing", "while checkpoint and metrics got their final names"),
    ("features", "in features"),
    ("evaluate", "in evaluation"),
)
HEADS = ("run", "steps", "kills", "mid-epoch", "resumes", "files compared", "mismatches", "reference")


def determinism(project: Project, runs: Sequence[str], *, kills: int, seed: int, jobs: int) -> int:
    """Print a table of what was killed and compared; returns 1 when a byte differs, else 0.

    The reference of a run is what dvc.lock claims; where it has no claim on this code, these params and these data,
    the run is made once without a kill. Works in build/determinism alone and clears it when nothing differs. Raises
    UserError on a bad run and without the data.
    """
    chosen = [Run.parse(path) for path in runs] or _default_runs(project)
    if jobs < 1 or kills < len(chosen):
        raise UserError(f"determinism: {kills} kills, {jobs} jobs; give each of {len(chosen)} runs a kill, and a job")
    with folder_of(project) as folder:
        work = Work(project, Project(folder / "killed"), Project(folder / "reference"), seed)
        with tqdm(total=kills, unit="kill", desc="determinism") as bar:
            tallies = work.go(chosen, kills, jobs, bar)
        print(table(tallies, seed))
        faults = [fault for tally in tallies for fault in tally.faults]
        if not faults:
            shutil.rmtree(folder)
    for fault in faults:
        print(fault)
    if faults:
        print(f"what was built is left in {FOLDER}")
    return 1 if faults else 0


class Work:
    """The runs of one call, in two scratch projects: one under kills, one for references that dvc.lock lacks."""

    def __init__(self, project: Project, killed: Project, reference: Project, seed: int) -> None:
        self.killed = scratch_project(project, killed.root)
        self.reference = scratch_project(project, reference.root)
        self.seed = seed
        self._stopped = threading.Event()

    def go(self, runs: Sequence[Run], kills: int, jobs: int, bar: "tqdm[Any]") -> list[Tally]:
        """Do all runs, `jobs` side by side. A fault or an interrupt ends them all."""
        tasks = []
        for run, share in zip(runs, shares(kills, len(runs)), strict=True):
            stages = stages_of(self.killed, run)
            reference = recorded(self.killed, stages)
            if not reference.claims:
                stages_of(self.reference, run)
            tasks.append(partial(self._one, run, stages, reference, share, bar))
        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(task) for task in tasks]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                return [future.result() for future in futures]
            finally:
                self._stopped.set()
                pool.shutdown(cancel_futures=True)

    def _one(self, run: Run, stages: Sequence[Stage], reference: Reference, kills: int, bar: "tqdm[Any]") -> Tally:
        tally = Tally(run, stages[0].config["steps"], reference.reason)
        claims = reference.claims
        if not claims:
            bar.write(f"{run.path}: {reference.reason}; made once without a kill, as reference")
            for stage in stages:
                run_verb(stage.verb, stage.directory, self.reference.root, None, 0.0, self._stopped.is_set)
            claims = hashes(self.reference.root, stages)

        Rebuild(self.killed.root, stages, claims, tally, self._stopped.is_set, bar.update).go(kills, self.seed)
        return tally


def table(tallies: Sequence[Tally], seed: int) -> str:
    """The account in Markdown: a line per run and in all, and where the kills struck."""
    places = sum((tally.kills for tally in tallies), Counter[str]())
    lines = [f"| {' | '.join(HEADS)} |", f"| :-- |{' --: |' * (len(HEADS) - 2)} :-- |", *map(_row, tallies)]
    sums = [sum(column) for column in zip(*map(_numbers, tallies), strict=True)]
    lines.append(f"| **in all** | {' | '.join(f'{number:,}' for number in sums)} | |")
    struck = "; ".join(f"{places[place]} {words}" for place, words in PLACES if places[place])
    return "\n".join([*lines, "", f"{places.total()} kill points from seed {seed}: {struck}."])


def _row(tally: Tally) -> str:
    numbers = " | ".join(f"{number:,}" for number in _numbers(tally))
    return f"| {tally.run.path} | {numbers} | {tally.reference or 'dvc.lock'} |"


def _numbers(tally: Tally) -> list[int]:
    kills = tally.kills
    return [tally.steps, kills.total(), kills["mid-epoch"], tally.resumes, tally.compared, len(tally.faults)]


def _default_runs(project: Project) -> list[Run]:
    return [Run(SCALE, DATASET, method, "base", 0) for method in choices(project.params, "method")]
