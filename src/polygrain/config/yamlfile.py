"""YAML files that a person or the workflow wrote, with one line when they are not as they must be."""

from pathlib import Path
from typing import Any

import yaml

from polygrain.provenance.errors import UserError


def read_mapping(path: Path, remedy: str = "correct it", where: str = "") -> dict[str, Any]:
    """Parse a YAML file of keys and values, which messages call `where`.

    Raises UserError that ends in `remedy` when the file is missing, no YAML, or holds anything else.
    """
    where = where or str(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{where}: not found; {remedy}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: not valid YAML ({' '.join(str(error).split())}); {remedy}") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: must be keys with values, is {type(content).__name__}; {remedy}")
    return content
