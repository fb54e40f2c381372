"""Two versions of one output, the recorded and the rebuilt one: equal bytes, nearly equal numbers, or neither."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

TOLERANCE = 1e-3
"""Largest relative difference of two numbers that still counts as equal; for numbers below 1 it is absolute."""


@dataclass(frozen=True)
class Compared:
    """The verdict on one output; `other bytes` where they differ and there are no numbers to compare."""

    output: str
    verdict: Literal["identical", "within tolerance", "different", "other bytes"]
    differences: tuple[str, ...] = ()
    """What differs by more than the tolerance, largest first; else the largest difference."""


def compare_bytes(output: str, recorded: bytes, rebuilt: bytes) -> Compared:
    """Compare an output. Numbers are looked for in files named .json, .jsonl and .csv."""
    if recorded == rebuilt:
        return Compared(output, "identical")
    read = _READERS.get(Path(output).suffix)
    try:
        sides = [dict(read(content.decode())) for content in (recorded, rebuilt)] if read else []
    except ValueError:
        sides = []
    if not sides:
        return Compared(output, "other bytes")
    return _compare(output, *sides)


def _compare(output: str, recorded: dict[str, Any], rebuilt: dict[str, Any]) -> Compared:
    far: list[tuple[float, str]] = []
    near: list[tuple[float, str]] = []
    for key in {**recorded, **rebuilt}:
        one, two = (side.get(key, "absent") for side in (recorded, rebuilt))
        if one == two and isinstance(one, bool) == isinstance(two, bool):
            continue
        distance = _distance(one, two)
        (near if distance <= TOLERANCE else far).append((distance, f"{key}: recorded {one}, rebuilt {two}"))
    chosen = far or near[:1]
    return Compared(
        output,
        "different" if far else "within tolerance",
        tuple(line for _, line in sorted(chosen, key=lambda item: -item[0])),
    )


def _distance(one: Any, two: Any) -> float:
    """Difference relative to the larger number, or to 1 where both are smaller; infinite for what is no number."""
    if not (_is_number(one) and _is_number(two)):
        return float("inf")
    return float(abs(one - two) / max(1.0, abs(one), abs(two)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _json_lines(text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        yield from _leaves(json.loads(line), f"line {number} ")


def _csv(text: str) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(csv.reader(io.StringIO(text, newline="")), 1):
        for column, value in enumerate(row, 1):
            yield f"line {number} field {column}", _number(value)


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list) and value:
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(entry, f"{name}.{key}" if name and not name.endswith(" ") else f"{name}{key}")
    else:
        yield name, value


_READERS = {".json": lambda text: _leaves(json.loads(text), ""), ".jsonl": _json_lines, ".csv": _csv}
