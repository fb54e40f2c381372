"""What a cell prints, recomputed from what it comes from: one way for each kind of column."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from polygrain.audit.cells import CellAddress
from polygrain.config.budget import facts
from polygrain.config.compose import Config, origins, place_of
from polygrain.config.project import Project
from polygrain.config.resolved import configuration
from polygrain.config.tables import settings, specification
from polygrain.evaluate.result import Result
from polygrain.provenance.errors import UserError
from polygrain.report.cells import ABSENT
from polygrain.report.measured import of_split
from polygrain.report.reported import read_reported
from polygrain.report.table import count, measured_cell, setting_text

# What the facts of a run are computed from, by polygrain.config.budget.
_BUDGET = (
    *("pretrain.images", "pretrain.batch", "pretrain.epochs", "pretrain.encoder_passes"),
    *("method.encoder_passes", "method.start_passes"),
)
# A value that is another key's: ${method.values.grains}
_REFERENCE = re.compile(r"\$\{([a-z0-9_.]+)\}")


@dataclass
class Recomputed:
    """A cell's text from its sources, the lines that show how, and what is wrong with the sources."""

    text: str | None
    """None when a source is not here."""
    lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def recompute(project: Project, cell: CellAddress) -> Recomputed:
    """Read a cell's sources again. Raises UserError when one is malformed."""
    if cell.protocol:
        return _measured(project, cell)
    if cell.fact:
        return _fact(project, cell)
    if cell.setting:
        return _setting(project, cell)
    return _reported(project, cell)


def _measured(project: Project, cell: CellAddress) -> Recomputed:
    found = Recomputed(None)
    numbers = []
    for run in cell.runs:
        path = run.path / "results" / f"{cell.protocol}.json"
        if not (project.root / path).is_file():
            found.lines.append(f"seed {run.seed}  not here: {path}")
            continue
        kept = (project.root / path).with_suffix(".npz").is_file()
        loaded = Result.load(project.root / path.parent, cell.protocol, numbers_only=not kept)
        result = of_split(loaded, cell.value, cell.split)
        if cell.value not in result.values:
            found.lines.append(f'seed {run.seed}  no value "{cell.value}" in {path}')
            continue
        numbers.append(result.values[cell.value])
        counted, fault = _recount(path, cell, result)
        value, measure = numbers[-1]
        found.lines.append(f'seed {run.seed}  {measure.factor * value:.4f}  "{cell.value}" in {path}{counted}')
        found.faults += fault
    if len(numbers) == len(cell.runs):
        printed = measured_cell(numbers[0].measure, [number.value for number in numbers])
        found.text = printed.text
        spread = "" if printed.sd is None else f", sample standard deviation {printed.sd:.4f}"
        found.lines.append(f"mean {printed.mean:.4f}{spread}: {found.text}")
    return found


def _recount(path: Path, cell: CellAddress, result: Result) -> tuple[str, list[str]]:
    """Compare a number with what its test examples give, where these are kept."""
    counted = result.counted(cell.value)
    if counted is None:
        return "", []
    if not result.agrees(cell.value):
        return "", [f"{path}: says {result.values[cell.value].value} where its test examples give {counted}"]
    examples = len(result.examples[cell.value.rpartition("/")[0]].index)
    return f", counted again from {examples} test examples", []


def _fact(project: Project, cell: CellAddress) -> Recomputed:
    config = configuration(project, cell.runs[0])
    value = facts(config)[cell.fact]
    lines = [*_keys(project, cell, config, _BUDGET), f"{cell.fact} {value:.0f}, by polygrain/config/budget.py"]
    return Recomputed(count(value), lines)


def _setting(project: Project, cell: CellAddress) -> Recomputed:
    config = configuration(project, cell.runs[0])
    values = settings(config, (cell.setting,))
    if not values:
        return Recomputed(ABSENT, [f"{cell.runs[0].path} has no {cell.setting}"])
    return Recomputed(setting_text(values[cell.setting]) or ABSENT, _keys(project, cell, config, (cell.setting,)))


def _keys(project: Project, cell: CellAddress, config: Config, keys: Sequence[str]) -> list[str]:
    """Each key with its value and the file and line that set it; a value taken from another key is followed there."""
    places = origins(cell.runs[0], project.params)
    values: dict[str, tuple[str, str]] = {}
    waiting = list(keys)
    while waiting:
        key = waiting.pop(0)
        for name, value in settings(config, () if key in values else (key,)).items():
            place = place_of(name, places)
            values[name] = (f"{name} = {value}", place)
            waiting += _REFERENCE.findall(_written(project, place))
    width = max((len(text) for text, _ in values.values()), default=0)
    return [f"{text:<{width}}  {place}" for text, place in values.values()]


def _written(project: Project, place: str) -> str:
    """The line `file:number` of params."""
    file, _, number = place.rpartition(":")
    return (project.root / file).read_text(encoding="utf-8").splitlines()[int(number) - 1] if file else ""


def _reported(project: Project, cell: CellAddress) -> Recomputed:
    table = f"params/table/{cell.table.name}.yaml"
    if not cell.record:
        return Recomputed(ABSENT, [f"{table} cites no record for this cell"])
    for name in specification(project, cell.table).get("reported_sources", []):
        path = project.root / "params" / "reported" / name
        records = read_reported([path])
        if cell.record in records:
            record = records[cell.record]
            lines = [
                f"{table} cites the record '{cell.record}'",
                f"params/reported/{name}, line {_line(path, cell.record)}: {record.value} {record.unit}",
                record.description,
            ]
            return Recomputed(record.text, lines)
    raise UserError(f"{table}: cites '{cell.record}', which no file under reported_sources holds")


def _line(path: Path, record: str) -> int:
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.reader(stream)
        return next(reader.line_num for cells in reader if cells[:1] == [record])
