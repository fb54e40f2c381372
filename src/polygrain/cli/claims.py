"""The verbs around DVC: put a finished build on record, and check that the record still holds."""

import re
from collections.abc import Sequence
from functools import cache

from polygrain.audit.account import Account, environment_differences, read_account
from polygrain.audit.crate_reader import read_crate
from polygrain.audit.write_crate import publish_crates, published_crate
from polygrain.config import ledger
from polygrain.config.inputs import write_inputs
from polygrain.config.project import Project
from polygrain.config.published import published
from polygrain.config.stages import stages_behind
from polygrain.config.tables import Table, rows, specification
from polygrain.provenance.checklock import Facts, is_marked_stale, mark_tables, verdict
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import write_if_changed
from polygrain.provenance.lock import read_lock
from polygrain.provenance.record import clear_attestations, objection_to_keeping, record
from polygrain.provenance.stage import Stage
from polygrain.report.headline import headline, in_short


def current_stages(project: Project, targets: Sequence[str]) -> list[Stage]:
    """The stages behind targets, shared ones once; brings their staleness files up to date on the way.

    A target is a table, a run or a data set, or a file of one of them.
    """
    stages = stages_behind(project, targets)
    for stage in stages:
        write_inputs(project, stage)
    return stages


def recorded_targets(project: Project) -> list[str]:
    """The tables that dvc.lock holds; the default table where there is none yet."""
    return other_tables(project, ()) or ["reports/table1.pdf"]


def other_tables(project: Project, targets: Sequence[str]) -> list[str]:
    """The tables that dvc.lock holds beside `targets`, sorted."""
    named = set(map(Table.parse, targets))
    tables = (path for path in read_lock(project.root).makers if path.startswith("reports/") and path.endswith(".pdf"))
    return sorted(path for path in tables if Table.parse(path) not in named)


def record_tables(project: Project, targets: Sequence[str]) -> None:
    """Write dvc.yaml and dvc.lock for finished tables, publish their copies and crates.

    Another recorded table is kept as it is, unless an output that it was made from has changed: then it is dropped.
    """
    cleared = clear_attestations(current_stages(project, targets), project.root)
    if cleared:
        raise UserError(
            f"{targets[0]}: its footer counts {cleared} attestations of runs that the present code has trained since;"
            f" they are removed now. Write it again with `snakemake --cores all {targets[0]}`, then record"
        )
    stages = current_stages(project, targets)
    others = other_tables(project, targets)
    dropped = {other: why for other in others if (why := _objection(project, other, stages))}
    kept = [other for other in others if other not in dropped]
    names = {stage.name for stage in stages}
    beside = [stage for stage in current_stages(project, kept) if stage.name not in names]
    record(stages, project.root, published(targets), beside)
    for copy in published(list(dropped)).values():
        (project.root / copy).unlink(missing_ok=True)
    for target in (*targets, *dropped):
        show_in_readme(project, target)
    for target in targets:
        show_in_headers(project, target)
    for other, why in dropped.items():
        print(f"{other}: no longer on record, for {why}; build it, then record it again")
    print(f"recorded {len(stages)} jobs in dvc.lock; commit dvc.yaml, dvc.lock and reports/published")
    publish_crates(project, targets, kept)


def _objection(project: Project, table: str, recorded: Sequence[Stage]) -> str | None:
    try:
        return objection_to_keeping(stages_behind(project, [table]), recorded, project.root)
    except UserError as error:  # params do not know it any more
        return str(error)


def show_in_readme(project: Project, target: str) -> None:
    """Put a published default table in short between the README's markers `<!-- name -->` and `<!-- /name -->`."""
    table, readme = Table.parse(target), project.root / "README.md"
    before, start, rest = readme.read_text(encoding="utf-8").partition(f"<!-- {table.name} -->\n")
    _, end, after = rest.partition(f"<!-- /{table.name} -->")
    if table == Table(table.name) and start and end:
        write_if_changed(readme, f"{before}{start}{short_table(project, table)}{end}{after}")


def show_in_headers(project: Project, target: str) -> None:
    """Write a published table's numbers into the headers of its methods: the line `Measured (TARGET): ...`.

    A header decides no output, so no run becomes stale by it.
    """
    table = Table.parse(target)
    if table != Table(table.name) or table.name == ledger.NAME:
        return
    numbers = project.root / published([target])[table.folder / f"{table.name}.csv"]
    for row in rows(specification(project, table)):
        path = project.source / "polygrain" / "methods" / f"{row['method']}.py"
        sentence = in_short(numbers.read_text(encoding="utf-8"), row["label"])
        if row.get("variant", "base") == "base" and path.is_file() and sentence:
            start = f"Measured ({target}): "
            text = re.sub(f"(?m)^{re.escape(start)}.*$", start + sentence, path.read_text(encoding="utf-8"))
            write_if_changed(path, text)


def short_table(project: Project, table: Table) -> str:
    """What the README shows of a table: whether it is stale, and its headline rows; nothing where none is published."""
    copies = published([str(table.folder / f"{table.name}.pdf")])
    markdown, numbers = (project.root / copies[table.folder / f"{table.name}.{kind}"] for kind in ("md", "csv"))
    if not numbers.is_file():
        return ""
    mark = "> **Stale:** code or params changed since these numbers were made.\n\n" if is_marked_stale(markdown) else ""
    return mark + headline(numbers.read_text(encoding="utf-8"))


def _environments(project: Project, targets: Sequence[str]) -> Facts:
    """Tell where a stage ran here and where it was recorded, by its record and the published crates of the targets."""
    folders = {Table.parse(target).folder for target in targets}

    @cache
    def published_accounts() -> dict[str, Account]:
        crates = (read_crate(published_crate(folder), project.root) for folder in sorted(folders))
        return {name: account for crate in crates for name, account in crate.items()}

    return lambda stage: environment_differences(
        read_account(stage, project.root), published_accounts().get(stage.name)
    )


def check_tables(project: Project, targets: Sequence[str], *, mark: bool) -> int:
    """Print the verdict on the recorded claims; 0 when they hold or are marked stale, 1 when not.

    Without targets those that dvc.lock holds. With `mark`, a published table that is stale says so in its first
    line from now on, and a current one does not.
    """
    targets = targets or recorded_targets(project)
    stages, copies = current_stages(project, targets), published(targets)
    beside = current_stages(project, other_tables(project, targets))
    if mark:
        mark_tables(stages, project.root, copies, beside)
        for target in targets:
            show_in_readme(project, target)
    result = verdict(stages, project.root, copies, _environments(project, targets), beside)
    for line in result.lines:
        print(line)
    print(f"{', '.join(targets)}: the recorded claim {result.state}")
    return 1 if result.state == "fails" else 0
