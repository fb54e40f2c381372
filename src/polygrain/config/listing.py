"""The files in a user's folder that a data set is packed from, so that the graph notices when they change.

A listing has the folder in its first line, then size, time (ns) and name of each file that may be packed; with
`compare: contents` the SHA-256 in place of the time. It belongs to one machine, so it goes into no record and no hash:
the manifest says what was packed.
"""

import os
import sys
from importlib import import_module
from pathlib import Path

from polygrain.provenance.errors import UserError
from polygrain.provenance.files import sha256_file, write_text
from polygrain.provenance.stage import Stage


def is_listed(stage: Stage) -> bool:
    """Whether a stage packs what lies in a folder, and not files that their authors made once and for all."""
    return stage.verb == "prepare" and stage.config["reader"] == "image-folder"


def listing(stage: Stage, folder: Path | None = None) -> str:
    """What lies in the folder that would be packed now, in `folder` where that is known; empty where there is none."""
    reader = import_module(stage.entries[-1])
    try:
        root, names = reader.watched(stage.config, folder)
        by_contents = stage.config.get("compare") == "contents"
        lines = [f"{_state(root / name, by_contents)} {_printed(name)}" for name in names]
    except (OSError, UserError):  # packing says why
        return ""
    return "\n".join([_printed(str(root)), *lines, ""])


def difference(then: str, now: str) -> str:
    """What is different in a later listing, in words; empty for the same files, wherever they lie."""
    (before, *old), (after, *new) = then.splitlines(), now.splitlines()
    if old == new:
        return ""
    was, has = ({line.split(" ", 2)[2]: line for line in lines} for lines in (old, new))
    counts = {
        "added": len(has.keys() - was.keys()),
        "removed": len(was.keys() - has.keys()),
        "changed": sum(was[name] != has[name] for name in was.keys() & has.keys()),
    }
    said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f"{after}: {said}" if after == before else f"{after} instead of {before}: {said}"


def write_listing(root: Path, stage: Stage) -> Path | None:
    """Bring a stage's listing up to date; returns it when outputs were, or will be, made from another one.

    An empty one stands for a folder that is not here. Outputs that were in place before any other came from elsewhere:
    with them nothing is compared.
    """
    file, now = root / stage.listing_path, listing(stage)
    then = file.read_text(encoding="utf-8") if file.is_file() else None
    if then:
        if not now or not (what := difference(then, now)):
            return None
        print(f"{stage.directory}: its source has changed, {what}", file=sys.stderr)
    elif then is not None and not now:
        return None
    write_text(file, now)
    if not then and all((root / path).is_file() for path in stage.outputs):
        os.utime(file, (0, 0))
        return None
    return file


def source_changes(root: Path, stage: Stage) -> str:
    """How the source of a packed data set differs from what was packed, as far as that is known here; else empty."""
    known = next((root / path for path in (stage.packed_listing, stage.listing_path) if (root / path).is_file()), None)
    then = known.read_text(encoding="utf-8") if known else ""
    now = listing(stage) or (listing(stage, Path(then.partition("\n")[0])) if then else "")
    return difference(then, now) if then and now else ""


def _state(file: Path, by_contents: bool) -> str:
    about = os.stat(file)
    return f"{about.st_size} {sha256_file(file) if by_contents else about.st_mtime_ns}"


def _printed(name: str) -> str:
    return os.fsencode(name).decode(errors="backslashreplace").replace("\n", "\\n")
