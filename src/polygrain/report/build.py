"""One table from its resolved configuration: read files, fill cells, write them as PDF, CSV, Markdown and LaTeX."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polygrain.provenance.claim import claim_id
from polygrain.provenance.errors import UserError, nearest
from polygrain.provenance.files import canonical_json, sha256_bytes, sha256_file, write_bytes
from polygrain.report.cells import Footer, TableContent
from polygrain.report.measured import Results
from polygrain.report.pdf import render_pdf
from polygrain.report.render import render_csv, render_latex, render_markdown
from polygrain.report.reported import read_reported
from polygrain.report.spec import Spec, parse
from polygrain.report.table import make_table

if TYPE_CHECKING:  # what a stage says of itself decides no output: it stays out of the code hash
    from polygrain.provenance.stage import Stage

RENDERERS: Mapping[str, Callable[[TableContent], bytes]] = {
    "pdf": render_pdf,
    "csv": lambda table: render_csv(table).encode(),
    "md": lambda table: render_markdown(table).encode(),
    "tex": lambda table: render_latex(table).encode(),
}


def run(stage: "Stage") -> None:
    """Write the table in every format."""
    build_table(stage.config, Path(), {path.suffix.lstrip("."): path for path in stage.outputs})


def build_table(config: dict[str, Any], root: Path, outputs: Mapping[str, Path]) -> None:
    """Write a table in the formats that `outputs` names (`pdf`, `csv`, `md`, `tex` -> path).

    Every format is rendered before the first is written, each atomically. Arguments and errors are those of
    `filled_table`.
    """
    for kind in outputs:
        if kind not in RENDERERS:
            raise UserError(f"table: no output format '{kind}'{nearest(kind, RENDERERS)}")
    table = filled_table(config, root)
    contents = {path: RENDERERS[kind](table) for kind, path in outputs.items()}
    for path, content in contents.items():
        write_bytes(path, content)


def filled_table(config: dict[str, Any], root: Path) -> TableContent:
    """The cells of a table.

    config: a table as `params/table/*.yaml` describes it, resolved by the workflow. root: the folder that run
    directories, manifests and reported files in it are relative to. A missing result is printed as missing. Raises
    UserError on a malformed configuration, result, manifest or reported file.
    """
    spec = parse(config)
    records = read_reported(root / path for path in spec.reported_sources)
    return make_table(spec, Results(root), records, footer_of(spec, root))


def footer_of(spec: Spec, root: Path) -> Footer:
    """Data hash over the manifests, claim id over the inputs of all runs. Raises UserError when one is missing."""
    manifests = {path: sha256_file(root / path) for path in spec.manifests}
    data_hash = sha256_bytes(canonical_json(manifests).encode())
    runs: dict[str, dict[str, str]] = {}
    for row in spec.rows:
        for run in row.runs:
            if run not in row.inputs:
                raise UserError(f"table: row '{row.label}' lacks the hashes of {run} under inputs")
            runs[run] = {**row.inputs[run], "data": data_hash}
    try:
        return Footer(spec.scale, tuple(spec.seeds), data_hash, claim_id(runs), spec.attestations)
    except ValueError as error:
        raise UserError(f"table: {error}") from None
