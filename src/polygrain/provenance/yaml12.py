"""YAML as DVC reads and writes it: version 1.2, where `1e-3` is a number and `yes` a text; other parsers disagree.

DVC's own library takes seconds to read a lock of a hundred stages. So PyYAML's C parser reads here, with that library's
rules for scalars. Values that are compared with a lock must go through this module.
"""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.resolver import implicit_resolvers

from polygrain.provenance.errors import UserError


class _Loader(yaml.CSafeLoader):
    """As for DVC, a key that occurs twice is a fault."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key occurs twice", node.start_mark)
        return mapping


def _integer(loader: yaml.CSafeLoader, node: yaml.ScalarNode) -> int:
    """A leading zero does not make a number octal in version 1.2."""
    text = str(loader.construct_scalar(node)).replace("_", "")
    digits = text.lstrip("+-")
    base = {"0b": 2, "0o": 8, "0x": 16}.get(digits[:2], 10)
    return int(digits[2:] if base != 10 else digits, base) * (-1 if text.startswith("-") else 1)


_Loader.yaml_implicit_resolvers = {}
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
for _versions, _tag, _pattern, _first in implicit_resolvers:
    if (1, 2) in _versions:
        _Loader.add_implicit_resolver(_tag, _pattern, _first)


def parse_yaml(text: str | bytes) -> Any:
    """Parse YAML as DVC does. Raises yaml.YAMLError or ValueError."""
    return yaml.load(text, Loader=_Loader)


def load_yaml(path: Path) -> Any:
    """Parse a YAML file as DVC does. Raises UserError when it is missing or broken."""
    try:
        return parse_yaml(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: not found") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML ({one_line(error)}); correct it, or restore it from git") from error


def one_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def dump_yaml(value: Any, width: int = 80) -> str:
    """YAML text in DVC's own style, keys in the order given; lines longer than `width` are folded."""
    writer = YAML()
    writer.default_flow_style = False
    writer.width = width
    stream = io.StringIO()
    writer.dump(value, stream)
    return stream.getvalue()


def dotted(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings by dotted name. Lists, and mappings without keys, are values.

    DVC writes a parameter file that it tracks as a whole nested, and one whose keys are listed by dotted name.
    """
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
