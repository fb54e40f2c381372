"""The definitions of one state of the code: functions, methods, classes, module-level values; what each name means.

A definition may be in another module than the one that uses it. `Tree.meaning` follows a name through the imports to
its definition. This separates a function that only moved from one that now uses another constant.
"""

import ast
from collections.abc import Iterable, Iterator, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from polygrain.attest.pieces import Piece, head_hash, pieces
from polygrain.provenance.code import absolute_base, node_hash, places, syntax_tree
from polygrain.provenance.errors import UserError

Function = ast.FunctionDef | ast.AsyncFunctionDef
_FROM_OUTSIDE = "run"
"""What the command line calls of the module that does a stage."""


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


class Tree:
    """The modules of one import closure below the folder `source`. Raises UserError for one that is not there."""

    def __init__(self, source: Path, modules: Iterable[str]) -> None:
        self.source = source
        self.paths: dict[str, Path] = {}
        self.functions: dict[Key, Function] = {}
        """Also methods: `Class.method`."""
        self.classes: dict[Key, ast.ClassDef] = {}
        self.values: dict[Key, list[ast.stmt]] = {}
        """Name -> the statements of the module that bind it."""
        self.effects: dict[str, list[ast.stmt]] = {}
        """Module -> its statements that bind nothing."""
        self._imports: dict[Key, tuple[str, str]] = {}
        """Name -> module, and the name in it; an empty name means the module itself."""
        for name in modules:
            path = next((source / place for place in places(name) if (source / place).is_file()), None)
            if path is None:
                raise UserError(
                    f"module {name}: {source} holds no such module; build again, which writes the code hashes anew"
                )
            self.paths[name], self.effects[name] = path, []
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            self._add(name, syntax_tree(path.read_bytes()).body, package)

    def _add(self, module: str, body: Sequence[ast.stmt], package: str) -> None:
        """File each statement of a module under what it defines."""
        for statement in body:
            match statement:
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    self.functions[Key(module, statement.name)] = statement
                case ast.ClassDef():
                    self._add_class(module, statement)
                case ast.Import() | ast.ImportFrom():
                    self._add_imports(module, statement, package)
                case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                    self._add(module, statement.orelse, package)
                    for part in statement.body:
                        if isinstance(part, ast.Import | ast.ImportFrom):
                            self._add_imports(module, part, package)
                case ast.Expr(value=ast.Constant()):
                    pass
                case _:
                    self._add_value(module, statement)

    def _add_value(self, module: str, statement: ast.stmt) -> None:
        names = _bound_names(statement)
        for name in names:
            self.values.setdefault(Key(module, name), []).append(statement)
        if not names:
            self.effects[module].append(statement)

    def _add_class(self, module: str, statement: ast.ClassDef) -> None:
        self.classes[Key(module, statement.name)] = statement
        for part in statement.body:
            if isinstance(part, Function):
                key = Key(module, f"{statement.name}.{part.name}")
                # a property and its setter have one name
                self.functions[Key(module, f"{key.name}'") if key in self.functions else key] = part

    def _add_imports(self, module: str, statement: ast.Import | ast.ImportFrom, package: str) -> None:
        for alias in statement.names:
            if isinstance(statement, ast.ImportFrom):
                bound, meant = alias.asname or alias.name, (absolute_base(statement, package), alias.name)
            else:
                bound = alias.asname or alias.name.partition(".")[0]
                meant = (alias.name if alias.asname else bound, "")
            self._imports[Key(module, bound)] = meant

    @cached_property
    def texts(self) -> dict[Key, str]:
        """A hash of each definition by itself, of a class without its methods.

        Types of arguments, results and variables decide nothing in a function.
        """
        texts = {
            key: "\n".join([head_hash(node), *(piece.key for piece in self.pieces[key])])
            for key, node in self.functions.items()
        }
        texts |= {key: "\n".join(map(node_hash, class_statements(node))) for key, node in self.classes.items()}
        return texts | {key: "\n".join(map(node_hash, nodes)) for key, nodes in self.values.items()}

    @cached_property
    def pieces(self) -> dict[Key, list[Piece]]:
        """The pieces of each function's body."""
        return {key: pieces(node.body) for key, node in self.functions.items()}

    def meaning(self, module: str, name: str) -> Meaning:
        """What a global name in a module stands for."""
        key, seen = Key(module, name), set[Key]()
        while key not in seen:
            seen.add(key)
            if not key.name:
                return Meaning("module", key)
            if key.module not in self.paths:
                return Meaning("external", key)
            if key in self.functions or key in self.classes:
                return Meaning("definition", key)
            if key in self.values:
                return Meaning("value", key)
            if key not in self._imports:
                inner = f"{key.module}.{key.name}"
                return Meaning("module", Key(inner, "")) if inner in self.paths else Meaning("unknown", Key("", name))
            key = Key(*self._imports[key])
        return Meaning("unknown", key)


def class_statements(node: ast.ClassDef) -> Iterator[ast.AST]:
    """What a class does when it is made: its head, and its statements except methods and texts."""
    yield from (*node.bases, *node.keywords, *node.decorator_list)
    for statement in node.body:
        bare = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if not isinstance(statement, Function) and not bare:
            yield statement


def _bound_names(statement: ast.AST) -> set[str]:
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
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, ast.AST) and name not in ("annotation", "returns"):
                yield from _loads(item)


def uncalled(tree: Tree, candidates: Set[Key]) -> set[Key]:
    """Those functions among the `candidates` that cannot be called, as far as names tell.

    A shared module brings functions along that a run has no use for. One that nothing in the closure names, by a global
    name, an attribute or a text, cannot run; nor can one that only such functions name. Every function that is no
    candidate counts as called, and so do methods that Python calls itself, such as `__init__`.
    """
    left = {key for key in candidates if not key.simple.startswith("__")}
    keys, words = set[Key](), {_FROM_OUTSIDE}
    waiting: list[tuple[str, ast.AST]] = [(key.module, node) for key, node in tree.functions.items() if key not in left]
    waiting += [(name, statement) for name, statements in tree.effects.items() for statement in statements]
    waiting += [(key.module, statement) for key, statements in tree.values.items() for statement in statements]
    waiting += [(key.module, part) for key, node in tree.classes.items() for part in class_statements(node)]
    while waiting:
        for module, node in waiting:
            keys |= {tree.meaning(module, name.id).key for name in globals_in(node)}
            words |= set(map(word_of, ast.walk(node)))
        called = {key for key in left if key in keys or key.simple in words}
        left -= called
        waiting = [(key.module, tree.functions[key]) for key in called]
    return left


def word_of(node: ast.AST) -> str:
    """The attribute that a node names, as in `x.name` or in the text of a `getattr`; empty for other nodes."""
    word = getattr(node, "attr", None) or getattr(node, "value", None)
    return word if isinstance(word, str) else ""
