"""The closed schema of a resolved configuration: an unknown key is an error that names the nearest known one.

The fixed part is a JSON schema (workflow/schemas/run.schema.yaml); the values of methods, backbones, optimisers and
evaluators are held against the signatures in the source.
"""

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from polygrain.config.compose import Config
from polygrain.config.signature import assigned_name, check_values, keywords, modules
from polygrain.provenance.errors import UserError, nearest


@cache
def _validator(path: Path) -> Draft202012Validator:
    return Draft202012Validator(yaml.safe_load(path.read_text()))


def check_schema(where: str, value: Any, schema: Path) -> None:
    """Hold `value` against a JSON schema file. Raises UserError with the dotted key and the nearest known key."""
    error = best_match(_validator(schema).iter_errors(value))
    if error is not None:
        raise UserError(f"{where}: {_explain(error)}")


def _explain(error: ValidationError) -> str:
    place = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        assert isinstance(error.instance, dict)
        assert isinstance(error.schema, dict)
        known = error.schema.get("properties", {})
        unknown = next(key for key in error.instance if key not in known)
        return f"unknown key '{f'{place}.' if place else ''}{unknown}'{nearest(unknown, known)}"
    return f"{f'key {place!r}: ' if place else ''}{error.message}"


def check_config(where: str, config: Config, schemas: Path) -> None:
    """Check a resolved run configuration. Raises UserError naming the run, the key and the nearest known key."""
    check_schema(where, config, schemas / "run.schema.yaml")
    method, backbone, optimizer = config["method"], config["backbone"], config["optimizer"]
    module = _module(where, "methods", method["name"])
    check_values(f"{where}: method.values", method["values"], keywords(module, assigned_name(module, "METHOD")))
    expected = dict(keywords(_module(where, "backbones", backbone["name"]), "build"))
    expected.pop("channels", None)
    check_values(f"{where}: backbone", {key: value for key, value in backbone.items() if key != "name"}, expected)
    check_values(f"{where}: optimizer.values", optimizer["values"], keywords("polygrain.nn.optim", optimizer["name"]))
    for protocol, declared in config["evaluate"]["protocols"].items():
        module = _module(where, "evaluate", protocol)
        check_values(f"{where}: evaluate.protocols.{protocol}.values", declared["values"], keywords(module, "evaluate"))
    _module(where, "data.readers", config["dataset"]["reader"])
    _check_fit(where, config)
    _check_mode(where, config, schemas.parents[1] / "params")


def check_dataset(where: str, described: Config, schemas: Path) -> None:
    """Check the file of a data set. Raises UserError as `check_config` does."""
    whole = yaml.safe_load((schemas / "run.schema.yaml").read_text(encoding="utf-8"))
    error = best_match(
        Draft202012Validator({**whole["properties"]["dataset"], "$defs": whole["$defs"]}).iter_errors(described)
    )
    if error is not None:
        raise UserError(f"{where}: {_explain(error)}")


def _module(where: str, package: str, name: str) -> str:
    known = modules(f"polygrain.{package}")
    file = name.replace("-", "_")
    if file not in known:
        raise UserError(f"{where}: no module '{name}' in polygrain.{package}{nearest(file, known)}")
    return f"polygrain.{package}.{file}"


def _check_fit(where: str, config: Config) -> None:
    """Refuse a configuration that cannot run before anything is started."""
    pretrain = config["pretrain"]
    if pretrain["batch"] > pretrain["images"]:
        raise UserError(
            f"{where}: pretrain.batch {pretrain['batch']} is larger than pretrain.images {pretrain['images']};"
            " lower the batch or raise the subset"
        )
    if (pretrain["encoder_passes"] is None) == (pretrain["epochs"] is None):
        raise UserError(f"{where}: give one of pretrain.encoder_passes and pretrain.epochs, and null for the other")


def _check_mode(where: str, config: Config, params: Path) -> None:
    """Refuse to call a run released whose switches are not those of the release."""
    method = config["method"]
    if method["mode"] != "released":
        return
    path = params / "mode" / method["name"] / "released.yaml"
    for key, value in yaml.safe_load(path.read_text())["method"]["values"].items():
        if method["values"][key] != value:
            raise UserError(
                f"{where}: method.mode is released, but the release has {key}: {value}, not {method['values'][key]};"
                " take that value, or mode described"
            )
