"""Entities of a crate that several actions share: files, named by content, and single facts, named by value.

The tables themselves are named by path. All other files lie outside of the crate's folder, where RO-Crate allows no
relative path, so they are named by content, as RFC 6920 has it: `ni:///sha-256;...`, an absolute URI that anybody can
check against the file, with the paths in the repository as `alternateName`. Files of equal bytes are one entity with
several paths. None of them can be downloaded by its URI: `dvc pull` fetches them.
"""

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polygrain.audit.account import Content
from polygrain.provenance.files import sha256_bytes

Entity = dict[str, Any]
FORMATS = {
    ".csv": "text/csv",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown",
    ".npz": "application/zip",
    ".pdf": "application/pdf",
    ".tex": "application/x-tex",
    ".yaml": "application/yaml",
}


def entity(identifier: str, kind: str, **properties: Any) -> Entity:
    """An entity of the graph."""
    return {"@id": identifier, "@type": kind, **properties}


def ref(identifier: str) -> dict[str, str]:
    """A reference to an entity."""
    return {"@id": identifier}


def refs(identifiers: Iterable[str]) -> list[dict[str, str]]:
    """References in a fixed order, each once."""
    return [ref(identifier) for identifier in sorted(set(identifiers))]


def single(entity: Entity) -> Entity:
    """The entity with each list of one item written as that item, as JSON-LD compacts it; empty lists are dropped."""
    return {
        key: value[0] if isinstance(value, list) and len(value) == 1 else value
        for key, value in entity.items()
        if value != []
    }


def several(value: Any) -> list[Any]:
    """The items of a property, whether it was written as a list or as one item."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def file_uri(sha256: str) -> str:
    """Name a content by its SHA-256 in hex, as RFC 6920 does."""
    return "ni:///sha-256;" + base64.urlsafe_b64encode(bytes.fromhex(sha256)).decode().rstrip("=")


@dataclass
class Shared:
    """What has been referred to so far, as entities by `@id`."""

    own: frozenset[Path]
    """Files in the crate's folder, which are named by path."""
    entities: dict[str, Entity] = field(default_factory=dict)

    def file(self, path: Path, content: Content, **more: str) -> str:
        """A file with its hashes; `more` are further properties. Returns its `@id`."""
        identifier = path.name if path in self.own else file_uri(content.sha256)
        found = self.entities.setdefault(identifier, entity(identifier, "File", alternateName=[]))
        found["alternateName"] = sorted({*found["alternateName"], path.as_posix()})
        found["name"] = found["alternateName"][0]
        found |= {"sha256": content.sha256, **more}
        if content.md5:
            found["md5"] = content.md5
        if content.size is not None:
            found["contentSize"] = str(content.size)
        found["encodingFormat"] = FORMATS.get(path.suffix, "application/octet-stream")
        return identifier

    def fact(self, kind: str, name: str, value: str) -> str:
        """A named value. Returns its `@id`."""
        identifier = f"#{kind}-{sha256_bytes(f'{name}={value}'.encode())[:12]}"
        return self._add(identifier, "PropertyValue", name=name, value=value)

    def machine(self, facts: dict[str, str]) -> str:
        """A processor with everything else that was recorded of it. Returns its `@id`."""
        details = [self.fact("fact", name, value) for name, value in facts.items()]
        identifier = f"#machine-{sha256_bytes(' '.join(sorted(details)).encode())[:12]}"
        processor = facts.get("processor", "unknown")
        return self._add(identifier, "PropertyValue", name="machine", value=processor, valueReference=refs(details))

    def package(self, name: str, version: str) -> str:
        """A Python package. Returns its `@id`."""
        return self._add(f"#package-{name}-{version}", "SoftwareApplication", name=name, softwareVersion=version)

    def _add(self, identifier: str, kind: str, **properties: Any) -> str:
        self.entities[identifier] = entity(identifier, kind, **properties)
        return identifier

    def ids(self, kind: str) -> list[str]:
        """The `@id`s of one type."""
        return sorted(name for name, item in self.entities.items() if kind in item["@type"])
