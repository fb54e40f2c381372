"""The keyword values that a method, backbone, optimiser or evaluator takes, read from its source without importing it.

A constructor's signature is the schema of its YAML: written once, and readable at the time the job graph is built, when
torch must not be imported.
"""

import ast
from functools import cache
from pathlib import Path
from typing import Any

from polygrain.provenance.errors import UserError, nearest

SOURCE = Path(__file__).resolve().parents[2]


@cache
def modules(package: str) -> tuple[str, ...]:
    """Names of the modules directly inside `package` (for example `polygrain.methods`)."""
    folder = SOURCE.joinpath(*package.split("."))
    return tuple(sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__"))


@cache
def keywords(module: str, name: str) -> dict[str, tuple[str, bool]]:
    """Keyword-only parameters of function `name`, or of class `name`'s constructor, in `module`.

    Returns parameter -> (annotation as written, whether it must be given).
    """
    path = SOURCE.joinpath(*module.split(".")).with_suffix(".py")
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and member.name == "__init__":
                    return _keyword_only(member)
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _keyword_only(node)
    raise UserError(f"{path}: no function or class '{name}' with a constructor")


@cache
def assigned_name(module: str, constant: str) -> str:
    """The name on the right of `constant = name` at the top level of `module`."""
    path = SOURCE.joinpath(*module.split(".")).with_suffix(".py")
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=target)], value=ast.Name(id=name)) if target == constant:
                return name
    raise UserError(f"{path}: it must say which class to use: {constant} = ...")


def _keyword_only(function: ast.FunctionDef) -> dict[str, tuple[str, bool]]:
    arguments = function.args
    return {
        argument.arg: (ast.unparse(argument.annotation) if argument.annotation else "Any", default is None)
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    }


def check_values(where: str, values: dict[str, Any], expected: dict[str, tuple[str, bool]]) -> None:
    """Hold a mapping against keyword parameters.

    Raises UserError naming the first key that is unknown, missing or ill-typed.
    """
    for key in values:
        if key not in expected:
            raise UserError(f"{where}: unknown key '{key}'{nearest(key, expected)}")
    for key, (annotation, required) in expected.items():
        if key not in values:
            if required:
                raise UserError(f"{where}: key '{key}' ({annotation}) is missing")
        elif not _fits(values[key], ast.parse(annotation, mode="eval").body):
            raise UserError(f"{where}: key '{key}' must be {annotation}, not {values[key]!r}")


_SCALARS = {"int": int, "str": str, "bool": bool, "float": (int, float)}


def _fits(value: Any, annotation: ast.expr) -> bool:
    """Whether a YAML value fits an annotation of scalars, None, Literal, lists, tuples, mappings and unions."""
    match annotation:
        case ast.Name(id="Any" | "object"):
            return True
        case ast.Name(id=name) if name in _SCALARS:
            return isinstance(value, _SCALARS[name]) and (name == "bool" or not isinstance(value, bool))  # type: ignore[arg-type]
        case ast.Constant(value=None):
            return value is None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _fits(value, left) or _fits(value, right)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            elements = choices.elts if isinstance(choices, ast.Tuple) else [choices]
            return any(isinstance(element, ast.Constant) and element.value == value for element in elements)
        case ast.Subscript(value=ast.Name(id="list" | "Sequence"), slice=item):
            return isinstance(value, list) and all(_fits(entry, item) for entry in value)
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[item, ast.Constant(value=ellipsis)])) if (
            ellipsis is ...
        ):
            return isinstance(value, list) and all(_fits(entry, item) for entry in value)
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=items)):
            return isinstance(value, list) and len(value) == len(items) and all(map(_fits, value, items))
        case ast.Subscript(value=ast.Name(id="dict" | "Mapping"), slice=ast.Tuple(elts=[_, item])):
            return isinstance(value, dict) and all(_fits(entry, item) for entry in value.values())
    raise UserError(f"annotation '{ast.unparse(annotation)}' cannot describe a YAML value; use plain types")
