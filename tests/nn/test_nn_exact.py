"""No function whose last bit the processor's maker decides is called on tensors."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "polygrain"
# on doubles `log` is one of them too, which a text does not show
MAKERS = {"sqrt", "sqrt_", "log2", "log10", "tan", "asin", "arcsin", "acos", "arccos", "atan", "arctan"}
EXACT = {"math", "np", "numpy"}


def calls_of_the_makers(text: str) -> list[str]:
    """Calls of such functions on something other than math and numpy."""
    functions = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return [
        ast.unparse(function)
        for function in functions
        if isinstance(function, ast.Attribute)
        and function.attr in MAKERS
        and not (isinstance(function.value, ast.Name) and function.value.id in EXACT)
    ]


def test_the_package_calls_none() -> None:
    found = {str(path.relative_to(SOURCE)): calls_of_the_makers(path.read_text()) for path in SOURCE.rglob("*.py")}
    assert {name: calls for name, calls in found.items() if calls} == {}


@pytest.mark.parametrize("call", ["torch.sqrt(x)", "x.sqrt()", "(a * b).log2()", "x.sqrt_()"])
def test_such_a_call_is_seen(call: str) -> None:
    assert calls_of_the_makers(f"y = {call}") == [call.partition("(")[0] if call[0] != "(" else "(a * b).log2"]
    assert calls_of_the_makers("y = math.sqrt(x) + np.sqrt(x) + x.rsqrt()") == []
