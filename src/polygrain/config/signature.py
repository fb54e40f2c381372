"""The values that a method, backbone, optimiser or evaluator takes, read from its source without importing it.

A constructor's signature is the schema of its YAML, so it is written once. It is read from the syntax tree, because
torch must not be imported while the job graph is built.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from polygrain.config.check import Strict
from polygrain.config.project import SOURCE
from polygrain.provenance.code import syntax_tree
from polygrain.provenance.errors import UserError


@cache
def modules(package: str) -> tuple[str, ...]:
    """Names of the modules directly inside `package` (for example `polygrain.methods`)."""
    folder = SOURCE.joinpath(*package.split("."))
    return tuple(sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__"))


@cache
def constant(module: str, name: str) -> Any:
    """The value of `name = ...` at the top level of `module`: a literal, or the name that stands there."""
    path, tree = _parsed(module)
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                return value.id if isinstance(value, ast.Name) else ast.literal_eval(value)
    raise UserError(f"{path}: it must hold {name} = ... at its top level")


@cache
def values_model(module: str, name: str, *, without: tuple[str, ...] = ()) -> type[Strict]:
    """The model of the values that `name` in `module` takes, less those that no YAML gives.

    They are the keyword-only parameters of a function or of a class's constructor. Raises UserError when there is no
    such name, and for an annotation that cannot describe a YAML value.
    """
    path, tree = _parsed(module)
    node = next((node for node in tree.body if getattr(node, "name", "") == name), None)
    fields: dict[str, Any] = {}
    for key, annotation, required in _parameters(node):
        try:
            kind = eval(annotation, {"__builtins__": {}}, _NAMES)
        except (NameError, TypeError):
            raise UserError(
                f"{path}: annotation '{annotation}' cannot describe a YAML value; use plain types"
            ) from None
        fields[key] = (kind, Field(... if required else None, description=annotation))
    if node is None:
        raise UserError(f"{path}: no function or class '{name}'")
    return create_model(name, __base__=Strict, **{key: field for key, field in fields.items() if key not in without})


@cache
def _parsed(module: str) -> tuple[Path, ast.Module]:
    path = SOURCE.joinpath(*module.split(".")).with_suffix(".py")
    return path, syntax_tree(path.read_text(encoding="utf-8"))


def _parameters(node: ast.stmt | None) -> Iterator[tuple[str, str, bool]]:
    """Name, annotation as written, and whether it must be given, of each value."""
    if isinstance(node, ast.ClassDef):
        node = next((member for member in node.body if getattr(member, "name", "") == "__init__"), None)
    if isinstance(node, ast.FunctionDef):
        for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
            yield argument.arg, ast.unparse(argument.annotation) if argument.annotation else "Any", default is None


class _List:
    """`tuple` in an annotation: YAML gives a list, whose entries are held against those of the tuple."""

    def __class_getitem__(cls, entries: Any) -> Any:
        return Annotated[tuple[entries], Field(strict=False)]


_NAMES: dict[str, Any] = {kind.__name__: kind for kind in (int, float, str, bool, list, dict, object)}
_NAMES |= {"Any": Any, "Literal": Literal, "Mapping": Mapping, "Sequence": Sequence, "tuple": _List}
