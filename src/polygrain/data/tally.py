"""The tally of a packing: what was taken, what was left and why, and which files have the same bytes."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NAMED = 10  # duplicates that a line shows

Left = Counter[tuple[str, str]]
"""How many files were left out, by reason and suffix."""


@dataclass(frozen=True)
class Duplicates:
    """Files that repeat another one, `within` their split and `across` splits, and a line that names the first."""

    within: int
    across: int
    within_line: str
    across_line: str


def duplicates(names: Sequence[str], digests: np.ndarray, splits: Mapping[str, np.ndarray]) -> Duplicates:
    """Find the files of the same content. `digests` is uint8 [N, bytes of a hash]; `splits` holds positions."""
    split_of = np.zeros(len(digests), dtype=np.int64)
    for number, positions in enumerate(splits.values()):
        split_of[positions] = number
    _, content, times = np.unique(digests, axis=0, return_inverse=True, return_counts=True)
    content = content.ravel()
    groups: dict[int, list[int]] = {}
    for position in np.flatnonzero(times[content] > 1).tolist():
        groups.setdefault(int(content[position]), []).append(position)
    within = across = 0
    named: dict[bool, list[str]] = {False: [], True: []}
    for members in sorted(groups.values()):
        parts = len(np.unique(split_of[members]))
        within += len(members) - parts
        across += parts - 1
        named[parts > 1].append(" = ".join(shown(names[position]) for position in members))
    return Duplicates(
        within,
        across,
        f"{within} files have the bytes of another in their split ({_first(named[False])})",
        f"{across} files have the bytes of another in another split ({_first(named[True])})",
    )


def tally(
    names: Sequence[str], left: Mapping[tuple[str, str], int], bad: Mapping[str, str], copies: Duplicates
) -> list[str]:
    """Lines on what was taken (`names`) and left, by reason and suffix; `bad` maps a file's name to its fault."""
    lines = [f"took {len(names)} images: {_counted(by_suffix(names))}"]
    for reason in sorted({reason for reason, _ in left}):
        kinds = {kind: count for (why, kind), count in sorted(left.items()) if why == reason}
        lines.append(f"left, {reason}: {_counted(kinds)}")
    if bad:
        lines += [f"left, bad: {_counted(by_suffix(bad))}", *bad.values()]
    return lines + [
        line for count, line in ((copies.within, copies.within_line), (copies.across, copies.across_line)) if count
    ]


def by_suffix(names: Iterable[str]) -> dict[str, int]:
    """How many names there are of each suffix, sorted."""
    return dict(sorted(Counter(map(suffix, names)).items()))


def suffix(name: str) -> str:
    """The end of a file's name from its last dot, in small letters; `(none)` when it has no dot."""
    return shown(Path(name).suffix.lower()) or "(none)"


def shown(path: Path | str) -> str:
    """A name as it can be printed: bytes that are no UTF-8 as escapes."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _first(names: Sequence[str]) -> str:
    return "; ".join([*names[:NAMED], *(["..."] if len(names) > NAMED else [])])


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())
