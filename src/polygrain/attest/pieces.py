"""A body of code cut into the pieces that run or do not run on their own: statements, and what is conditional in them.

A line is too coarse: in `rate if step < 900 else rate / 10` the last part may never run although its line does. So each
part that another part decides about (an arm of a conditional expression, the right side of `and`, the element of a
comprehension, the body of a lambda) is a piece, and what is left of the statement around it is another.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from polygrain.provenance.code import node_hash

Region = tuple[int, int, int, int]
"""First line, first column, last line, end column, as Python counts them in a syntax tree."""


@dataclass(frozen=True)
class Piece:
    """A part of a body that runs as a whole or not at all."""

    key: str
    """Equal for pieces that say the same in the same place of the nesting."""
    region: Region | None
    """Where its instructions are; None where there are none."""
    only_raises: bool
    """Whether running it can only end in an exception."""


def pieces(body: Sequence[ast.stmt]) -> list[Piece]:
    """All pieces of a body, in the order of the text."""
    return list(_suite(body, "", leads_to_raise(body)))


def leads_to_raise(body: Sequence[ast.stmt]) -> bool:
    """Whether every way through a body ends in `raise`, and nothing outside is touched before that."""
    if not body:
        return False
    last = body[-1]
    match last:
        case ast.Raise():
            ends = True
        case ast.If():
            ends = leads_to_raise(last.body) and leads_to_raise(last.orelse)
        case ast.With():
            ends = leads_to_raise(last.body)
        case _:
            ends = False
    return ends and not any(_escapes(node) for statement in body for node in ast.walk(statement))


def _escapes(node: ast.AST) -> bool:
    """Whether a node leaves the body another way than by `raise`, or changes something that outlives it."""
    leaves = ast.Return | ast.Yield | ast.YieldFrom | ast.Break | ast.Continue | ast.Global | ast.Nonlocal | ast.Delete
    stored = isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store)
    return stored or isinstance(node, leaves)


def _suite(body: Sequence[ast.stmt], place: str, doomed: bool) -> Iterator[Piece]:
    for statement in body:
        yield from _statement(statement, place, doomed or isinstance(statement, ast.Raise))


def _statement(statement: ast.stmt, place: str, doomed: bool) -> Iterator[Piece]:
    inner = f"{place}/{type(statement).__name__}"
    match statement:
        case ast.Pass() | ast.Global() | ast.Nonlocal():
            yield Piece(f"{inner} {node_hash(statement)}", None, doomed)
        case ast.Expr(value=ast.Constant(value=str())):
            return
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            yield Piece(f"{inner} {statement.name} {head_hash(statement)}", region_of(statement), doomed)
            yield from _suite(statement.body, f"{inner} {statement.name}", doomed or leads_to_raise(statement.body))
        case ast.AnnAssign():  # the type says nothing
            if statement.value is not None:
                plain = ast.copy_location(ast.Assign([statement.target], statement.value), statement)
                yield from _expression(plain, f"{place}/Assign", doomed)
        case ast.If() | ast.For() | ast.AsyncFor() | ast.While() | ast.With() | ast.AsyncWith():
            yield from _compound(statement, inner, doomed)
        case ast.Try() | ast.TryStar() | ast.Match():
            yield from _compound(statement, inner, doomed)
        case _:
            yield from _expression(statement, inner, doomed)


def _compound(node: ast.AST, inner: str, doomed: bool) -> Iterator[Piece]:
    """`if`, `for`, `while`, `with`, `try`, `match`, and their branches: what decides, then what it decides about."""
    for name, value in ast.iter_fields(node):
        if name in ("body", "orelse", "finalbody"):
            yield from _suite(value, f"{inner} {name}", doomed or (name != "finalbody" and leads_to_raise(value)))
            continue
        for number, part in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(part, ast.ExceptHandler):
                yield from _compound(part, f"{inner} {name} {number}", doomed or leads_to_raise(part.body))
            elif isinstance(part, ast.match_case):
                yield from _compound(part, f"{inner} {name} {number}", doomed)
            elif isinstance(part, ast.AST):
                bound = getattr(node, "name", "")  # by a handler, with the exception that it handles
                yield from _expression(part, f"{inner} {name} {bound}", doomed)


def _expression(node: ast.AST, place: str, doomed: bool) -> Iterator[Piece]:
    """A node without what is decided inside it, then each of those parts."""
    arms: list[tuple[str, ast.AST]] = []
    rest = _without_arms(node, arms)
    yield Piece(f"{place} {node_hash(rest)}", region_of(node), doomed)
    for role, arm in arms:
        yield from _expression(arm, f"{place} {role}", doomed or role == "Assert msg")


def _without_arms(node: ast.AST, arms: list[tuple[str, ast.AST]]) -> ast.AST:
    """A node with a mark in place of each part that something in it decides about; those go to `arms`."""
    fields: dict[str, object] = {}
    for name, value in ast.iter_fields(node):
        decided = _DECIDED.get((type(node), name), _ALWAYS)

        def part(item: object, number: int, name: str = name, decided: int = decided) -> object:
            if not isinstance(item, ast.AST):
                return item
            if number < decided:
                return _without_arms(item, arms)
            arms.append((f"{type(node).__name__} {name}", item))
            return ast.Constant(...)

        several = isinstance(value, list)
        fields[name] = [part(item, number) for number, item in enumerate(value)] if several else part(value, 0)
    return type(node)(**fields)


_ALWAYS = 1 << 30
# field of a node -> from which item on it runs only when something else in the node says so
_DECIDED = {
    (ast.IfExp, "body"): 0,
    (ast.IfExp, "orelse"): 0,
    (ast.BoolOp, "values"): 1,
    (ast.Compare, "comparators"): 1,
    (ast.Lambda, "body"): 0,
    (ast.Assert, "msg"): 0,
    (ast.ListComp, "elt"): 0,
    (ast.SetComp, "elt"): 0,
    (ast.GeneratorExp, "elt"): 0,
    (ast.DictComp, "key"): 0,
    (ast.DictComp, "value"): 0,
    (ast.comprehension, "ifs"): 0,
}


def head_hash(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Hash of what of a function runs when it is defined, and of its arguments; their types decide nothing."""
    given = function.args
    groups = (given.posonlyargs, given.args, given.kwonlyargs, [given.vararg], [given.kwarg])
    names = [[argument and argument.arg for argument in group] for group in groups]
    parts = [*function.decorator_list, *given.defaults, *given.kw_defaults]
    hashes = [node_hash(part) if part else "" for part in parts]
    return f"{type(function).__name__} {names} {len(given.defaults)} {hashes}"


def region_of(node: ast.AST) -> Region | None:
    """Where a node stands; of one without a place of its own (a comprehension, a `with` item) where its parts stand."""
    if hasattr(node, "lineno"):
        assert isinstance(node, ast.expr | ast.stmt | ast.pattern | ast.excepthandler | ast.keyword | ast.arg)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return node.lineno, node.col_offset, node.end_lineno, node.end_col_offset
    parts = [region for region in map(region_of, ast.iter_child_nodes(node)) if region]
    if not parts:
        return None
    (first, start), (last, end) = min(part[:2] for part in parts), max(part[2:] for part in parts)
    return first, start, last, end


def holds(region: Region, other: Region) -> bool:
    """Whether `other` lies within `region`."""
    return region[:2] <= other[:2] and other[2:] <= region[2:]
