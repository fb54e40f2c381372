"""Which functions of a closure can be called at all, as far as names tell.

A shared module brings functions along that a run has no use for. One that nothing in the closure names, by a global
name, an attribute or a text, cannot run.
"""

import ast
from collections.abc import Iterable, Iterator, Set

from polygrain.attest.definitions import Key, Tree, class_statements, globals_in

_FROM_OUTSIDE = "run"
"""What the command line calls of the module that does a stage."""


def uncalled(tree: Tree, candidates: Set[Key]) -> set[Key]:
    """Those of the `candidates` that no other code names, or only others of them that are not called either.

    Every other function counts as called, and so do methods that Python calls itself, such as `__init__`.
    """
    left = {key for key in candidates if not key.simple.startswith("__")}
    keys, words = set[Key](), {_FROM_OUTSIDE}
    waiting: list[tuple[str, ast.AST]] = list(_others(tree, left))
    while waiting:
        for module, node in waiting:
            keys |= {tree.meaning(module, name.id).key for name in globals_in(node)}
            words |= set(map(word_of, ast.walk(node)))
        called = {key for key in left if key in keys or key.simple in words}
        left -= called
        waiting = [(key.module, tree.functions[key]) for key in called]
    return left


def _others(tree: Tree, candidates: Set[Key]) -> Iterator[tuple[str, ast.AST]]:
    """Everything that runs on import, and the functions that are no candidates."""
    for name, module in tree.modules.items():
        statements: Iterable[ast.AST] = (*module.effects, *(part for parts in module.values.values() for part in parts))
        yield from ((name, statement) for statement in statements)
        yield from ((name, part) for node in module.classes.values() for part in class_statements(node))
    yield from ((key.module, node) for key, node in tree.functions.items() if key not in candidates)


def word_of(node: ast.AST) -> str:
    """The attribute that a node names, as in `x.name` or in the text of a `getattr`; empty for other nodes."""
    word = getattr(node, "attr", None) or getattr(node, "value", None)
    return word if isinstance(word, str) else ""
