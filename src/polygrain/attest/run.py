"""`polygrain attest`: prove by running that the present code gives the recorded results."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from polygrain.attest.changed import Place, places_to_run
from polygrain.attest.children import Children, side_by_side
from polygrain.attest.definitions import Tree
from polygrain.attest.evidence import Laboratory, Observed
from polygrain.attest.states import copy_checkout, find_old
from polygrain.attest.subject import Subject, find_subject, other_difference
from polygrain.config.inputs import write_inputs
from polygrain.config.project import Project
from polygrain.config.stages import stage_of
from polygrain.provenance.attestations import Attestation, chain, read_attestations, write_attestations
from polygrain.provenance.environment import environment
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import read_json
from polygrain.provenance.hashes import md5_file
from polygrain.provenance.lock import LOCK, read_lock
from polygrain.provenance.scratch import clone
from polygrain.provenance.stage import Stage


@dataclass
class Verdict:
    """The verdict on one run; attested if there is no objection."""

    directory: Path
    state: str
    """current, attested, refused, or what prevents the comparison."""
    objections: list[str] = field(default_factory=list)
    attestation: Attestation | None = None


def attest(project: Project, stages: Sequence[Stage], *, commit: str, least: int, jobs: int) -> list[Verdict]:
    """Attest each pretrain stage among `stages` whose code or environment alone differs from its record.

    `commit`: the old code, empty for a search. `least`: steps that each run repeats, at least. Appends to the file of
    attestations. Raises UserError where the old code is not found or a process cannot be run at all.
    """
    trained = [stage for stage in stages if stage.verb == "pretrain"]
    subjects, verdicts = _subjects(project, trained)
    if subjects:
        with tempfile.TemporaryDirectory(prefix="polygrain-attest-") as folder:
            verdicts += _Work(project, Path(folder).resolve(), subjects, commit, least).go(jobs)
    fresh = [verdict.attestation for verdict in verdicts if verdict.attestation]
    if fresh:
        replaced = [(item.outputs, item.old) for item in fresh]
        kept = [item for item in read_attestations(project.root) if (item.outputs, item.old) not in replaced]
        write_attestations(project.root, [*kept, *fresh])
    order = {stage.directory: number for number, stage in enumerate(trained)}
    return sorted(verdicts, key=lambda verdict: order[verdict.directory])


def _subjects(project: Project, stages: Sequence[Stage]) -> tuple[list[Subject], list[Verdict]]:
    """The runs to compare, and a verdict on each of the others."""
    lock, known = read_lock(project.root), read_attestations(project.root)
    subjects, verdicts = list[Subject](), list[Verdict]()
    for stage in stages:
        write_inputs(project, stage)
        subject = find_subject(stage, lock, project.root)
        if subject is None:
            verdicts.append(Verdict(stage.directory, "refused", [f"not in {LOCK}; train it"]))
        elif subject.old == subject.new:
            verdicts.append(Verdict(stage.directory, "current"))
        elif chain(known, subject.outputs, subject.old, subject.new):
            verdicts.append(Verdict(stage.directory, "attested"))
        elif reason := other_difference(subject, project.root) or _missing_metrics(subject, project.root):
            verdicts.append(Verdict(stage.directory, "refused", [reason]))
        else:
            subjects.append(subject)
    return subjects, verdicts


def _missing_metrics(subject: Subject, root: Path) -> str:
    metrics = subject.stage.outputs[1]
    if (root / metrics).is_file() and md5_file(root / metrics) == subject.outputs[metrics.as_posix()]:
        return ""
    return f"{metrics}: not in place as recorded; bring it back with `dvc checkout` or `dvc pull`"


class _Work:
    """Everything for runs that one commit made, in a scratch folder."""

    def __init__(self, project: Project, folder: Path, subjects: Sequence[Subject], commit: str, least: int) -> None:
        self.project, self.subjects, self.least = project, subjects, least
        self.children = Children()
        self.new = copy_checkout(project, folder / "new")
        # a recorded run at smoke scale may be its own twin
        self.again = copy_checkout(project, folder / "again")
        self.old = clone(project.root, folder)
        self.twins = {subject.twin.path: stage_of(self.new, "pretrain", subject.twin.path) for subject in subjects}
        targets = [stage.outputs[0] for stage in (*self.twins.values(), *(subject.stage for subject in subjects))]
        recorded = {path: md5 for subject in subjects for path, md5 in subject.recorded.items()}
        self.commit = find_old(project, self.old, recorded, targets, commit, self.children)
        self.places = self._compare()

    def go(self, jobs: int) -> list[Verdict]:
        """Do all runs, `jobs` side by side."""
        places = [place for places in self.places.values() for place in places]
        work, again = (Laboratory(self.old, new, places, self.children) for new in (self.new, self.again))
        tasks: list[Callable[[], Observed]] = []
        for subject in self.subjects:
            metrics = (self.project.root / subject.stage.outputs[1]).read_bytes()
            tasks.append(partial(again.first_steps, subject.stage, self.least, metrics, subject.outputs))
        tasks += [partial(work.twin, stage) for stage in self.twins.values()]
        with tqdm(total=len(tasks), unit="run", desc="attest") as bar:
            seen = side_by_side(tasks, jobs, self.children.stop, bar.update)
        firsts, twins = seen[: len(self.subjects)], dict(zip(self.twins, seen[len(self.subjects) :], strict=True))
        self._refuse_edits()
        return [
            self._verdict(subject, first, twins[subject.twin.path])
            for subject, first in zip(self.subjects, firsts, strict=True)
        ]

    def _compare(self) -> dict[Path, list[Place]]:
        """What of the new code must run for each run; runs with equal closures are compared once."""
        known: dict[str, list[Place]] = {}
        found: dict[Path, list[Place]] = {}
        for subject in self.subjects:
            path = subject.stage.code_path
            then, now = read_json(self.old / path), read_json(self.project.root / path)
            key = json.dumps([sorted(then), sorted(now)])
            if key not in known:
                known[key] = places_to_run(Tree(self.old / "src", then), Tree(self.new.source, now))
            found[subject.stage.directory] = known[key]
        return found

    def _refuse_edits(self) -> None:
        """What was compared must still be the checkout."""
        for subject in self.subjects:
            write_inputs(self.new, subject.stage)
            for path in (subject.stage.code_path, subject.stage.environment_path):
                if (self.project.root / path).read_bytes() != (self.new.root / path).read_bytes():
                    raise UserError(f"{path}: changed while runs were compared; run the same command again")

    def _verdict(self, subject: Subject, first: Observed, twin: Observed) -> Verdict:
        directory = subject.stage.directory
        places = self.places[directory]
        against = [*twin.objections, *first.objections, *self._packages(subject, twin.packages | first.packages)]
        missing = [place for place in places if not (place.exempt or twin.ran(place) or first.ran(place))]
        if not first.whole:  # a run that was repeated to its end has shown all that it can do
            against += [f"src/{place}: changed, and never ran" for place in _once_per_line(missing)]
        if against:
            return Verdict(directory, "refused", against)
        exempt = [f"src/{place}" for place in _once_per_line([*(p for p in places if p.exempt), *missing])]
        evidence: dict[str, Any] = {
            "stage": subject.stage.name,
            "twin": str(subject.twin.path),
            "twin_steps": self.twins[subject.twin.path].config["steps"],
            "first_steps": first.steps,
            "steps": subject.stage.config["steps"],
            "changed_lines": len(_once_per_line([place for place in places if not place.exempt])),
            "exempt": exempt,
        }
        fresh = Attestation(subject.outputs, subject.old, subject.new, self.commit, evidence)
        return Verdict(directory, "attested", attestation=fresh)

    def _packages(self, subject: Subject, imported: set[str]) -> list[str]:
        """Versions and pins must be equal, and a package that left the list must not have been imported."""
        then = read_json(self.old / subject.environment)
        now = read_json(self.project.root / subject.stage.environment_path)
        if then["pins"] != now["pins"]:
            return ["the pins changed"]
        both = sorted({*then["packages"], *now["packages"]})
        old, new = (environment(root / "requirements.lock", both)["packages"] for root in (self.old, self.new.root))
        changed = [f"{name} was locked at {old[name]}, now at {new[name]}" for name in both if old[name] != new[name]]
        left = (set(then["packages"]) - set(now["packages"])) & imported
        return [*changed, *(f"{name} is not in the environment any more, but was imported" for name in sorted(left))]


def _once_per_line(places: Sequence[Place]) -> list[Place]:
    """The first place of each line."""
    return list({(place.path, place.region[0]): place for place in reversed(places)}.values())[::-1]
