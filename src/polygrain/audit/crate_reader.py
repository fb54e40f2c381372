"""Read a crate: what it says of each stage, for a checkout without the records."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from polygrain.audit.account import Account, Content
from polygrain.audit.crate import ACTION, DIRTY, USAGE
from polygrain.audit.crate_files import several
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import read_json


def read_crate(path: Path, root: Path) -> dict[str, Account]:
    """The account of each job whose times the crate knows, by job name; none without the file.

    Raises UserError when it is no crate of ours.
    """
    if not (root / path).is_file():
        return {}
    try:
        entities = {entity["@id"]: entity for entity in read_json(root / path)["@graph"]}
        actions = [entity for name, entity in entities.items() if name.startswith(ACTION) and "startTime" in entity]
        return {action["@id"].removeprefix(ACTION): _account(path, action, entities) for action in actions}
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a crate of ours ({error!r}); restore it from git, or record again") from error


def _account(path: Path, action: Mapping[str, Any], entities: Mapping[str, Any]) -> Account:
    usage = {
        entities[item["@id"]]["name"]: float(entities[item["@id"]]["value"])
        for item in several(action["resourceUsage"])
    }
    properties = [entities[item["@id"]] for item in several(action["additionalProperty"])]
    commits = [entity["value"] for entity in properties if entity["name"] == "commit"]
    commit, _, state = commits[0].partition(" ") if commits else ("", "", "")
    return Account(
        source=path,
        command=action["description"],
        started=action["startTime"],
        finished=action["endTime"],
        commit=commit,
        dirty=state == DIRTY,
        machine=dict(sorted(_facts(action, properties, entities))),
        files=dict(_files(action, entities)),
        **{name: usage[name] for name in USAGE},
    )


def _facts(
    action: Mapping[str, Any], properties: list[Mapping[str, Any]], entities: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    for item in several(action.get("environment")):
        yield f"pins.{entities[item['@id']]['name']}", entities[item["@id"]]["value"]
    for machine in (entity for entity in properties if entity["name"] == "machine"):
        for item in several(machine.get("valueReference")):
            yield entities[item["@id"]]["name"], entities[item["@id"]]["value"]


def _files(action: Mapping[str, Any], entities: Mapping[str, Any]) -> Iterator[tuple[str, Content]]:
    """Every path of every content that the job read or made."""
    for item in (*several(action.get("object")), *several(action["result"])):
        entity = entities[item["@id"]]
        size = int(entity["contentSize"]) if "contentSize" in entity else None
        content = Content(entity["sha256"], entity.get("md5", ""), size)
        yield from ((name, content) for name in several(entity["alternateName"]))
