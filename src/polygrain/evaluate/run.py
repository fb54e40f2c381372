"""All frozen-feature protocols of one checkpoint in one process: starting one costs more than a protocol."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from tqdm import tqdm

from polygrain.config.signature import check_values, keywords, modules
from polygrain.evaluate.result import Result
from polygrain.evaluate.store import Features
from polygrain.provenance.errors import UserError, nearest

PACKAGE = "polygrain.evaluate"
_SUPPORT = {"features", "result", "run", "store"}


def evaluate(config: dict[str, Any], features: Path, out: Path) -> None:
    """Run every protocol in `config["protocols"]` (name -> keyword values) on a features file.

    Writes `{protocol}.json` and `{protocol}.npz` into `out`. Every name and value is checked before the first
    protocol starts. Raises UserError on an unknown protocol or value and on a bad features file.
    """
    protocols: dict[str, dict[str, Any]] = config["protocols"]
    for name, values in protocols.items():
        check_protocol(name, values)
    loaded = Features.load(features)
    with tqdm(protocols.items(), desc="evaluate", unit="protocol", file=sys.stderr) as bar:
        for name, values in bar:
            bar.set_postfix_str(name)
            result: Result = import_module(_module(name)).evaluate(loaded, **values)
            result.save(out, name)


def check_protocol(name: str, values: dict[str, Any]) -> None:
    """Hold a protocol's name and values against its source. Raises UserError naming the nearest known one."""
    known = set(modules(PACKAGE)) - _SUPPORT
    if name.replace("-", "_") not in known:
        raise UserError(f"protocols: no protocol '{name}'{nearest(name, known)}")
    check_values(f"protocols.{name}", values, keywords(_module(name), "evaluate"))


def _module(name: str) -> str:
    return f"{PACKAGE}.{name.replace('-', '_')}"
