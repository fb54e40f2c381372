import ast

import pytest

from polygrain.config import signature
from polygrain.provenance.errors import UserError


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("int", [3, -1], [3.0, True, "3", None]),
        ("float", [3, 0.5], [True, "x", None]),
        ("bool", [True], [1, "true"]),
        ("str", ["a"], [1]),
        ("int | None", [1, None], ["a"]),
        ("list[int]", [[1, 2], []], [1, [1.5], (1,)]),
        ("tuple[int, ...]", [[1, 2]], [["a"], 2]),
        ("tuple[float, float]", [[1, 2.5]], [[1], [1, 2, 3]]),
        ("Literal['a', 'b']", ["a"], ["c", 1]),
        ("Mapping[str, float]", [{"x": 1}], [{"x": "y"}, 3]),
        ("float | Literal['all']", ["all", 0.5], ["some"]),
    ],
)
def test_values_are_held_against_annotations(annotation, good, bad):
    tree = ast.parse(annotation, mode="eval").body
    assert all(signature._fits(value, tree) for value in good)
    assert not any(signature._fits(value, tree) for value in bad)


def test_check_values_names_the_key_and_the_nearest():
    expected = {"temperature": ("float", True), "hidden": ("int", False)}
    signature.check_values("here", {"temperature": 0.1}, expected)
    with pytest.raises(UserError, match=r"here: unknown key 'temprature'; did you mean 'temperature'\?"):
        signature.check_values("here", {"temprature": 0.1}, expected)
    with pytest.raises(UserError, match=r"here: key 'temperature' \(float\) is missing"):
        signature.check_values("here", {"hidden": 3}, expected)
    with pytest.raises(UserError, match="key 'hidden' must be int, not 'big'"):
        signature.check_values("here", {"temperature": 1, "hidden": "big"}, expected)


def test_keywords_are_read_from_source_without_importing(tmp_path, monkeypatch):
    package = tmp_path / "demo"
    package.mkdir()
    (package / "thing.py").write_text(
        "raise SystemExit\nclass T:\n def __init__(self, backbone, *, a: int, b: list[str] = ()): ...\nMETHOD = T\n"
        "def build(*, channels: int, width: int): ...\n"
    )
    monkeypatch.setattr(signature, "SOURCE", tmp_path)
    assert signature.assigned_name("demo.thing", "METHOD") == "T"
    assert signature.keywords("demo.thing", "T") == {"a": ("int", True), "b": ("list[str]", False)}
    assert signature.keywords("demo.thing", "build") == {"channels": ("int", True), "width": ("int", True)}
