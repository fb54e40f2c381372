"""Configuration files are checked by pydantic models; an error is one line: which file, which key, what is wrong."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from polygrain.provenance.errors import UserError, nearest

_UNKNOWN = "unknown_key"
_ORDER = (_UNKNOWN, "missing")  # reported first: a mistyped key is often the cause of a missing one
_KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "keys with values",
    "model_type": "keys with values",
    "invalid_key": "a key that is text",
    "none_required": "null",
}
_BOUNDS = {
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "string_pattern_mismatch": "of the form {pattern}",
    "literal_error": "one of {expected}",
}


class Strict(BaseModel):
    """Base of all models: no unknown key, and no conversion except of a whole number where any number fits."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, value: Any) -> Any:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in value if isinstance(value, Mapping) else ():
            if key not in known:
                raise PydanticCustomError(_UNKNOWN, "{hint}", {"key": str(key), "hint": nearest(str(key), known)})
        return value

    @classmethod
    def of(cls, where: str, value: Any, place: str = "") -> Self:
        """The model of `value`, which stands at the dotted key `place` of `where`.

        Raises UserError naming the first unknown, missing or unfit key.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise UserError(f"{where}: {_explain(error, cls, value, place)}") from None


def _explain(error: ValidationError, model: type[BaseModel], value: Any, place: str) -> str:
    faults = error.errors(include_url=False, include_input=False)
    kinds = [fault["type"] for fault in faults]
    first = next((faults[kinds.index(kind)] for kind in _ORDER if kind in kinds), faults[0])
    path, found = _walk(value, first["loc"])
    key = ".".join(map(str, ([place] if place else []) + path))
    context = first.get("ctx", {})
    if first["type"] == _UNKNOWN:
        return f"unknown key '{f'{key}.' if key else ''}{context['key']}'{context['hint']}"
    if first["type"] == "missing":
        key, annotation = f"{key}.{first['loc'][-1]}".lstrip("."), _annotation(model, first["loc"])
        return f"key '{key}'{annotation and f' ({annotation})'} is missing"
    if first["type"] == "value_error":
        return f"{f'{key}: ' if key else ''}{context['error']}"
    # a union reports one fault for each of its members
    wanted = _annotation(model, path) or " or ".join(
        dict.fromkeys(_wanted(fault) for fault in faults if _walk(value, fault["loc"])[0] == path)
    )
    shown = repr(found)
    return f"{f'key {key!r} ' if key else ''}must be {wanted}, not {shown if len(shown) < 80 else f'{shown[:76]} ...'}"


def _annotation(model: type[BaseModel], loc: Sequence[int | str]) -> str:
    """The annotation in the source that a value is held against; empty for the models that are written here."""
    field = model.model_fields.get(str(loc[0])) if len(loc) == 1 else None
    return (field.description if field else None) or ""


def _walk(value: Any, loc: Sequence[int | str]) -> tuple[list[int | str], Any]:
    """As much of `loc` as there is in `value`, and what stands there: pydantic also names members of a union."""
    path: list[int | str] = []
    for part in loc:
        listed = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if not (listed or (isinstance(value, Mapping) and part in value)):
            break
        path, value = [*path, part], value[part]
    return path, value


def _wanted(fault: Any) -> str:
    kind = fault["type"]
    if kind in _BOUNDS:
        return _BOUNDS[kind].format(**fault["ctx"])
    return _KINDS.get(kind) or str(fault["msg"])
