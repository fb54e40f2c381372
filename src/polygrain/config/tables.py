"""From a table's YAML to the runs behind it.

`reports/table1.pdf` is the default scale with all its seeds; any other scale or number of seeds has its own folder, so
that nothing made at smoke scale can land under a default name.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polygrain.config import ledger
from polygrain.config.budget import facts
from polygrain.config.compose import Config
from polygrain.config.inputs import code_of, environment_of
from polygrain.config.project import Project
from polygrain.config.runs import SEGMENT, Run
from polygrain.config.schema import check_schema
from polygrain.config.stages import Stage, configuration, evaluated, run_stages, stage_of
from polygrain.config.yamlfile import read_mapping
from polygrain.provenance.errors import UserError, nearest
from polygrain.provenance.files import canonical_json, sha256_bytes

DEFAULT_SCALE = "cpu"
FORMATS = ("pdf", "csv", "md", "tex")
_ABSENT = object()
_FOLDER = re.compile(rf"(?P<scale>{SEGMENT}?)(?:-seeds(?P<seeds>[1-9]\d*))?")


@dataclass(frozen=True)
class Table:
    """A table at a scale over the first `seeds` seeds of its YAML (None: all of them)."""

    name: str
    scale: str = DEFAULT_SCALE
    seeds: int | None = None

    @property
    def folder(self) -> Path:
        """Where its files go."""
        if self.scale == DEFAULT_SCALE and self.seeds is None:
            return Path("reports")
        return Path("reports", self.scale + (f"-seeds{self.seeds}" if self.seeds else ""))

    @classmethod
    def parse(cls, path: str | Path) -> "Table":
        """Read a target such as `reports/table1.pdf` or `reports/smoke-seeds1/table1.pdf`.

        Raises UserError otherwise.
        """
        path = Path(path)
        if path.parts[:1] == ("reports",) and path.suffix.lstrip(".") in FORMATS:
            if len(path.parts) == 2:
                return cls(path.stem)
            match = _FOLDER.fullmatch(path.parts[1])
            if len(path.parts) == 3 and match is not None:
                seeds = match["seeds"]
                return cls(path.stem, match["scale"], int(seeds) if seeds else None)
        raise UserError(f"{path}: not a table; a table is reports/NAME.pdf or reports/SCALE[-seedsN]/NAME.pdf")


def specification(project: Project, table: Table) -> dict[str, Any]:
    """The table's YAML, checked. Raises UserError when it does not exist or has an unknown key."""
    path = project.params / "table" / f"{table.name}.yaml"
    if not path.is_file():
        known = [other.stem for other in path.parent.glob("*.yaml")]
        raise UserError(f"{path}: no such table{nearest(table.name, known)}")
    spec = read_mapping(path, "correct it")
    check_schema(f"params/table/{path.name}", spec, project.schemas / "table.schema.yaml")
    if table.seeds is not None and table.seeds > len(spec["seeds"]):
        raise UserError(
            f"{table.folder}: the table has {len(spec['seeds'])} seeds, {table.seeds} asked; add seeds to {path}"
        )
    return spec


def row_runs(spec: dict[str, Any], row: dict[str, Any], table: Table) -> list[Run]:
    """The runs behind one row, a seed each."""
    seeds = spec["seeds"][: table.seeds]
    return [Run(table.scale, spec["dataset"], row["method"], row.get("variant", "base"), seed) for seed in seeds]


def rows(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """All rows of a table, through its groups."""
    return [row for group in spec["groups"] for row in group["rows"]]


def table_stages(project: Project, table: Table) -> list[Stage]:
    """Every stage that a table needs, itself last."""
    if table.name == ledger.NAME:
        return [table_stage(project, table)]
    spec = specification(project, table)
    runs = [run for row in rows(spec) for run in row_runs(spec, row, table)]
    datasets = {name: None for run in runs for name in evaluated(configuration(project, run), run)}
    stages = [stage_of(project, "prepare", Path("data", name)) for name in datasets]
    for run in runs:
        stages.extend(run_stages(project, run))
    return [*stages, table_stage(project, table)]


def table_stage(project: Project, table: Table) -> Stage:
    """The job that writes one table.

    Its configuration names the inputs of every run, so the claim id follows from it. The ledger is a table without
    runs.
    """
    outputs = tuple(table.folder / f"{table.name}.{kind}" for kind in FORMATS)
    if table.name == ledger.NAME:
        return ledger.ledger_stage(project, table.folder, outputs)
    spec = specification(project, table)
    resolved: dict[str, Any] = {**spec, "groups": []}
    inputs: list[Path] = []
    datasets: dict[str, None] = {}
    for group in spec["groups"]:
        filled = [_fill(project, spec, row, table) for row in group["rows"]]
        resolved["groups"].append({**group, "rows": filled})
        for row in group["rows"]:
            for run in row_runs(spec, row, table):
                datasets.update(dict.fromkeys(evaluated(configuration(project, run), run)))
                inputs.extend((run.path / "metrics.jsonl", *run_stages(project, run)[-1].outputs))
    _check_settings(table, resolved)
    manifests = [Path("data", name, "manifest.json") for name in datasets]
    sources = [Path("params", "reported", name) for name in spec.get("reported_sources", [])]
    files = (*manifests, *sources, *inputs)
    resolved |= {
        "scale": table.scale,
        "seeds": spec["seeds"][: table.seeds],
        "manifests": [str(path) for path in manifests],
        "inputs": [str(path) for path in files],
        "reported_sources": [str(path) for path in sources],
    }
    return Stage(
        verb=table.name,
        directory=table.folder,
        config=resolved,
        entries=("polygrain.report.build",),
        inputs=files,
        outputs=outputs,
        minutes=1,
        memory=1000,
    )


def frozen_table(table: Table) -> Stage:
    """The job as it was written down when the job graph was built; paths are relative to the current folder."""
    outputs = tuple(table.folder / f"{table.name}.{kind}" for kind in FORMATS)
    path = Stage(table.name, table.folder, {}, (), (), outputs).config_path
    if not path.is_file():
        raise UserError(f"{path}: not written; build through snakemake, or leave out --workflow")
    config = read_mapping(path, "delete it and build through snakemake, which writes it")
    return Stage(table.name, table.folder, config, (), tuple(map(Path, config["inputs"])), outputs)


def _fill(project: Project, spec: dict[str, Any], row: dict[str, Any], table: Table) -> dict[str, Any]:
    """A row with its runs, what they cost, the settings that the table shows, and the hashes of what decides them."""
    runs = row_runs(spec, row, table)
    config = configuration(project, runs[0])
    return {
        **row,
        "runs": [str(run.path) for run in runs],
        "facts": facts(config),
        "settings": _settings(config, [column["setting"] for column in spec["columns"] if "setting" in column]),
        "inputs": {str(run.path): _hashes(project, run) for run in runs},
    }


def _settings(config: Config, keys: list[str]) -> dict[str, Any]:
    """The values of dotted keys, of those that this run has: another method's constructor takes other values."""
    found: dict[str, Any] = {}
    for key in keys:
        value: Any = config
        for part in key.split("."):
            value = value.get(part, _ABSENT) if isinstance(value, dict) else _ABSENT
        if value is not _ABSENT:
            found[key] = value
    return found


def _check_settings(table: Table, resolved: dict[str, Any]) -> None:
    """Refuse a column that no row could fill."""
    for column in resolved["columns"]:
        key = column.get("setting")
        if key and not any(key in row["settings"] for row in rows(resolved)):
            raise UserError(
                f"params/table/{table.name}.yaml: column '{column['id']}': no run of this table has the key '{key}';"
                " polygrain show RUN prints the keys"
            )


def _hashes(project: Project, run: Run) -> dict[str, str]:
    stages = run_stages(project, run)
    return {
        "config": sha256_bytes(canonical_json([stage.config for stage in stages]).encode()),
        "code": sha256_bytes(canonical_json([code_of(project, stage) for stage in stages]).encode()),
        "environment": sha256_bytes(canonical_json([environment_of(project, stage) for stage in stages]).encode()),
    }
