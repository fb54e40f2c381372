"""Which parts of the new code must be observed to run before an attestation is given.

Definitions are compared, not files: one that only moved to another module is not changed, if the names in it have the
same meaning. These must run:

- in a changed function the statements, and the arms of conditional expressions, that the old one has not;
- whatever loads a name that now means another definition, a changed module-level value or a changed class;
- whatever loads an attribute whose value at class level changed, or whose method is gone;
- the changed statements of modules and classes themselves, which run on import.

Exempt are code that can only raise an error, and a function that nothing in the closure names: no recorded run can
have executed them. A definition from which code was only removed must run as a whole.
"""

import ast
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from types import CodeType

from polygrain.attest.definitions import (
    Function,
    Key,
    Meaning,
    Tree,
    class_statements,
    globals_in,
    uncalled,
    word_of,
)
from polygrain.attest.pieces import Piece, Region, head_hash, holds, leads_to_raise, pieces, region_of
from polygrain.provenance.code import node_hash


@dataclass(frozen=True, order=True)
class Place:
    """A piece of code that must run, or may stay out because it can only raise."""

    path: str
    """Of the file, relative to the folder of the sources."""
    region: Region
    text: str
    """The first line of it."""
    reason: str
    exempt: bool = False

    def __str__(self) -> str:
        return f"{self.path}:{self.region[0]}: `{self.text}` ({self.reason})"


def places_to_run(old: Tree, new: Tree) -> list[Place]:
    """What of `new` must run, sorted; empty when only texts moved."""
    return _Comparison(old, new).places()


class _Comparison:
    def __init__(self, old: Tree, new: Tree) -> None:
        self.old, self.new = old, new
        self.origin = dict(_pairs(old, new))
        self.changed = {key for key in new.texts if not self._same_text(key)}
        self._spread()

    def places(self) -> list[Place]:
        found: set[Place] = set()
        idle = uncalled(self.new, self.changed & self.new.functions.keys())
        for key, node in self.new.functions.items():
            places = set(self._of_function(key, node))
            note = f"nothing that this run has calls {key.name}"
            found |= {replace(place, exempt=True, reason=note) for place in places} if key in idle else places
        for key in self.changed:
            if self._runs_on_import(key):
                found |= set(self._of_statements(key))
        for module, effects in self.new.effects.items():
            known = set(map(node_hash, self.old.effects.get(module, ())))
            fresh = [statement for statement in effects if node_hash(statement) not in known]
            found |= set(self._place(module, pieces(fresh), f"statement of {module}"))
        return sorted(found)

    # What differs

    def _spread(self) -> None:
        """Add the values and classes that load, on import, something that differs."""
        loaded: dict[Key, Sequence[ast.AST]] = dict(self.new.values)
        loaded |= {key: list(class_statements(node)) for key, node in self.new.classes.items()}
        before = -1
        while before != len(self.changed):
            before = len(self.changed)
            self.changed |= {key for key, nodes in loaded.items() if any(self._meets(key, node) for node in nodes)}

    def _runs_on_import(self, key: Key) -> bool:
        return key in self.new.values or key in self.new.classes

    def _same_text(self, key: Key) -> bool:
        origin = self.origin.get(key)
        return origin is not None and self.old.texts[origin] == self.new.texts[key]

    def _meets(self, key: Key, node: ast.AST) -> bool:
        """Whether what runs on import loads something that differs; a function counts as soon as a line of it does."""
        for name in globals_in(node):
            now = self.new.meaning(key.module, name.id).key
            methods = any(
                other.module == now.module and other.name.startswith(f"{now.name}.") for other in self.changed
            )
            if methods or now in self.changed or self._differs(key, name.id):
                return True
        return False

    def _differs(self, key: Key, name: str) -> bool:
        """Whether a global name in the definition `key` means another thing than in its origin, or a changed value."""
        now = self.new.meaning(key.module, name)
        if now.key in self.changed and self._runs_on_import(now.key):
            return True
        origin = self.origin.get(key)
        return origin is not None and not self._same(self.old.meaning(origin.module, name), now)

    def _same(self, then: Meaning, now: Meaning) -> bool:
        if then.kind != now.kind:
            return False
        return then.key == (self.origin.get(now.key) if now.kind in ("definition", "value") else now.key)

    # What must run for it

    def _of_function(self, key: Key, node: Function) -> Iterator[Place]:
        origin = self.origin.get(key)
        mine = self.new.pieces[key]
        label = key.name
        if origin is None:
            yield from self._place(key.module, mine, f"new: {label}")
            return
        before = self.old.functions[origin]
        if head_hash(before) != head_hash(node) or any(self._differs(key, item.id) for item in _head_names(node)):
            yield from self._place(key.module, mine, f"the head of {label} changed")
            return
        if not self._same_text(key):
            fresh, lost = _difference(self.old.pieces[origin], mine)
            yield from self._place(key.module, fresh, f"changed in {label}")
            if lost and not fresh:
                whole = Piece("", _span(node.body), leads_to_raise(node.body))
                yield from self._place(key.module, [whole], f"{label} lost code")
        yield from self._of_names(key, node, mine)

    def _of_names(self, key: Key, node: Function, mine: Sequence[Piece]) -> Iterator[Place]:
        """The pieces that meet a changed value, another meaning, or an attribute that changed."""
        for name in globals_in(node):
            if self._differs(key, name.id):
                yield from self._place(key.module, _around(mine, name), f"{name.id} changed")
        for part in ast.walk(node):
            if word_of(part) in self.attributes:
                yield from self._place(key.module, _around(mine, part), f"attribute {word_of(part)} changed")

    @cached_property
    def attributes(self) -> set[str]:
        """Attributes whose value at class level changed, or whose method is gone."""
        kept, found = set(self.origin.values()), set[str]()
        for key in self.old.functions.keys() - kept:
            if Key(key.module, key.name.rpartition(".")[0]) in kept:
                found.add(key.simple)
        for key in self.changed & self.new.classes.keys():
            origin = self.origin.get(key)
            before = _class_values(self.old.classes[origin]) if origin else {}
            after = _class_values(self.new.classes[key])
            found |= {name for name in {*before, *after} if before.get(name) != after.get(name)}
        return found

    def _of_statements(self, key: Key) -> Iterator[Place]:
        """The changed statements of a value or a class: they run on import."""
        nodes: Iterable[ast.AST] = self.new.values.get(key) or class_statements(self.new.classes[key])
        origin = self.origin.get(key)
        known = set(self.old.texts[origin].split("\n")) if origin else set()
        fresh = [node for node in nodes if node_hash(node) not in known and isinstance(node, ast.stmt)]
        yield from self._place(key.module, pieces(fresh), f"{key.name} changed")

    def _place(self, module: str, found: Iterable[Piece], reason: str) -> Iterator[Place]:
        """Places of the pieces that have instructions."""
        path = self.new.paths[module]
        lines, instructions = _file(path)
        for piece in found:
            if piece.region and any(holds(piece.region, position) for position in instructions):
                text = lines[piece.region[0] - 1].strip()
                name = path.relative_to(self.new.source).as_posix()
                yield Place(name, piece.region, text, reason, piece.only_raises)


@cache
def _file(path: Path) -> tuple[list[str], set[Region]]:
    """The lines of a file, and where its instructions stand."""
    text = path.read_text(encoding="utf-8")
    return text.splitlines(), set(_positions(compile(text, str(path), "exec", dont_inherit=True)))


def _pairs(old: Tree, new: Tree) -> Iterator[tuple[Key, Key]]:
    """Each new definition with the old one that it comes from: in its place, else moved, else moved and changed."""
    for kind in ("functions", "classes", "values"):
        then: Mapping[Key, object] = getattr(old, kind)
        now: Mapping[Key, object] = getattr(new, kind)
        yield from ((key, key) for key in now if key in then)
        gone = [key for key in then if key not in now]
        for key in now:
            if key not in then:
                named = [other for other in gone if other.name == key.name]
                named = named or [other for other in gone if other.simple == key.simple]
                alike = [other for other in named if old.texts[other] == new.texts[key]]
                if alike or len(named) == 1:
                    yield key, (alike or named)[0]


def _difference(before: Sequence[Piece], after: Sequence[Piece]) -> tuple[list[Piece], bool]:
    """The pieces that only `after` has, and whether it lacks any of `before`."""
    then, now = [piece.key for piece in before], [piece.key for piece in after]
    fresh, lost = list[Piece](), False
    for kind, start, end, first, last in difflib.SequenceMatcher(None, then, now, autojunk=False).get_opcodes():
        if kind != "equal":
            fresh += after[first:last]
            lost = lost or end > start
    return fresh, lost


def _head_names(node: Function) -> list[ast.Name]:
    """The global names that a function loads when it is defined."""
    parts = [*node.decorator_list, *node.args.defaults, *(part for part in node.args.kw_defaults if part)]
    return [name for part in parts for name in globals_in(part)]


def _class_values(node: ast.ClassDef) -> dict[str, str]:
    """The attributes that a class gives a value, with a hash of it."""
    found: dict[str, str] = {}
    for part in node.body:
        if isinstance(part, ast.Assign | ast.AnnAssign) and part.value is not None:
            targets = part.targets if isinstance(part, ast.Assign) else [part.target]
            found |= {target.id: node_hash(part.value) for target in targets if isinstance(target, ast.Name)}
    return found


def _around(mine: Sequence[Piece], node: ast.AST) -> list[Piece]:
    """The smallest piece around a node; none for one outside the body."""
    region = region_of(node)
    around = [(piece.region, piece) for piece in mine if piece.region and region and holds(piece.region, region)]
    return [piece for inner, piece in around if all(holds(outer, inner) for outer, _ in around)][:1]


def _span(body: Sequence[ast.stmt]) -> Region | None:
    """Where a function's body stands, without its docstring."""
    bare = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
    return region_of(ast.Module(list(body[1:] or body) if bare else list(body), []))


def _positions(code: CodeType) -> Iterator[Region]:
    for position in code.co_positions():
        if None not in position:
            line, end_line, column, end_column = position
            yield line, column, end_line, end_column  # type: ignore[misc]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _positions(constant)
