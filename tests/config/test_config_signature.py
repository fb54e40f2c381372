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
def test_values_are_held_against_annotations(annotation, good, bad, tmp_path, monkeypatch):
    model = demo(f"def build(*, a: {annotation}): ...\n", tmp_path, monkeypatch)
    for value in good:
        model.of("here", {"a": value})
    for value in bad:
        with pytest.raises(UserError, match="here: key 'a"):
            model.of("here", {"a": value})


def demo(text, tmp_path, monkeypatch, name="build"):
    (tmp_path / "demo").mkdir(exist_ok=True)
    (tmp_path / "demo" / "thing.py").write_text(text)
    monkeypatch.setattr(signature, "SOURCE", tmp_path)
    signature._parsed.cache_clear()
    signature.values_model.cache_clear()
    signature.constant.cache_clear()
    return signature.values_model("demo.thing", name)


def test_a_mistake_names_the_key_and_the_nearest(tmp_path, monkeypatch):
    text = "def build(*, temperature: float, hidden: int = 3, share: float | Literal['all'] = 1): ...\n"
    model = demo(text, tmp_path, monkeypatch)
    model.of("here", {"temperature": 0.1})
    with pytest.raises(UserError, match=r"here: unknown key 'x.temprature'; did you mean 'temperature'\?"):
        model.of("here", {"temprature": 0.1}, "x")
    with pytest.raises(UserError, match=r"here: key 'temperature' \(float\) is missing"):
        model.of("here", {"hidden": 3})
    with pytest.raises(UserError, match=r"here: key 'x\.hidden' must be int, not 'big'"):
        model.of("here", {"temperature": 1, "hidden": "big"}, "x")
    with pytest.raises(UserError, match=r"key 'share' must be float \| Literal\['all'\], not 'some'"):
        model.of("here", {"temperature": 1, "share": "some"})


def test_signatures_are_read_from_source_without_importing(tmp_path, monkeypatch):
    text = (
        "raise SystemExit\nclass T:\n def __init__(self, backbone, *, a: int, b: list[str] = ()): ...\nMETHOD = T\n"
        "def build(*, channels: int, width: int): ...\ndef odd(*, a: Path): ...\nWORDS = ('x', 'y')\n"
    )
    model = demo(text, tmp_path, monkeypatch, "T")
    assert signature.constant("demo.thing", "METHOD") == "T"
    assert signature.constant("demo.thing", "WORDS") == ("x", "y")
    assert {key: field.is_required() for key, field in model.model_fields.items()} == {"a": True, "b": False}
    assert list(signature.values_model("demo.thing", "build", without=("channels",)).model_fields) == ["width"]
    with pytest.raises(UserError, match=r"annotation 'Path' cannot describe a YAML value"):
        signature.values_model("demo.thing", "odd")
    for name, what in (("none", "no function or class 'none'"), ("METHODS", "no function or class")):
        with pytest.raises(UserError, match=what):
            signature.values_model("demo.thing", name)
