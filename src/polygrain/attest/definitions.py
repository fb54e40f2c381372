"""The definitions of one state of the code: functions, methods, classes, module-level values; what each name means.

A definition may stand in another module than the one that uses it. `Tree.meaning` follows a name through the imports to
where it is made, so that a function that moved can be told from one that now meets another constant.
"""

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from polygrain.attest.pieces import Piece, head_hash, pieces
from polygrain.provenance.code import PACKAGE, node_hash, places
from polygrain.provenance.errors import UserError

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Key(NamedTuple):
    """Where a definition stands: its module, and its dotted name in there."""

    module: str
    name: str

    @property
    def simple(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]


class Meaning(NamedTuple):
    """What a global name stands for. `kind`: definition, value, module, external or unknown (built in)."""

    kind: str
    key: Key


@dataclass
class Module:
    """One file, cut into definitions."""

    name: str
    path: Path
    tree: ast.Module
    functions: dict[str, Function] = field(default_factory=dict)
    """Also methods: `Class.method`."""
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    values: dict[str, list[ast.stmt]] = field(default_factory=dict)
    """Name -> the statements of the module that bind it."""
    effects: list[ast.stmt] = field(default_factory=list)
    """Statements of the module that bind nothing."""
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Name -> module, and the name in it; an empty one stands for the module itself."""


class Tree:
    """The modules of one import closure below the folder `source`. Raises UserError for one that is not there."""

    def __init__(self, source: Path, modules: Iterable[str]) -> None:
        self.source = source
        self.modules = {name: _read(source, name) for name in modules}

    @cached_property
    def functions(self) -> dict[Key, Function]:
        """Every function and method."""
        return {
            Key(name, item): node for name, module in self.modules.items() for item, node in module.functions.items()
        }

    @cached_property
    def classes(self) -> dict[Key, ast.ClassDef]:
        """Every class at module level."""
        return {Key(name, item): node for name, module in self.modules.items() for item, node in module.classes.items()}

    @cached_property
    def values(self) -> dict[Key, list[ast.stmt]]:
        """Every name that a module binds by a statement."""
        return {
            Key(name, item): nodes for name, module in self.modules.items() for item, nodes in module.values.items()
        }

    @cached_property
    def texts(self) -> dict[Key, str]:
        """A hash of each definition by itself, of a class without its methods."""
        texts = {key: self._function_text(key, node) for key, node in self.functions.items()}
        texts |= {key: "\n".join(map(node_hash, class_statements(node))) for key, node in self.classes.items()}
        return texts | {key: "\n".join(map(node_hash, nodes)) for key, nodes in self.values.items()}

    @cached_property
    def pieces(self) -> dict[Key, list[Piece]]:
        """The pieces of each function's body."""
        return {key: pieces(node.body) for key, node in self.functions.items()}

    def _function_text(self, key: Key, node: Function) -> str:
        """Types of arguments, results and variables decide nothing in a function."""
        return "\n".join([head_hash(node), *(piece.key for piece in self.pieces[key])])

    def meaning(self, module: str, name: str) -> Meaning:
        """What a global name in a module stands for."""
        seen: set[Key] = set()
        while Key(module, name) not in seen:
            seen.add(Key(module, name))
            found = self.modules.get(module)
            if found is None:
                return Meaning("external", Key(module, name))
            if name in found.functions or name in found.classes:
                return Meaning("definition", Key(module, name))
            if name in found.values:
                return Meaning("value", Key(module, name))
            if name not in found.imports:
                inner = f"{module}.{name}"
                return Meaning("module", Key(inner, "")) if inner in self.modules else Meaning("unknown", Key("", name))
            module, name = found.imports[name]
            if not name:
                return Meaning("module", Key(module, ""))
        return Meaning("unknown", Key(module, name))


def class_statements(node: ast.ClassDef) -> Iterator[ast.AST]:
    """What a class does when it is made: its head, and its statements except methods and texts."""
    yield from (*node.bases, *node.keywords, *node.decorator_list)
    for statement in node.body:
        bare = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if not isinstance(statement, Function) and not bare:
            yield statement


def bound_names(statement: ast.AST) -> set[str]:
    """The names that a statement binds where it stands; what a function inside it binds is its own."""
    names: set[str] = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, Function | ast.ClassDef):
            names.add(node.name)
    return names


def globals_in(node: ast.AST) -> list[ast.Name]:
    """The names that a definition loads and does not bind itself; types of arguments and variables are passed over."""
    own: set[str] = set()
    if isinstance(node, Function):
        own = {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
        own |= set().union(*map(_locals, node.body))
    return [name for name in _loads(node) if name.id not in own]


def _locals(statement: ast.AST) -> set[str]:
    """What a function's statement binds in the function itself: names of comprehensions and inner functions are not."""
    if isinstance(statement, Function | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Name):
        return {statement.id} if isinstance(statement.ctx, ast.Store) else set()
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in statement.names}
    names: set[str] = set()
    if isinstance(statement, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and statement.name:
        names.add(statement.name)
    inner = isinstance(statement, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp)
    return names if inner else names.union(*map(_locals, ast.iter_child_nodes(statement)))


def _loads(node: ast.AST) -> Iterator[ast.Name]:
    if isinstance(node, ast.Name):
        if isinstance(node.ctx, ast.Load):
            yield node
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, ast.AST):
                yield from _loads(item)


def _read(source: Path, name: str) -> Module:
    path = next((source / place for place in places(name) if (source / place).is_file()), None)
    if path is None:
        raise UserError(f"module {name}: {source} holds no such module; build again, which writes the code hashes anew")
    module = Module(name, path, ast.parse(path.read_bytes()))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    _sort(module, module.tree.body, package)
    return module


def _sort(module: Module, body: Sequence[ast.stmt], package: str) -> None:
    """File each statement of a module under what it defines."""
    for statement in body:
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                module.functions[statement.name] = statement
            case ast.ClassDef():
                _sort_class(module, statement)
            case ast.Import() | ast.ImportFrom():
                _bind_imports(module, statement, package)
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                _sort(module, statement.orelse, package)
                for part in statement.body:
                    if isinstance(part, ast.Import | ast.ImportFrom):
                        _bind_imports(module, part, package)
            case ast.Expr(value=ast.Constant()):
                pass
            case _:
                _sort_value(module, statement)


def _sort_class(module: Module, statement: ast.ClassDef) -> None:
    module.classes[statement.name] = statement
    for part in statement.body:
        if isinstance(part, Function):
            name = f"{statement.name}.{part.name}"
            # a property and its setter have one name
            module.functions[f"{name}'" if name in module.functions else name] = part


def _sort_value(module: Module, statement: ast.stmt) -> None:
    names = bound_names(statement)
    for name in names:
        module.values.setdefault(name, []).append(statement)
    if not names:
        module.effects.append(statement)


def _bind_imports(module: Module, statement: ast.Import | ast.ImportFrom, package: str) -> None:
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            bound = alias.asname or alias.name.partition(".")[0]
            module.imports[bound] = (alias.name if alias.asname else bound, "")
        return
    base = statement.module or ""
    if statement.level:
        kept = package.split(".")[: len(package.split(".")) - statement.level + 1]
        base = ".".join([*kept, *([statement.module] if statement.module else [])])
    for alias in statement.names:
        module.imports[alias.asname or alias.name] = (base, alias.name)


def is_ours(module: str) -> bool:
    """Whether a module belongs to this package."""
    return module.partition(".")[0] == PACKAGE
