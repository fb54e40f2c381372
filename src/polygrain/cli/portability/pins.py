"""`polygrain portability --pins`: what each pin of the instruction set is for, operation by operation.

On this processor alone: a pin that changes nothing here may be the one that another processor needs.
"""

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from tqdm import tqdm

from polygrain.cli.bench.determinism import INSTRUCTION_SET
from polygrain.cli.portability.children import Children, children
from polygrain.cli.portability.compare import Seen, read_operations, unequal
from polygrain.cli.portability.processor import NATIVE, command, variables
from polygrain.config.project import Project

ALL = "all of these"


def pins(project: Project) -> None:
    """Print how many operations give other bits without each pin. Raises UserError when a child fails."""
    everything = variables(project.source)
    sides = {name: {key: everything[key] for key in everything if key != name} for name in INSTRUCTION_SET}
    sides["MKL_CBWR=AVX2"] = {**everything, "MKL_CBWR": "AVX2"}
    sides[ALL] = {key: everything[key] for key in everything if key not in INSTRUCTION_SET}
    tasks = {"": everything, **sides}
    found = {}
    with (
        tempfile.TemporaryDirectory(prefix="polygrain-pins-") as folder,
        children() as several,
        tqdm(total=len(tasks), desc="pins", unit="process") as bar,
    ):
        asks = {name: partial(_ask, Path(folder, name or "pinned"), tasks[name], several) for name in tasks}
        for name, seen in several.each(asks):
            found[name] = seen
            bar.update()
    print("\n".join(lines(found.pop(""), {name: found[name] for name in sides})))


def lines(pinned: Seen, sides: Mapping[str, Seen]) -> list[str]:
    """A table in Markdown: what was left out, what MKL and torch then choose, and whose results are other bits."""
    total = sum(map(len, pinned.operations.values()))
    rows = [f"| left out | other bits of {total} | by library | choices |", "| --- | ---: | --- | --- |"]
    for name, seen in sides.items():
        wrong = {
            library: len(unequal(operations, seen.operations.get(library, {})))
            for library, operations in pinned.operations.items()
        }
        where = "; ".join(f"{library}: {count}" for library, count in wrong.items() if count)
        choices = ", ".join(f"{library} {choice}" for library, choice in seen.chosen.items())
        instead = " in place of its value" if "=" in name else ""
        rows.append(f"| {name}{instead} | {sum(wrong.values())} | {where or 'none'} | {choices} |")
    return [f"{pinned.processor}", "", *rows]


def _ask(place: Path, environment: Mapping[str, str], several: Children) -> Seen:
    """The hashes of all operations in a process with this environment."""
    mkl = place / "mkl.txt"
    asked = {**environment, "MKL_VERBOSE": "1", "MKL_VERBOSE_OUTPUT_FILE": str(mkl)}
    several.run(command(NATIVE, "polygrain.cli.portability.operations"), place.parent, asked, place / "operations.txt")
    return read_operations(place / "operations.txt", mkl, 0.0)
