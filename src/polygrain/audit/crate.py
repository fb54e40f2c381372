"""A build as a Workflow Run RO-Crate: one `ro-crate-metadata.json` beside a table.

It follows the Provenance Run Crate profile 0.5 on RO-Crate 1.1. A crate is a record: it holds times, commits and
machines, and nothing depends on it. It has one CreateAction per job, with the tool as instrument, what was read as
object and what was made as result, ordered by the steps of the workflow.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polygrain.audit.account import Account, Content
from polygrain.audit.crate_files import Entity, Shared, entity, ref, refs, single
from polygrain.audit.evidence import Evidence
from polygrain.provenance.errors import UserError
from polygrain.provenance.pipeline import Job, inputs_of

NAME = "ro-crate-metadata.json"
CONTEXT = ["https://w3id.org/ro/crate/1.1/context", "https://w3id.org/ro/terms/workflow-run/context"]
SPECIFICATION = "https://w3id.org/ro/crate/1.1"
WORKFLOW_CRATE = "https://w3id.org/workflowhub/workflow-ro-crate/1.0"
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/provenance/0.5": ("Provenance Run Crate", "0.5"),
    WORKFLOW_CRATE: ("Workflow RO-Crate", "1.0"),
}
LANGUAGE = "https://w3id.org/workflowhub/workflow-ro-crate#snakemake"
ENGINE_PAGE = "https://snakemake.github.io"
COMPLETED = "http://schema.org/CompletedActionStatus"
NO_RECORD = "Its bytes are those of dvc.lock; no record tells when, where and by which commit they were made."
USAGE = {
    "wall_seconds": "https://qudt.org/vocab/unit/SEC",
    "cpu_seconds": "https://qudt.org/vocab/unit/SEC",
    "peak_memory_mib": "https://qudt.org/vocab/unit/MebiBYTE",
}
"""Elements of resource usage with their units; each is a field of `Account`."""
ACTION, DIRTY = "#job-", "with uncommitted changes"


@dataclass(frozen=True)
class RawFile:
    """A file that others publish and a job read; it is not kept here."""

    name: str
    sha256: str
    description: str
    licence: str


@dataclass(frozen=True)
class About:
    """What a crate says of the project and its workflow."""

    title: str
    description: str
    licence: str
    """SPDX identifier."""
    version: str
    workflow: Path
    """The Snakefile."""
    engine: str
    """Version of Snakemake."""
    published: str
    """Date of the crate when the times of no job are known."""


def crate_text(
    evidence: Evidence,
    folder: Path,
    about: About,
    steps: Mapping[str, str],
    sources: Mapping[str, Sequence[RawFile]],
) -> str:
    """Return the crate of the jobs of `evidence` for a table's folder; the same text for the same records.

    `steps` names the step of each job, `sources` what jobs read from elsewhere. One entity stands on one line.
    Raises UserError when files in place contradict their records, or nothing tells what a job read or made.
    """
    graph = list(_Crate(evidence, folder, about, steps, sources).entities())
    graph.sort(key=lambda item: (item["@id"] != NAME, item["@id"] != "./", item["@id"]))
    lines = ",\n".join(json.dumps(single(item), sort_keys=True, ensure_ascii=False) for item in graph)
    return f'{{"@context": {json.dumps(CONTEXT)}, "@graph": [\n{lines}\n]}}\n'


@dataclass
class _Crate:
    """The graph of one crate; shared entities gather while the jobs are described."""

    evidence: Evidence
    folder: Path
    about: About
    steps: Mapping[str, str]
    sources: Mapping[str, Sequence[RawFile]]

    def __post_init__(self) -> None:
        self.jobs = sorted(self.evidence.jobs, key=lambda job: job.name)
        self.accounts = {job.name: self.evidence.account(job) for job in self.jobs}
        self.shared = Shared(frozenset(path for path in self.evidence.makers if path.parent == self.folder))
        self.workflow = self.shared.file(self.about.workflow, self._present(self.about.workflow))

    def entities(self) -> Iterator[Entity]:
        """Every entity once, in no order."""
        happened = [item for job in self.jobs for item in self._job(job)]
        happened += self._run()
        planned = list(self._plan())
        yield from (*happened, *planned, *self.shared.entities.values())
        yield from self._root([item["@id"] for item in happened if item["@type"].endswith("Action")])

    def _job(self, job: Job) -> Iterator[Entity]:
        """One job: its execution, and the engine's control of it."""
        self._check(job)
        step, account = self.steps[job.name], self.accounts[job.name]
        results = [self._file(job, path) for path in job.outputs]
        objects = [self._file(job, path) for path in (job.config, *inputs_of(job))]
        for source in self.sources.get(job.name, ()):
            more = {"description": source.description, "license": source.licence}
            objects.append(self.shared.file(Path(source.name), Content(source.sha256), **more))
        action: Entity = entity(
            f"{ACTION}{job.name}",
            "CreateAction",
            name=f"{step}: {job.outputs[0]}",
            description=account.command if account else NO_RECORD,
            instrument=ref(f"#tool-{step}"),
            object=refs(objects),
            result=refs(results),
            actionStatus=COMPLETED,
        )
        if account:
            yield from self._usage(job, account)
            action |= self._circumstances(job, account)
        yield action
        yield entity(
            f"#control-{job.name}",
            "ControlAction",
            name=f"orchestrate {step}",
            instrument=ref(f"#step-{step}"),
            object=ref(action["@id"]),
        )

    def _check(self, job: Job) -> None:
        """Refuse files that their record does not describe."""
        met = [path for path in inputs_of(job) if path in self.evidence.makers]
        for path in (*job.outputs, *met):
            if self.evidence.has_record(job) and self.evidence.state(job, path).as_recorded is False:
                raise UserError(
                    f"{path}: is not what {job.sidecar} tells of; rebuild it with"
                    f" `snakemake --cores all --force {job.outputs[0]}`, or run `polygrain restore`"
                )

    def _circumstances(self, job: Job, account: Account) -> Entity:
        """When, where and from which commit."""
        facts = dict(account.machine)
        pins = {name: facts.pop(name) for name in account.machine if name.startswith("pins.")}
        for name, version in facts.items():
            if name.startswith("packages."):
                self.shared.package(name.removeprefix("packages."), version)
        properties = [self.shared.machine(facts)]
        if account.commit:
            commit = f"{account.commit} {DIRTY}" if account.dirty else account.commit
            properties.append(self.shared.fact("commit", "commit", commit))
        return {
            "startTime": account.started,
            "endTime": account.finished,
            "resourceUsage": refs(f"#{name}-{job.name}" for name in USAGE),
            "environment": refs(
                self.shared.fact("pin", name.removeprefix("pins."), value) for name, value in pins.items()
            ),
            "additionalProperty": refs(properties),
        }

    def _usage(self, job: Job, account: Account) -> Iterator[Entity]:
        for name, unit in USAGE.items():
            yield entity(
                f"#{name}-{job.name}",
                "PropertyValue",
                name=name,
                propertyID=f"#{name}",
                unitCode=unit,
                value=str(getattr(account, name)),
            )

    def _file(self, job: Job, path: Path) -> str:
        """A file as the job met it, by its account, or as it is now where dvc.lock agrees. Returns its `@id`."""
        state = self.evidence.state(job, path)
        account = self.accounts[job.name]
        if account is not None:
            said = account.files.get(path.as_posix())
            if said is None:
                raise UserError(f"{path}: {account.source} does not know it; rebuild {job.outputs[0]}")
            same = state.now is not None and state.now.sha256 == said.sha256
            return self.shared.file(path, state.now if same and state.now else said)
        if state.now is None:
            raise UserError(f"{path}: not here, and no record tells of it; build it, or run `polygrain restore`")
        if path != job.config and state.as_locked is not True:
            raise UserError(f"{path}: no record and no dvc.lock tells how it belongs to {job.outputs[0]}; rebuild that")
        return self.shared.file(path, state.now)

    def _present(self, path: Path) -> Content:
        content = self.evidence.content(path)
        if content is None:
            raise UserError(f"{path}: not found")
        return content

    def _plan(self) -> Iterator[Entity]:
        """What was planned: the Snakefile, its steps in order, and the tools that do them."""
        names = list(dict.fromkeys(self.steps[job.name] for job in self._ordered()))
        packages = [name for name in self.shared.ids("SoftwareApplication") if name.startswith("#package-")]
        self.shared.entities[self.workflow] |= {
            "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"],
            "programmingLanguage": ref(LANGUAGE),
            "version": self.about.version,
            "hasPart": refs(f"#tool-{name}" for name in names),
            "step": refs(f"#step-{name}" for name in names),
        }
        yield entity(LANGUAGE, "ComputerLanguage", name="Snakemake", url=ENGINE_PAGE)
        for position, name in enumerate(names):
            yield entity(f"#step-{name}", "HowToStep", name=name, position=position, workExample=ref(f"#tool-{name}"))
            yield entity(
                f"#tool-{name}",
                "SoftwareApplication",
                name=f"polygrain {name}",
                softwareVersion=self.about.version,
                softwareRequirements=refs(packages),
            )

    def _ordered(self) -> list[Job]:
        """Each job after those that it needs."""
        done: list[Job] = []
        waiting = list(self.jobs)
        while waiting:
            made = {path for job in done for path in job.outputs}
            ready = [job for job in waiting if all(p in made or p not in self.evidence.makers for p in inputs_of(job))]
            done += ready
            waiting = [job for job in waiting if job not in ready]
        return done

    def _run(self) -> Iterator[Entity]:
        """What happened as a whole: the runs of the engine, and of the workflow."""
        known = [account for account in self.accounts.values() if account]
        span = {"startTime": min(a.started for a in known), "endTime": max(a.finished for a in known)} if known else {}
        read = {path for job in self.jobs for path in job.dependencies}
        engine = f"#snakemake-{self.about.engine}"
        yield entity(
            engine, "SoftwareApplication", name="Snakemake", softwareVersion=self.about.engine, url=ENGINE_PAGE
        )
        yield entity(
            "#engine-run",
            "OrganizeAction",
            name="Snakemake",
            description="Perhaps in several invocations: what was up to date did not run again.",
            instrument=ref(engine),
            object=refs(f"#control-{job.name}" for job in self.jobs),
            result=ref("#workflow-run"),
            **span,
        )
        yield entity(
            "#workflow-run",
            "CreateAction",
            name=f"{self.about.title}: {len(self.jobs)} jobs",
            description="From the first start of a job to the last end, pauses included.",
            instrument=ref(self.workflow),
            object=refs(
                self._file(job, path)
                for job in self.jobs
                for path in (job.config, *inputs_of(job))
                if path not in self.evidence.makers
            ),
            result=refs(self._file(job, path) for job in self.jobs for path in job.outputs if path not in read),
            actionStatus=COMPLETED,
            **span,
        )

    def _root(self, actions: Sequence[str]) -> Iterator[Entity]:
        licence = f"https://spdx.org/licenses/{self.about.licence}"
        ends = [account.finished for account in self.accounts.values() if account]
        yield entity(NAME, "CreativeWork", about=ref("./"), conformsTo=[ref(SPECIFICATION), ref(WORKFLOW_CRATE)])
        yield entity(
            "./",
            "Dataset",
            name=self.about.title,
            description=self.about.description,
            datePublished=max(ends, default=self.about.published)[:10],
            license=ref(licence),
            conformsTo=refs(PROFILES),
            mainEntity=ref(self.workflow),
            hasPart=refs(self.shared.ids("File")),
            mentions=refs(actions),
        )
        yield entity(licence, "CreativeWork", name=self.about.licence)
        for profile, (name, version) in PROFILES.items():
            yield entity(profile, "CreativeWork", name=name, version=version)
