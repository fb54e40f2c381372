"""The values that a cell had, commit by commit, and why it changed: what changed in the chain of its row's runs."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from polygrain.audit.cells import folded
from polygrain.audit.explain import SEED, reasons
from polygrain.audit.history.names import Cell, Names, rows_in
from polygrain.audit.repository import Commit, Repository
from polygrain.audit.verdicts import Audit, Change, Judged
from polygrain.config.published import published
from polygrain.config.tables import Table
from polygrain.provenance.lock import Lock, Locked

Bytes = tuple[str, str, str]
"""Output, inputs of its stage, MD5."""


@dataclass(frozen=True)
class Value:
    """The cell at a commit that changed the published table."""

    commit: Commit
    cell: Cell | None
    """None where the table did not hold it."""
    before: Cell | None
    """The same at the first parent."""
    why: tuple[str, ...]
    unexplained: bool
    """Whether it was made from bytes that are unexplained."""

    @property
    def text(self) -> str:
        """As printed."""
        return self.cell["text"] if self.cell else "not in the table"

    @property
    def delta(self) -> str:
        """By how much it changed; empty where either side is no number."""
        was, now = (number(cell, "mean") for cell in (self.before, self.cell))
        if was is None or now is None or self.cell is None:
            return ""
        if was == now:
            return "same"
        return f"{now - was:+.2f}" if self.cell.get("unit") == "%" else f"{now - was:+g}"


def number(cell: Cell | None, field: str) -> float | None:
    """A field of a cell as a number; None where it is none."""
    try:
        return float(cell[field]) if cell else None
    except (KeyError, TypeError, ValueError):
        return None


def values(repository: Repository, result: Audit, table: Table, names: Names) -> Iterator[Value]:
    """Every commit that changed the published CSV of a table while the cell was in it, or took it out."""
    output = table.folder / f"{table.name}.csv"
    copy = published([str(output)])[output].as_posix()
    entries = {entry.state.commit.id: entry for entry in result.entries}
    cells: dict[str, tuple[str | None, Cell | None]] = {}
    suspicious: dict[Bytes, Commit] = {}
    for state in result.states:
        commit, lock, entry = state.commit, state.lock, entries.get(state.commit.id)
        for change in entry.of("unexplained") if entry else ():
            if change.maker:
                suspicious[_bytes(change.output, change.maker)] = commit
        blob = repository.find(commit.id, copy)
        parents = [cells[parent] for parent in commit.parents if parent in cells]
        known = [cell for name, cell in parents if name == blob]
        maker = lock.makers.get(output.as_posix())
        cell = known[0] if known else names.find(repository.read(blob), maker) if blob else None
        cells[commit.id] = blob, cell
        name_before, before = parents[0] if parents else (None, None)
        if name_before != blob and (cell or before):
            made = [_bytes(path, stage) for path, stage in _chain(lock, maker, cell)]
            doubts = [suspicious[each] for each in made if each in suspicious]
            contradicted = [finding.line for finding in entry.findings if finding.kind == "published"] if entry else []
            edited = [line for line in contradicted if line.startswith(f"{copy}:")]
            why = edited or _why(entry, lock, maker, cell, before)
            earlier = sorted({other.short for other in doubts if other != commit})
            why += [f"rests on the unexplained change of {name}" for name in earlier]
            yield Value(commit, cell, before, tuple(why), bool(doubts or edited))


def _bytes(output: str, maker: Locked) -> Bytes:
    return output, maker.inputs, maker.outputs[output]


def _chain(lock: Lock, table: Locked | None, cell: Cell | None) -> list[tuple[str, Locked]]:
    """Every output that the cell was made from, with its stage: of its row's runs, all that these read, the table."""
    if table is None or cell is None:
        return []
    runs = [run for row in rows_in(table) if folded(row["label"]) == folded(cell["row"]) for run in row["runs"]]
    waiting = [path for path in table.dependencies if path.startswith(tuple(f"{run}/" for run in runs))]
    found: dict[str, Locked] = {}
    while waiting:
        path = waiting.pop()
        stage = lock.makers.get(path)
        if stage is not None and path not in found:
            found[path] = stage
            waiting += stage.dependencies
    return [*sorted(found.items(), key=lambda item: item[0]), *((path, table) for path in table.outputs)]


def _why(entry: Judged | None, lock: Lock, table: Locked | None, cell: Cell | None, before: Cell | None) -> list[str]:
    """The reasons at the root of the chain; those of the table alone only when nothing else changed."""
    if cell is None:
        return ["taken out of the table"]
    if before is None:
        return ["first recorded"]
    if entry is None:
        return []
    changes = {change.output: change for change in entry.changes}
    chain = [changes[path] for path, _ in _chain(lock, table, cell) if path in changes]
    own = [change for change in chain if table is None or change.stage != table.name]
    said = [reason for change in own or chain for reason in _roots(change, changes)]
    return list(dict.fromkeys(SEED.sub("seed*", reason) for reason in said)) or ["nothing that this row was made from"]


def _roots(change: Change, changes: dict[str, Change]) -> list[str]:
    """Why an output changed, apart from what came down from other stages."""
    causes = tuple(cause for cause in change.causes if not cause.upstream)
    if change.kind == "explained" and not causes:
        return []
    said = reasons(replace(change, causes=causes), changes)
    return [f"{change.output}: {reason}" for reason in said] if change.kind == "unexplained" else said
