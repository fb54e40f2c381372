"""From a table's YAML to the runs behind it.

`reports/table1.pdf` is the default scale with all its seeds; any other scale or number of seeds has its own folder, so
that nothing made at smoke scale can land under a default name. `reports/tune/{method}.pdf` is the table of a method's
trials.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polygrain.config import ledger, run_stages, tune
from polygrain.config.budget import facts
from polygrain.config.compose import Config, choices
from polygrain.config.inputs import code_of, environment_of, input_texts
from polygrain.config.kind import Kind
from polygrain.config.project import Project
from polygrain.config.resolved import configuration
from polygrain.config.runs import SEGMENT, Run
from polygrain.config.yamlfile import read_mapping
from polygrain.provenance.attestations import Inputs, behind, read_attestations
from polygrain.provenance.errors import UserError, nearest
from polygrain.provenance.files import canonical_json, sha256_bytes
from polygrain.provenance.hashes import md5_bytes
from polygrain.provenance.stage import Stage

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
    if table.scale == tune.GROUP:
        return tune.table_of(project.params, table.name)
    path = project.params / "table" / f"{table.name}.yaml"
    if not path.is_file():
        raise UserError(f"{path}: no such table{nearest(table.name, choices(project.params, 'table'))}")
    from polygrain.config.table_models import WrittenTable  # pydantic is loaded where something is checked

    spec = read_mapping(path, where=f"params/table/{path.name}")
    WrittenTable.of(f"params/table/{path.name}", spec)
    if table.seeds is not None and table.seeds > len(spec["seeds"]):
        raise UserError(
            f"{table.folder}: the table has {len(spec['seeds'])} seeds, {table.seeds} asked; add seeds to {path}"
        )
    return spec


def row_runs(spec: dict[str, Any], row: dict[str, Any], table: Table) -> list[Run]:
    """The runs behind one row, a seed each."""
    seeds = spec["seeds"][: table.seeds]
    scale, variant = row.get("scale") or table.scale, row.get("variant", "base")
    return [Run(scale, spec["dataset"], row["method"], variant, seed) for seed in seeds]


def rows(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """All rows of a table, through its groups."""
    return [row for group in spec["groups"] for row in group["rows"]]


def _place(target: Path) -> tuple[Path, str]:
    table = Table.parse(target)
    return table.folder, table.name


def _choose(project: Project, directory: Path, task: str) -> Stage:
    """The job that writes one table.

    Its configuration names the inputs of every run, so the claim id follows from it. The ledger is a table without
    runs.
    """
    table = Table.parse(directory / f"{task}.pdf")
    if task == ledger.NAME:
        chosen = ledger.ledger_config(project, directory)
    else:
        chosen = _config(project, table, specification(project, table))
    return replace(_shape(directory, task, chosen), minutes=1, memory=1000)


def _shape(directory: Path, task: str, config: Config) -> Stage:
    return Stage(
        verb="table",
        task=task,
        directory=directory,
        config=config,
        entries=("polygrain.report.ledger" if task == ledger.NAME else "polygrain.report.build",),
        inputs=tuple(map(Path, config["inputs"])),
        outputs=tuple(directory / f"{task}.{kind}" for kind in FORMATS),
        datasets=tuple(Path(path).parent.name for path in config.get("manifests", ())),
    )


TABLE = Kind(_place, _choose, _shape)


def _config(project: Project, table: Table, spec: dict[str, Any]) -> Config:
    """The table's YAML with the runs of each row, the hashes of what decides them, and every file that it reads."""
    groups = [
        {**group, "rows": [_fill(project, spec, row, table) for row in group["rows"]]} for group in spec["groups"]
    ]
    resolved: dict[str, Any] = {**spec, "groups": groups}
    runs = [run for row in rows(spec) for run in row_runs(spec, row, table)]
    inputs: list[str] = []
    datasets: dict[str, None] = {}
    for run in runs:
        _, *judging = _stages(project, spec, run)
        datasets.update(dict.fromkeys(name for stage in judging for name in stage.datasets))
        inputs.append(str(run.path / run_stages.METRICS))
        inputs += [str(path) for stage in judging if stage.verb == "evaluate" for path in stage.outputs]
    _check_settings(table, resolved)
    _check_rows(project, spec, table)
    manifests = [f"data/{name}/manifest.json" for name in datasets]
    sources = [f"params/reported/{name}" for name in spec.get("reported_sources", [])]
    return resolved | {
        "attestations": _attestations(project, runs),
        "scale": " and ".join(dict.fromkeys(run.scale for run in runs)),
        "seeds": spec["seeds"][: table.seeds],
        "manifests": manifests,
        "inputs": [*manifests, *sources, *inputs],
        "reported_sources": sources,
    }


def _attestations(project: Project, runs: Sequence[Run]) -> int:
    """How many attestations these runs rest on, by the committed file and the present code."""
    known, count = read_attestations(project.root), 0
    for run in dict.fromkeys(runs) if known else ():
        stage = run_stages.PRETRAIN.stage(project, run.path, "pretrain")
        texts = input_texts(project, stage)
        present = Inputs(*(md5_bytes(texts[path].encode()) for path in (stage.code_path, stage.environment_path)))
        count += behind(known, stage.outputs[0].as_posix(), present)
    return count


def _stages(project: Project, spec: dict[str, Any], run: Run) -> list[Stage]:
    """The stages of one run that a table rests on, in order; its columns decide which protocols are among them."""
    names = dict.fromkeys(column["protocol"] for column in spec["columns"] if "protocol" in column)
    judging = [run_stages.EVALUATE.stage(project, run.path, name) for name in names]
    frozen = any(stage.config["needs"] == "features" for stage in judging)
    before = [run_stages.PRETRAIN.stage(project, run.path, "pretrain")]
    if frozen:
        before.append(run_stages.FEATURES.stage(project, run.path, "features"))
    return before + judging


def _fill(project: Project, spec: dict[str, Any], row: dict[str, Any], table: Table) -> dict[str, Any]:
    """A row with its runs, what they cost, the settings that the table shows, and the hashes of what decides them."""
    runs = row_runs(spec, row, table)
    config = configuration(project, runs[0])
    return {
        **row,
        "runs": [str(run.path) for run in runs],
        "facts": facts(config),
        "settings": settings(config, [column["setting"] for column in spec["columns"] if "setting" in column]),
        "inputs": {str(run.path): _hashes(project, _stages(project, spec, run)) for run in runs},
    }


def settings(config: Config, keys: Sequence[str]) -> dict[str, Any]:
    """The values of dotted keys, of those that this run has: another method's constructor takes other values."""
    found: dict[str, Any] = {}
    for key in keys:
        value: Any = config
        for part in key.split("."):
            value = value.get(part, _ABSENT) if isinstance(value, dict) else _ABSENT
        if value is not _ABSENT:
            found[key] = value
    return found


def _check_rows(project: Project, spec: dict[str, Any], table: Table) -> None:
    """Refuse two rows that are one run under two names: an ablation that cannot differ from its base."""
    labels: dict[str, str] = {}
    for row in rows(spec):
        run = row_runs(spec, row, table)[0]
        key = canonical_json([run.scale, {**configuration(project, run), "cost": None}])
        if key in labels:
            raise UserError(
                f"params/table/{table.name}.yaml: rows '{labels[key]}' and '{row['label']}' are the same run at scale"
                f" {run.scale}: variant {run.variant} changes no value there; leave one out"
            )
        labels[key] = row["label"]


def _check_settings(table: Table, resolved: dict[str, Any]) -> None:
    """Refuse a column that no row could fill."""
    for column in resolved["columns"]:
        key = column.get("setting")
        if key and not any(key in row["settings"] for row in rows(resolved)):
            raise UserError(
                f"params/table/{table.name}.yaml: column '{column['id']}': no run of this table has the key '{key}';"
                " polygrain show RUN prints the keys"
            )


def _hashes(project: Project, stages: Sequence[Stage]) -> dict[str, str]:
    return {
        "config": sha256_bytes(canonical_json([stage.config for stage in stages]).encode()),
        "code": sha256_bytes(canonical_json([code_of(project, stage) for stage in stages]).encode()),
        "environment": sha256_bytes(canonical_json([environment_of(project, stage) for stage in stages]).encode()),
    }
