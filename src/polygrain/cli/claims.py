"""The verbs around DVC: put a finished build on record, and check that the record still holds."""

from pathlib import Path

from polygrain.config.inputs import write_inputs
from polygrain.config.project import Project
from polygrain.config.stages import Stage
from polygrain.config.tables import FORMATS, Table, table_stages
from polygrain.provenance.checklock import mark_tables, verdict
from polygrain.provenance.files import write_if_changed
from polygrain.provenance.pipeline import Job, stage_name
from polygrain.provenance.record import record


def jobs_of(project: Project, target: str) -> list[Job]:
    """The jobs behind a table as DVC stages; their staleness files are brought up to date on the way."""
    stages = table_stages(project, Table.parse(target))
    for stage in stages:
        write_inputs(project, stage)
    return [_job(stage) for stage in stages]


def _job(stage: Stage) -> Job:
    return Job(
        name=stage_name(stage.name),
        command=f"snakemake --cores all {stage.outputs[0]}",
        config=stage.config_path,
        dependencies=(stage.code_path, stage.environment_path, *stage.inputs),
        outputs=stage.outputs,
        sidecar=stage.sidecar,
    )


def published(target: str) -> dict[Path, Path]:
    """Which outputs of a table have a small recorded copy in git."""
    table = Table.parse(target)
    copies = Path("reports/published", *table.folder.parts[1:])
    return {table.folder / f"{table.name}.{kind}": copies / f"{table.name}.{kind}" for kind in FORMATS}


def record_table(project: Project, target: str) -> None:
    """Write dvc.yaml and dvc.lock for a finished table and publish its copies."""
    jobs = jobs_of(project, target)
    record(jobs, project.root, published(target))
    show_in_readme(project, target)
    print(f"recorded {len(jobs)} jobs in dvc.lock; commit dvc.yaml, dvc.lock and reports/published")


def show_in_readme(project: Project, target: str) -> None:
    """Put a published default table between the README's markers `<!-- name -->` and `<!-- /name -->`."""
    table, readme = Table.parse(target), project.root / "README.md"
    before, start, rest = readme.read_text().partition(f"<!-- {table.name} -->\n")
    _, end, after = rest.partition(f"<!-- /{table.name} -->")
    if table == Table(table.name) and start and end:
        markdown = project.root / published(target)[table.folder / f"{table.name}.md"]
        write_if_changed(readme, f"{before}{start}{markdown.read_text()}{end}{after}")


def check_table(project: Project, target: str, *, mark: bool) -> int:
    """Print the verdict on the recorded claim; 0 when it holds or is honestly marked stale, 1 when not.

    With `mark`, a published table that is stale says so in its first line from now on, and a current one does not.
    """
    jobs = jobs_of(project, target)
    if mark:
        mark_tables(jobs, project.root, published(target))
        show_in_readme(project, target)
    result = verdict(jobs, project.root, published(target))
    for line in result.lines:
        print(line)
    print(f"{target}: the recorded claim {result.state}")
    return 1 if result.state == "fails" else 0
