"""Hashes of code that change when the meaning may change, and only then.

A job's code is the static import closure of its entry modules inside this package: every `import` counts,
also one inside a function; one under `if TYPE_CHECKING:` does not, because it never runs. Modules that are
loaded by name (methods, backbones, evaluators) are not seen here: the caller passes them as further entries.

A module's hash is taken over our own walk of its syntax tree: node type names and fields in sorted order,
constants with their type. Positions, comments and bare string statements (docstrings) are left out, so a
better comment retrains nothing; annotations are code. Absent and empty fields are skipped and pieces of
f-strings are joined, so that Python 3.11 to 3.14 agree on the hash of the same text.

Two more things are left out, because no output depends on them. Of `raise Fault("text", ...) from cause` the hash
keeps that something is raised and of which class, because a handler may ask for the class; the arguments and the cause
are words for a person. Of a call of `phase` (`polygrain.nn.phases`) the hash drops the label when it is a literal
text: times are booked under it, and times are no output.
"""

import ast
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from polygrain.provenance.errors import UserError

PACKAGE = "polygrain"
# Derived from the rest of the tree, or only filled by some Python versions or parser flags.
_SKIPPED_FIELDS = frozenset({"ctx", "kind", "type_comment", "type_ignores"})
_one_at_a_time = Lock()


@dataclass(frozen=True)
class Module:
    """One parsed module: its hash, its imports of this package as (base module, names taken from it), and others."""

    sha256: str
    imports: tuple[tuple[str, tuple[str, ...]], ...]
    others: frozenset[str]
    """First words of the other modules that it imports, such as `torch`; Python's own are among them."""


def code_hashes(entries: Sequence[str], source: Path) -> dict[str, str]:
    """Map each module in the import closure of `entries` to the SHA-256 of its canonical syntax tree.

    Arguments, order and errors are those of `modules_of`.
    """
    return {name: module.sha256 for name, module in modules_of(entries, source).items()}


def modules_of(entries: Sequence[str], source: Path) -> dict[str, Module]:
    """The modules in the import closure of `entries`, by name.

    `entries` are dotted names, such as `polygrain.train.loop`; `source` is the folder that holds the package
    (`src`). The names are sorted; the package `__init__` files on the way are included. Raises UserError for
    a module that does not exist or does not parse.
    """

    def find(name: str) -> Module | None:
        path = next((source / place for place in places(name) if (source / place).is_file()), None)
        if path is None:
            return None
        status = path.stat()
        return _parse_file(name, path, status.st_mtime_ns, status.st_size)

    return closure(entries, find, source)


def closure(entries: Sequence[str], find: Callable[[str], Module | None], source: Path) -> dict[str, Module]:
    """The modules that `entries` import, also at second hand, and themselves, by name.

    `find` gives the module of a name, None where there is none. Raises UserError, in which `source` says where was
    looked, for a module that an import needs and `find` does not give.
    """
    found: dict[str, Module] = {}
    waiting = [(name, "") for name in entries]
    while waiting:
        name, importer = waiting.pop()
        if name in found:
            continue
        module = find(name)
        if module is None:
            by = f"imported by {importer}, but " if importer else ""
            remedy = "correct that import" if importer else "check the spelling, or add the file"
            raise UserError(f"module {name}: {by}{source} holds no such module; {remedy}")
        found[name] = module
        parent = name.rpartition(".")[0]
        needed = [parent] if parent else []
        for base, taken in module.imports:
            needed.append(base)
            needed += [item for item in (f"{base}.{word}" for word in taken) if find(item) is not None]
        waiting += [(item, name) for item in needed if item not in found]
    return dict(sorted(found.items()))


def tree_hash(text: str) -> str:
    """SHA-256 (hex) of the canonical syntax tree of one source text."""
    return node_hash(syntax_tree(text))


def places(name: str) -> tuple[Path, ...]:
    """Where a module of this package may lie below the folder that holds it: a plain file, or that of a package."""
    parts = name.split(".")
    if parts[0] != PACKAGE:
        return ()
    base = Path(*parts)
    return base.with_name(f"{base.name}.py"), base / "__init__.py"


def syntax_tree(text: str | bytes) -> ast.Module:
    """`ast.parse` for any thread: before Python 3.13 two threads that build trees at once may end in a SystemError."""
    with _one_at_a_time:
        return ast.parse(text)


def parse(name: str, path: Path, text: bytes) -> Module:
    """Parse the text of a module that lies at `path`. Raises UserError with file and line where it is not valid."""
    try:
        tree = syntax_tree(text)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise UserError(f"{path}:{line}: not valid Python ({error}); correct it") from error
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imports = list(_imports(tree, package))
    ours = tuple((base, names) for base, names in imports if base.split(".")[0] == PACKAGE)
    return Module(node_hash(tree), ours, frozenset(base.split(".")[0] for base, _ in imports) - {PACKAGE})


@cache
def _parse_file(name: str, path: Path, mtime_ns: int, size: int) -> Module:
    """Parse once per process and state of the file; the last two arguments are there for the cache."""
    return parse(name, path, path.read_bytes())


def _imports(tree: ast.AST, package: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the imports that can run, as absolute base module and the names taken from it."""
    for node in _walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ()
        elif isinstance(node, ast.ImportFrom):
            yield absolute_base(node, package), tuple(alias.name for alias in node.names)


def absolute_base(node: ast.ImportFrom, package: str) -> str:
    """Resolve the module of a `from` import, written inside `package`, to its absolute name."""
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    kept = parts[: len(parts) - (node.level - 1)]
    return ".".join([*kept, *([node.module] if node.module else [])])


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for _, value in _fields(node):
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, ast.AST):
                yield from _walk(item)


def _fields(node: ast.AST) -> Iterator[tuple[str, Any]]:
    """Yield the fields that carry meaning, sorted by name; absent and empty ones are left out."""
    worded = _without_words(node)
    for name in _names(node._fields):
        if name == "body" and _is_type_checking(node):
            continue
        value = worded[name] if name in worded else getattr(node, name, None)
        if isinstance(value, list):
            value = _join_texts(value) if isinstance(node, ast.JoinedStr) else _without_bare_texts(value)
        if value is None or value == [] or _is_empty_text(value):
            continue
        yield name, value


@cache
def _names(fields: tuple[str, ...]) -> list[str]:
    return sorted(set(fields) - _SKIPPED_FIELDS)


def _without_words(node: ast.AST) -> dict[str, Any]:
    """The fields of a node that hold words for people -> what the hash takes in their place."""
    if isinstance(node, ast.Raise):
        return {"exc": node.exc.func if isinstance(node.exc, ast.Call) else node.exc, "cause": None}
    if isinstance(node, ast.Call) and node.args and _is_text(node.args[0]):
        return {"args": node.args[1:]} if _is_named(node.func, "phase") else {}
    return {}


def _is_type_checking(node: ast.AST) -> bool:
    """Whether this is `if TYPE_CHECKING:`, whose body never runs."""
    return isinstance(node, ast.If) and _is_named(node.test, "TYPE_CHECKING")


def _is_named(node: ast.expr, name: str) -> bool:
    """Whether this is a name, or an attribute of that name."""
    return name == (node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None))


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _without_bare_texts(items: list[Any]) -> list[Any]:
    """Drop statements that are only a string: docstrings and notes below attributes."""
    return [item for item in items if not (isinstance(item, ast.Expr) and _is_text(item.value))]


def _join_texts(pieces: list[Any]) -> list[Any]:
    """Join neighbouring literal pieces of an f-string: Python versions split them differently."""
    joined: list[Any] = []
    for piece in pieces:
        if _is_text(piece) and joined and _is_text(joined[-1]):
            joined[-1] = ast.Constant(joined[-1].value + piece.value)
        elif not (_is_text(piece) and piece.value == ""):
            joined.append(piece)
    return joined


def _is_empty_text(value: Any) -> bool:
    """Whether this is an f-string piece without content: the format of `{x:}`, which some versions omit."""
    return isinstance(value, ast.JoinedStr) and not _join_texts(value.values)


def node_hash(tree: ast.AST) -> str:
    """SHA-256 (hex) of one node of a canonical syntax tree."""
    digest = hashlib.sha256()
    _feed(tree, digest.update)
    return digest.hexdigest()


def _feed(value: Any, update: Callable[[bytes], None]) -> None:
    """Feed one value unambiguously: nodes and lists in brackets, constants with a type and a length."""
    if isinstance(value, ast.AST):
        update(f"({type(value).__name__}".encode())
        for name, field in _fields(value):
            update(f".{name}=".encode())
            _feed(field, update)
        update(b")")
    elif isinstance(value, list):
        update(b"[")
        for item in value:
            _feed(item, update)
        update(b"]")
    else:
        content = _constant(value)
        update(f"<{type(value).__name__}:{len(content)}:".encode() + content + b">")


def _constant(value: Any) -> bytes:
    """Bytes of a constant that do not depend on how a Python version prints it."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, float):
        return value.hex().encode()
    if isinstance(value, complex):
        return f"{value.real.hex()},{value.imag.hex()}".encode()
    return repr(value).encode()
