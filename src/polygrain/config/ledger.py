"""The ledger: where a paper's text and its released code differ, and what is ours because no source says it.

`params/ledger/{method}.yaml` holds the lines of a method. Each names the switch of a run's configuration that chooses
between its two arms.
"""

from pathlib import Path
from typing import Any

from polygrain.config.compose import choices
from polygrain.config.project import Project
from polygrain.config.yamlfile import read_mapping
from polygrain.provenance.errors import UserError, nearest

NAME = "ledger"
ARMS = {"deviation": ("described", "released"), "reconstructed": ("ours", "other")}
"""What the two arms of a line are called, by its kind."""

Line = dict[str, Any]


def read_ledger(project: Project, method: str = "") -> list[Line]:
    """The lines of all methods in the order of their names, or those of one, each with its `method`.

    Raises UserError naming file and line of anything that is not as the schema says, and for an unknown method.
    """
    known = choices(project.params, NAME)
    if method and method not in known:
        raise UserError(f"no ledger of '{method}'{nearest(method, known)}")
    return [line for name in ([method] if method else known) for line in _lines(project, name)]


def _lines(project: Project, method: str) -> list[Line]:
    from polygrain.config.ledger_models import Ledger  # pydantic is loaded where something is checked

    where = f"params/{NAME}/{method}.yaml"
    content = read_mapping(project.root / where, where=where)
    Ledger.of(where, content)
    if content["method"] != method or method not in choices(project.params, "method"):
        raise UserError(
            f"{where}: its method is '{content['method']}'; a ledger has the name of the method it is about"
        )
    return [{"method": method, **line} for line in content["lines"]]


def arms(line: Line) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two arms of a line: described and released, or ours and the other."""
    first, second = ARMS[line["kind"]]
    return line[first], line[second]


def ledger_config(project: Project, folder: Path) -> dict[str, Any]:
    """What the job that typesets the ledger of all methods obeys.

    Raises UserError for a folder of a scale, and as `read_ledger` does.
    """
    if folder != Path("reports"):
        raise UserError(f"{folder}/{NAME}.pdf: the ledger has no scale; it is reports/{NAME}.pdf")
    return {"inputs": [], "lines": read_ledger(project)}
