"""YAML files that must be mappings, with one line when they are not."""

from pathlib import Path
from typing import Any

import yaml

from polygrain.provenance.errors import UserError


def read_mapping(path: Path, remedy: str) -> dict[str, Any]:
    """Parse a YAML file of keys and values. Raises UserError that ends in `remedy` when it is missing or broken."""
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: not found; {remedy}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())}); {remedy}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be keys with values, is {type(content).__name__}; {remedy}")
    return content
