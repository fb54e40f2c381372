"""Code hashes: what keeps them, what changes them, and that the closure misses nothing that really loads."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from polygrain.provenance import code
from polygrain.provenance.code import code_hashes, tree_hash
from polygrain.provenance.errors import UserError

SOURCE = Path(code.__file__).parents[2]

# Entry modules of stages; each room adds its own here.
ENTRIES = [
    "polygrain.provenance.checklock",
    "polygrain.provenance.code",
    "polygrain.provenance.files",
    "polygrain.provenance.record",
    "polygrain.provenance.sidecar",
]

SAMPLE = '''
"""Docstring."""
from typing import TYPE_CHECKING
import os, sys as s
if TYPE_CHECKING:
    from polygrain.x import y
X: int = 3
def f(a, /, *args, b=None, c=1.5, **k) -> "str":
    """Docstring."""
    total = f"{{a}} {a!r:>{c}.2f}b{b=}" f"{a:}" "z" f'\\N{EM DASH}' + rf"\\d{a}\\n" + f"{a:%H\\n{c}%M}"
    return total + f"{'nested' + f'{a}'}" if not -a else {**k, 1: ..., True: None}
@decorated(1)
class A(dict, metaclass=M):
    """Docstring."""
    x = b"a", 1j, 1e400, -1, 0.1, "\\ud800", u"\\U0001fae9", 10**30
    async def g(self):
        async with self as (a, b), c: yield [i async for i in x if i]
        try: pass
        except* ValueError as e: raise E from e
        with phase("rest: monitors"), self.watch.phase("views", 1): raise E(f"{a!r}: no {b}") from None
        match x:
            case {"a": 1, **r} | [1, *_] | A(x=None): pass
        print(x[1:2, ::3], x[*a], lambda *a, k=1: (y := 2), not a < b <= c)
'''
GOLDEN = "907c4eec488c65a397623f44825727e56b6a260501a822ad10ba11363f4cb264"

BASE = 'import os\n\n\ndef f(x: int) -> float:\n    """Say."""\n    y = x * 2.0  # twice\n    return y\n'


def test_golden_hash() -> None:
    assert tree_hash(SAMPLE) == GOLDEN


def other_interpreters() -> list[str]:
    """Pythons from 3.11 on that this machine happens to have beside the one that runs the tests."""
    found = {}
    for version in ("3.11", "3.12", "3.13", "3.14"):
        beside = sorted(Path(sys.base_prefix).parent.glob(f"*{version}*/bin/python{version}"))
        python = str(beside[0]) if beside else shutil.which(f"python{version}")
        if python and subprocess.run([python, "-c", ""], capture_output=True).returncode == 0:
            found[version] = python
    return list(found.values())


def test_golden_hash_under_every_python_that_is_here() -> None:
    program = "import sys; from polygrain.provenance.code import tree_hash; print(tree_hash(sys.stdin.read()))"
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    for python in [sys.executable, *other_interpreters()]:
        done = subprocess.run([python, "-c", program], input=SAMPLE, env=env, capture_output=True, text=True)
        assert done.stdout.strip() == GOLDEN, f"{python}: {done.stderr}"


@pytest.mark.parametrize(
    "text",
    [
        BASE.replace("  # twice", ""),
        BASE.replace("Say.", "Say it better."),
        BASE.replace('    """Say."""\n', ""),
        BASE.replace("x * 2.0", "(\n        x\n        * 2.00)"),
        BASE.replace("import os\n\n\n", "import os\n"),
        BASE.replace("    return y", '    "a note"\n    return y'),
        BASE.replace("return y", "return (y)"),
    ],
)
def test_edits_without_meaning_keep_the_hash(text: str) -> None:
    assert text != BASE
    assert tree_hash(text) == tree_hash(BASE)


@pytest.mark.parametrize(
    "text",
    [
        BASE.replace("2.0", "2.1"),
        BASE.replace("2.0", "2"),
        BASE.replace("2.0", "'2.0'"),
        BASE.replace("2.0", "b'2.0'"),
        BASE.replace("2.0", "-2.0"),
        BASE.replace("2.0", "True"),
        BASE.replace("*", "/"),
        BASE.replace("x: int", "x: float"),
        BASE.replace("-> float", ""),
        BASE.replace("x", "z"),
        BASE.replace("return y", "return"),
        BASE.replace("return y", "return None"),
        BASE.replace("import os", "import os as o"),
        BASE.replace("def f", "async def f"),
    ],
)
def test_edits_with_meaning_change_the_hash(text: str) -> None:
    assert text != BASE
    assert tree_hash(text) != tree_hash(BASE)


FAULT = """
def f(x, watch):
    with phase("rest"), watch.phase("views"):
        if x < 0:
            raise UserError(f"x: {x} is negative") from None
        return g(x)
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('f"x: {x} is negative"', '"give x a value of 0 or more", x, cause=g(x)'),
        (" from None", ""),
        (" from None", " from error"),
        ('phase("rest")', 'phase("other: monitors")'),
        ('watch.phase("views")', 'watch.phase("forward")'),
    ],
)
def test_the_words_of_an_error_and_of_a_phase_do_not_count(old: str, new: str) -> None:
    assert old in FAULT
    assert tree_hash(FAULT.replace(old, new)) == tree_hash(FAULT)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x < 0", "x <= 0"),
        ("UserError(", "KeyError("),
        ('raise UserError(f"x: {x} is negative") from None', "pass"),
        ('raise UserError(f"x: {x} is negative") from None', "raise"),
        ('raise UserError(f"x: {x} is negative") from None', 'return UserError(f"x: {x} is negative")'),
        ('with phase("rest"), ', "with "),
        ('phase("rest")', "phase(x)"),
        ('phase("rest")', 'phase(f"{x}")'),
        ('phase("rest")', "phase(1)"),
        ('phase("rest")', 'phase("rest", x)'),
        ('phase("rest")', 'face("rest")'),
        ('watch.phase("views")', 'watch.other("views")'),
        ("g(x)", 'g("rest")'),
    ],
)
def test_that_and_what_is_raised_or_called_counts(old: str, new: str) -> None:
    assert old in FAULT
    assert tree_hash(FAULT.replace(old, new)) != tree_hash(FAULT)


def test_every_small_difference_is_told_apart() -> None:
    texts = [
        "x=1",
        "x=True",
        "x=1.0",
        "x=1j",
        "x='1'",
        "x=b'1'",
        "x=None",
        "x=...",
        "x=[1]",
        "x=(1,)",
        "x={1}",
    ]
    texts += ["f(a,b)", "f(a,*b)", "f(a,b=b)", "{**a}", "{a:a}", "x='a';y='b'", "x='ab';y=''", "x=f'a{b}'"]
    texts += [
        "def f(*, a, b=1): 0",
        "def f(*, a=1, b): 0",
        "x=f'{a}{b}'",
        "x=f'{a!r}'",
        "x=f'{a:1}'",
        "x=0.0",
        "x=-0.0",
    ]
    assert len({tree_hash(text) for text in texts}) == len(texts)


def test_fields_and_pieces_that_python_versions_add_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """What 3.12 and later parsers do to a tree: an empty `type_params`, f-string texts in pieces."""
    text = "def f(x):\n    return f'ab{x:}c'\n"
    tree = ast.parse(text)
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    returned = function.body[0]
    assert isinstance(returned, ast.Return)
    string = returned.value
    assert isinstance(string, ast.JoinedStr)
    string.values[:1] = [ast.Constant("a"), ast.Constant(""), ast.Constant("b")]
    value = next(item for item in string.values if isinstance(item, ast.FormattedValue))
    value.format_spec = ast.JoinedStr([ast.Constant("")])
    monkeypatch.setattr(ast.FunctionDef, "_fields", (*ast.FunctionDef._fields, "added_later"))
    function.added_later = []  # type: ignore[attr-defined]
    monkeypatch.setattr(ast, "parse", lambda _: tree)
    changed = tree_hash(text)
    monkeypatch.undo()
    assert changed == tree_hash(text)


def _write(source: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = source / "polygrain" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return source


PACKAGE = {
    "__init__.py": "",
    "a/__init__.py": "from . import eager\n",
    "a/eager.py": "",
    "a/one.py": "from polygrain.b import two, NAME\n",
    "b/__init__.py": "NAME = 1\n",
    "b/two.py": "def f():\n    from .deep.three import g\n    import polygrain.c.four as h\n",
    "b/deep/__init__.py": "",
    "b/deep/three.py": "from ...c import *\nimport numpy.random, polygraining\n",
    "c/__init__.py": "",
    "c/four.py": "from typing import TYPE_CHECKING\nimport typing\n"
    "if TYPE_CHECKING:\n    from polygrain import hidden\n"
    "else:\n    from polygrain import shown\nif typing.TYPE_CHECKING:\n    import polygrain.hidden\n",
    "shown.py": "from polygrain.a import one  # a circle\n",
    "hidden.py": "",
    "unused.py": "",
}


def test_closure_follows_every_import_that_can_run(tmp_path: Path) -> None:
    hashes = code_hashes(["polygrain.a.one"], _write(tmp_path, PACKAGE))
    names = "a a.eager a.one b b.deep b.deep.three b.two c c.four shown"
    assert list(hashes) == ["polygrain", *(f"polygrain.{name}" for name in names.split())]


def test_entries_add_up_and_an_edit_is_seen_at_once(tmp_path: Path) -> None:
    source = _write(tmp_path, PACKAGE)
    before = code_hashes(["polygrain.unused", "polygrain.shown", "polygrain.unused"], source)
    assert {"polygrain.unused", "polygrain.shown"} < set(before)
    (source / "polygrain/b/two.py").write_text(PACKAGE["b/two.py"] + "LATER = 1\n")
    after = code_hashes(["polygrain.unused", "polygrain.shown"], source)
    assert {name for name in before if before[name] != after[name]} == {"polygrain.b.two"}


@pytest.mark.parametrize(
    ("files", "entry", "says"),
    [
        ({}, "polygrain.nope", "polygrain.nope"),
        ({}, "os.path", "os.path"),
        ({"unused.py": "import polygrain.nope"}, "polygrain.unused", "imported by polygrain.unused"),
        ({"unused.py": "from .nope import x"}, "polygrain.unused", "polygrain.nope"),
        ({"unused.py": "x = 1\ny = (\n"}, "polygrain.unused", "unused.py:2"),
    ],
)
def test_unknown_and_broken_modules_are_named(tmp_path: Path, files: dict[str, str], entry: str, says: str) -> None:
    with pytest.raises(UserError, match=says.replace(".", r"\.")):
        code_hashes([entry], _write(tmp_path, PACKAGE | files))


@pytest.mark.parametrize("entry", ENTRIES)
def test_closure_holds_all_modules_that_importing_the_entry_loads(entry: str) -> None:
    program = f"import {entry}, json, sys; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name for name in json.loads(done.stdout) if name.split(".")[0] == "polygrain"}
    assert entry in loaded
    assert set(code_hashes([entry], SOURCE)) >= loaded
