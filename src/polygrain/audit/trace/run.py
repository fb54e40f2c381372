"""`polygrain trace`: from one printed number to the files that it comes from, each checked by hashing."""

from collections.abc import Sequence
from pathlib import Path

from polygrain.audit.cells import CellAddress, find_cell, printed_cell
from polygrain.audit.crate_reader import read_crate
from polygrain.audit.evidence import Evidence
from polygrain.audit.trace.links import Printer, labelled, wrapped
from polygrain.audit.trace.values import Recomputed, recompute
from polygrain.audit.write_crate import evidence_of, published_crate, sources_of
from polygrain.config.project import Project
from polygrain.config.published import PUBLISHED, published
from polygrain.config.stages import stages_behind
from polygrain.provenance.hashes import md5_file
from polygrain.provenance.lock import LOCK
from polygrain.provenance.stage import Stage

TITLES = {
    "evaluate": "result",
    "features": "features",
    "pretrain": "checkpoint",
    "prepare": "data",
    "compose": "scenes",
    "table": "table",
}


def trace(project: Project, target: str, row: str, column: str, *, full: bool) -> int:
    """Print the chain from a cell to the data. Returns 1 when a link is broken, else 0."""
    cell = find_cell(project, target, row, column)
    chain = _chain(cell, stages_behind(project, [target]))
    evidence = evidence_of(project, chain)
    evidence.published = read_crate(published_crate(cell.table.folder), project.root)
    printer = Printer(evidence, full)
    lines, faults = _head(project, cell, evidence)
    used = {path for stage in chain for path in stage.outputs}
    for title, stage, paths in _links(cell, chain):
        inputs = [path for path in stage.inputs if path in used]
        lines += _heading(cell, stage)
        lines += ["", *printer.link(title, stage, paths, inputs)]
        lines += _sources(project, evidence, stage, printer)
    lines += ["", *printer.legend(), *_verdict(target, printer, [*faults, *printer.faults])]
    print("\n".join(lines))
    return 1 if faults or printer.faults else 0


def _head(project: Project, cell: CellAddress, evidence: Evidence) -> tuple[list[str], list[str]]:
    """The printed cell, and the same computed again from its sources; what disagrees is a fault."""
    lines = [f"{cell.table.folder / cell.table.name}.pdf: {cell.printed_in}"]
    texts: dict[str, str] = {}
    notes: dict[str, None] = {}
    source = cell.table.folder / f"{cell.table.name}.csv"
    copy = published([str(source)])[source]
    for path in (source, copy):
        place = project.root / path
        line = printed_cell(place.read_text(encoding="utf-8"), cell) if place.is_file() else None
        if line is None:
            lines.append(labelled("printed", f"{'has no such cell' if place.is_file() else 'not here'}: {path}"))
        else:
            texts[str(path)] = line["text"]
            unit = f" {line['unit']}" if line["unit"] == "%" else ""
            lines.append(labelled("printed", f"{line['text']}{unit}  in {path}"))
            notes[line.get("note") or ""] = None
    faults = _published_fault(project, evidence, source, copy)
    found = recompute(project, cell)
    lines += [line for note in notes if note for line in wrapped("  note", note)]
    labels = ["computed", *[""] * len(found.lines)]
    lines += [line for label, text in zip(labels, found.lines, strict=False) for line in wrapped(label, text)]
    return lines, [*faults, *found.faults, *_disagreements(cell, evidence, found, texts)]


def _published_fault(project: Project, evidence: Evidence, source: Path, copy: Path) -> list[str]:
    """The published copy must be the table of dvc.lock."""
    md5 = evidence.lock.md5(source)
    if not md5 or not (project.root / copy).is_file() or md5_file(project.root / copy) == md5:
        return []
    return [f"{copy}: is not the {source} of {LOCK}"]


def _disagreements(cell: CellAddress, evidence: Evidence, found: Recomputed, texts: dict[str, str]) -> list[str]:
    """A text other than what the sources give is a fault, unless the configuration changed since."""
    if found.text is None:
        return []
    table = next(stage for stage in evidence.stages if stage.outputs[0].stem == cell.table.name)
    faults = []
    for path, text in texts.items():
        if path.startswith(PUBLISHED):
            moved = bool(evidence.changes_since_lock(table))
        else:
            moved = evidence.state(table, table.config_path).as_recorded is False
        if text != found.text and not moved:
            faults.append(f"{path}: prints {text} where its sources give {found.text}")
    return faults


def _chain(cell: CellAddress, stages: Sequence[Stage]) -> list[Stage]:
    """The stages behind a cell, from the table to the data; a cell that is not measured has the table's alone."""
    table = stages[-1]
    if not cell.protocol:
        return [table]
    runs = [
        stage
        for run in cell.runs
        for verb in ("evaluate", "features", "pretrain")
        for stage in stages
        if stage.verb == verb and stage.directory == run.path and stage.task in (verb, cell.protocol)
    ]
    read = {path for stage in runs for path in stage.inputs}
    scenes = [stage for stage in stages if stage.verb == "compose" and read & set(stage.outputs)]
    read |= {path for stage in scenes for path in stage.inputs}
    data = [stage for stage in stages if stage.verb == "prepare" and read & set(stage.outputs)]
    return [table, *runs, *scenes, *data]


def _links(cell: CellAddress, chain: Sequence[Stage]) -> list[tuple[str, Stage, list[Path]]]:
    """Each stage with its title and those of its files that the cell comes from."""
    links = []
    for stage in chain:
        paths = list(stage.outputs)
        if stage.verb in ("prepare", "compose"):
            paths.sort(key=lambda path: path.name != "manifest.json")
        if stage.verb == "table":
            paths = [path for path in paths if path.suffix in (".pdf", ".csv")]
        links.append((TITLES[stage.verb], stage, paths))
    return links


def _heading(cell: CellAddress, stage: Stage) -> list[str]:
    """A line above the links of each seed."""
    seeds = [run.seed for run in cell.runs if stage.verb == "evaluate" and stage.directory == run.path]
    return [line for seed in seeds for line in ("", f"--- seed {seed}: result, features, checkpoint ---")]


def _sources(project: Project, evidence: Evidence, stage: Stage, printer: Printer) -> list[str]:
    """Where packed data come from."""
    if stage.verb != "prepare":
        return []
    raw = sources_of(project, stage)
    found = [(source.name, source.sha256) for source in raw]
    account = evidence.account(stage)
    if raw:
        lines = wrapped("  source", f"{raw[0].description}; licence {raw[0].licence}")
    elif account is not None:
        # a published crate lists them too, without a size
        found = [(name, content.sha256) for name, content in sorted(account.files.items()) if content.size is None]
        lines = wrapped(
            "  source", f"by {account.source}; {stage.directory}/manifest.json, which is not here, says more"
        )
    else:
        return wrapped("  source", f"{stage.directory}/manifest.json names the raw files; it is not here")
    lines += [
        labelled("", f"{name}  sha256 {printer.short(sha256)}  checked when it was read") for name, sha256 in found
    ]
    return lines


def _verdict(target: str, printer: Printer, faults: Sequence[str]) -> list[str]:
    unique = dict.fromkeys(faults)
    lines = [line for fault in unique for line in wrapped("WRONG", fault)]
    absent = f", {printer.absent} not here" if printer.absent else ""
    state = f"{len(unique)} contradiction{'s' if len(unique) > 1 else ''}" if unique else "no contradiction"
    lines.append(labelled("verdict", f"{state}; {printer.verified} files verified by hashing{absent}"))
    lines += [labelled("all of it", f"polygrain restore {target}")] if printer.absent else []
    return lines
