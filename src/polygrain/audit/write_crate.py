"""`polygrain crate`: describe a build as a Workflow Run RO-Crate beside its tables."""

import tomllib
from collections.abc import Sequence
from pathlib import Path

from polygrain.audit.crate import NAME, About, RawFile, crate_text
from polygrain.audit.crate_reader import read_crate
from polygrain.audit.evidence import Evidence
from polygrain.config.inputs import input_texts
from polygrain.config.project import Project
from polygrain.config.published import PUBLISHED, published
from polygrain.config.stages import stages_behind
from polygrain.config.tables import Table
from polygrain.provenance.environment import environment
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import read_json, sha256_file, write_text
from polygrain.provenance.sidecar import commit_date
from polygrain.provenance.stage import Stage


def write_crates(project: Project, targets: Sequence[str]) -> None:
    """Write a crate into the folder of the tables, one for all tables of a folder."""
    for folder, tables in _by_folder(targets).items():
        text = crate_of(project, folder, tables)
        write_text(project.root / folder / NAME, text)
        print(f"{folder / NAME}: {', '.join(tables)}, {len(text) / 1024:.0f} KiB")


def publish_crates(project: Project, targets: Sequence[str], others: Sequence[str] = ()) -> None:
    """Write the crates of recorded tables beside the published copies, so that a clone holds how they were made.

    Before the first commit there is none, because a crate names its commit. A crate that already describes these tables
    is kept: a checkout that restored the outputs has no records of how they were made. `others` were recorded before;
    where they were built again since, the crate leaves them out.
    """
    if commit_date(project.root) is None:
        return
    for folder, tables in _by_folder(targets).items():
        path = project.root / published_crate(folder)
        known = sorted({*tables, *_by_folder(others).get(folder, ())})
        if not _describes(path, [project.root / copy for copy in published(known).values() if copy.suffix == ".pdf"]):
            try:
                text = crate_of(project, folder, known)
            except UserError as error:
                if known == tables:
                    raise
                print(f"{published_crate(folder)}: describes {', '.join(tables)} only ({error})")
                text = crate_of(project, folder, tables)
            write_text(path, text)


def _describes(crate: Path, tables: Sequence[Path]) -> bool:
    """Whether a crate holds the hashes of tables; each names all that it was made from, by its claim id."""
    if not crate.is_file():
        return False
    text = crate.read_text(encoding="utf-8")
    return all(sha256_file(table) in text for table in tables)


def published_crate(folder: Path) -> Path:
    """Where the recorded crate of a table's folder lies in git."""
    return Path(PUBLISHED, *folder.parts[1:], NAME)


def crate_of(project: Project, folder: Path, targets: Sequence[str]) -> str:
    """The crate of the tables of one folder. Raises UserError when a file differs from its record."""
    stages = stages_behind(project, targets)
    evidence = evidence_of(project, stages)
    evidence.published = evidence.matching(read_crate(published_crate(folder), project.root))
    sources = {stage.name: sources_of(project, stage) for stage in stages if stage.verb == "prepare"}
    return crate_text(evidence, folder, _about(project, targets), sources)


def evidence_of(project: Project, stages: Sequence[Stage]) -> Evidence:
    """The evidence of some stages with their staleness files as the checkout wants them now; writes nothing."""
    texts = {path: text for stage in stages for path, text in input_texts(project, stage).items()}
    return Evidence(stages, project.root, texts)


def sources_of(project: Project, stage: Stage) -> list[RawFile]:
    """The raw files behind a packed data set, by its manifest; none when that is not here."""
    path = project.root / stage.directory / "manifest.json"
    if not path.is_file():
        return []
    manifest = read_json(path)
    about = (manifest.get("source", ""), manifest.get("licence", ""))
    return [RawFile(name, sha256, *about) for name, sha256 in sorted(manifest.get("raw", {}).items())]


def _by_folder(targets: Sequence[str]) -> dict[Path, list[str]]:
    folders: dict[Path, list[str]] = {}
    for target in sorted(set(targets)):
        folders.setdefault(Table.parse(target).folder, []).append(target)
    return folders


def _about(project: Project, targets: Sequence[str]) -> About:
    described = tomllib.loads((project.root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    date = commit_date(project.root)
    if date is None:
        raise UserError(f"{project.root}: no git repository with a commit; a crate belongs to one")
    return About(
        title=f"{described['name']}: {', '.join(targets)}",
        description=f"{described['description']} This is the record of a build: what ran, from what, when and where.",
        licence=described["license"],
        version=described["version"],
        workflow=Path("Snakefile"),
        engine=environment(project.lock, ["snakemake"])["packages"]["snakemake"],
        published=date,
    )
