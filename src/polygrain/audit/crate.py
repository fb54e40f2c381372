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
from polygrain.provenance.stage import Stage, in_order

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
NO_RECORD = "Its bytes are those of dvc.lock; no record says when, where and by which commit they were made."
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


def crate_text(evidence: Evidence, folder: Path, about: About, sources: Mapping[str, Sequence[RawFile]]) -> str:
    """Return the crate of the stages of `evidence` for a table's folder; the same text for the same records.

    `sources`: what stages read from elsewhere, by name. One entity stands on one line. Raises UserError when files in
    place contradict their records, or no record says what a stage read or made.
    """
    graph = list(_Crate(evidence, folder, about, sources).entities())
    graph.sort(key=lambda item: (item["@id"] != NAME, item["@id"] != "./", item["@id"]))
    lines = ",\n".join(json.dumps(single(item), sort_keys=True, ensure_ascii=False) for item in graph)
    return f'{{"@context": {json.dumps(CONTEXT)}, "@graph": [\n{lines}\n]}}\n'


class _Crate:
    """The graph of one crate; shared entities gather while the jobs are described."""

    def __init__(
        self, evidence: Evidence, folder: Path, about: About, sources: Mapping[str, Sequence[RawFile]]
    ) -> None:
        self.evidence, self.about, self.sources = evidence, about, sources
        self.stages = sorted(evidence.stages, key=lambda stage: stage.name)
        self.accounts = [account for stage in self.stages if (account := evidence.account(stage))]
        self.shared = Shared(frozenset(path for path in evidence.makers if path.parent == folder))
        workflow = evidence.content(about.workflow)
        if workflow is None:
            raise UserError(f"{about.workflow}: not found")
        self.workflow = self.shared.file(about.workflow, workflow)

    def entities(self) -> Iterator[Entity]:
        """Every entity once, in no order."""
        happened = [*(item for stage in self.stages for item in self._job(stage)), *self._run()]
        yield from (*happened, *self._plan(), *self.shared.entities.values())
        yield from self._root([item["@id"] for item in happened if item["@type"].endswith("Action")])

    def _job(self, stage: Stage) -> Iterator[Entity]:
        """One job: its execution, and the engine's control of it."""
        self._check(stage)
        account = self.evidence.account(stage)
        results = [self._file(stage, path) for path in stage.outputs]
        objects = [self._file(stage, path) for path in (stage.config_path, *stage.dependencies)]
        for source in self.sources.get(stage.name, ()):
            more = {"description": source.description, "license": source.licence}
            objects.append(self.shared.file(Path(source.name), Content(source.sha256), **more))
        yield entity(
            f"{ACTION}{stage.name}",
            "CreateAction",
            name=f"{stage.verb}: {stage.outputs[0]}",
            description=account.command if account else NO_RECORD,
            instrument=ref(f"#tool-{stage.verb}"),
            object=refs(objects),
            result=refs(results),
            actionStatus=COMPLETED,
            **(self._circumstances(stage, account) if account else {}),
        )
        for name, unit in USAGE.items() if account else ():
            value = {"propertyID": f"#{name}", "unitCode": unit, "value": str(getattr(account, name))}
            yield entity(f"#{name}-{stage.name}", "PropertyValue", name=name, **value)
        yield entity(
            f"#control-{stage.name}",
            "ControlAction",
            name=f"orchestrate {stage.verb}",
            instrument=ref(f"#step-{stage.verb}"),
            object=ref(f"{ACTION}{stage.name}"),
        )

    def _check(self, stage: Stage) -> None:
        """Refuse files that their record does not describe."""
        met = [path for path in stage.dependencies if path in self.evidence.makers]
        for path in (*stage.outputs, *met):
            if self.evidence.has_record(stage) and self.evidence.state(stage, path).as_recorded is False:
                raise UserError(
                    f"{path}: differs from its record {stage.sidecar}; rebuild it with"
                    f" `snakemake --cores all --force {stage.outputs[0]}`, or run `polygrain restore`"
                )

    def _circumstances(self, stage: Stage, account: Account) -> Entity:
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
        pinned = (self.shared.fact("pin", name.removeprefix("pins."), value) for name, value in pins.items())
        return {
            "startTime": account.started,
            "endTime": account.finished,
            "resourceUsage": refs(f"#{name}-{stage.name}" for name in USAGE),
            "environment": refs(pinned),
            "additionalProperty": refs(properties),
        }

    def _file(self, stage: Stage, path: Path) -> str:
        """A file as the job met it, by its account, or as it is now where dvc.lock agrees. Returns its `@id`."""
        state, account = self.evidence.state(stage, path), self.evidence.account(stage)
        if account is not None:
            said = account.files.get(path.as_posix())
            if said is None:
                raise UserError(f"{path}: not listed in {account.source}; rebuild {stage.outputs[0]}")
            return self.shared.file(path, state.now if state.now and state.as_recorded else said)
        if state.now is None:
            raise UserError(f"{path}: not here, and in no record; build it, or run `polygrain restore`")
        if path != stage.config_path and state.as_locked is not True:
            raise UserError(f"{path}: neither a record nor dvc.lock links it to {stage.outputs[0]}; rebuild that")
        return self.shared.file(path, state.now)

    def _plan(self) -> Iterator[Entity]:
        """What was planned: the Snakefile, its steps in order, and the tools that do them."""
        names = list(dict.fromkeys(stage.verb for stage in in_order(self.stages)))
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

    def _run(self) -> Iterator[Entity]:
        """What happened as a whole: the runs of the engine, and of the workflow."""
        known = self.accounts
        span = {"startTime": min(a.started for a in known), "endTime": max(a.finished for a in known)} if known else {}
        used = [(stage, path) for stage in self.stages for path in (stage.config_path, *stage.dependencies)]
        read = {path for _, path in used}
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
            object=refs(f"#control-{stage.name}" for stage in self.stages),
            result=ref("#workflow-run"),
            **span,
        )
        yield entity(
            "#workflow-run",
            "CreateAction",
            name=f"{self.about.title}: {len(self.stages)} jobs",
            description="From the first start of a job to the last end, pauses included.",
            instrument=ref(self.workflow),
            object=refs(self._file(stage, path) for stage, path in used if path not in self.evidence.makers),
            result=refs(self._file(stage, path) for path, stage in self.evidence.makers.items() if path not in read),
            actionStatus=COMPLETED,
            **span,
        )

    def _root(self, actions: Sequence[str]) -> Iterator[Entity]:
        licence = f"https://spdx.org/licenses/{self.about.licence}"
        yield entity(NAME, "CreativeWork", about=ref("./"), conformsTo=[ref(SPECIFICATION), ref(WORKFLOW_CRATE)])
        yield entity(
            "./",
            "Dataset",
            name=self.about.title,
            description=self.about.description,
            datePublished=max((account.finished for account in self.accounts), default=self.about.published)[:10],
            license=ref(licence),
            conformsTo=refs(PROFILES),
            mainEntity=ref(self.workflow),
            hasPart=refs(self.shared.ids("File")),
            mentions=refs(actions),
        )
        yield entity(licence, "CreativeWork", name=self.about.licence)
        for profile, (name, version) in PROFILES.items():
            yield entity(profile, "CreativeWork", name=name, version=version)
