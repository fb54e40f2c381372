"""Read a crate: what it says of each stage, for a checkout without the records."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polygrain.audit.account import Account, Content
from polygrain.audit.crate import ACTION, DIRTY, USAGE
from polygrain.audit.crate_files import several
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import read_json


def read_crate(path: Path, root: Path) -> dict[str, Account]:
    """The account of each job whose times the crate holds, by job name; none without the file.

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
    def meant(value: Any) -> list[Mapping[str, Any]]:
        """The entities that a property refers to."""
        return [entities[item["@id"]] for item in several(value)]

    usage = {item["name"]: float(item["value"]) for item in meant(action["resourceUsage"])}
    properties = meant(action["additionalProperty"])
    commits = [item["value"] for item in properties if item["name"] == "commit"]
    commit, _, state = commits[0].partition(" ") if commits else ("", "", "")
    facts = {f"pins.{pin['name']}": pin["value"] for pin in meant(action.get("environment"))}
    for machine in (item for item in properties if item["name"] == "machine"):
        facts |= {fact["name"]: fact["value"] for fact in meant(machine.get("valueReference"))}
    files = {
        name: Content(file["sha256"], file.get("md5", ""), int(file["contentSize"]) if "contentSize" in file else None)
        for file in (*meant(action.get("object")), *meant(action["result"]))
        for name in several(file["alternateName"])
    }
    return Account(
        source=path,
        command=action["description"],
        started=action["startTime"],
        finished=action["endTime"],
        commit=commit,
        dirty=state == DIRTY,
        machine=dict(sorted(facts.items())),
        files=files,
        **{name: usage[name] for name in USAGE},
    )
