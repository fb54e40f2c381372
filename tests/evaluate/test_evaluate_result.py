import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polygrain.evaluate.result import ACCURACY, Examples, Measure, Number, Result, classified, macro
from polygrain.provenance.errors import UserError
from polygrain.provenance.npz import npz_bytes

BITS = Measure("bits", "lower", 2)
INDEX = np.array([7, 5, 9, 8])


def example() -> Result:
    """A classification of four images, and the surprise of a model at each of them."""
    numbers, rows = classified("toy", np.array([1, 0, 2, 2]), np.array([1, 1, 2, 0]), INDEX)
    surprise = Examples(INDEX, {"surprise": np.array([0.25, 4.0, -0.5, 1.25])})
    values = {**numbers, "toy/10%/surprise": Number(1.25, BITS), "toy/rank": Number(17, Measure("1", "none"))}
    return Result(values, {"toy": {"k": 5}}, {"toy": rows, "toy/10%": surprise}, "seen")


def test_the_files_hold_what_the_contract_says(tmp_path: Path) -> None:
    example().save(tmp_path, "own")
    assert json.loads((tmp_path / "own.json").read_text()) == {
        "format": 2,
        "protocol": "own",
        "values": {"toy/top1": 0.5, "toy/macro": 0.5, "toy/10%/surprise": 1.25, "toy/rank": 17},
        "measures": {
            "toy/top1": ["fraction", "higher", 1],
            "toy/macro": ["fraction", "higher", 1],
            "toy/10%/surprise": ["bits", "lower", 2],
            "toy/rank": ["1", "none", 1],
        },
        "selected": {"toy": {"k": 5}},
        "note": "seen",
    }
    expected: dict[str, Any] = {
        "toy.index": INDEX,
        "toy.predicted": [1, 0, 2, 2],
        "toy.label": [1, 1, 2, 0],
        "toy/top1.score": [1, 0, 1, 0],
        "toy/10%.index": INDEX,
        "toy/10%/surprise.score": [0.25, 4.0, -0.5, 1.25],
    }
    with np.load(tmp_path / "own.npz") as arrays:
        assert set(arrays) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(arrays[name], array)
            assert arrays[name].dtype == (np.float64 if "surprise" in name else np.int64)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    made = example()
    made.save(tmp_path, "own")
    read = Result.load(tmp_path, "own")
    assert (read.values, read.selected, read.note) == (made.values, made.selected, "seen")
    assert read.examples.keys() == {"toy", "toy/10%"}
    assert read.examples["toy/10%"].predicted is None
    for key, rows in made.examples.items():
        for name, array in dict(rows.arrays(key)).items():
            np.testing.assert_array_equal(dict(read.examples[key].arrays(key))[name], array)
    (tmp_path / "own.npz").unlink()
    assert Result.load(tmp_path, "own", numbers_only=True).values == made.values


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    made = example()
    turned = Result(
        dict(reversed(made.values.items())), made.selected, dict(reversed(made.examples.items())), made.note
    )
    made.save(tmp_path / "a", "own")
    turned.save(tmp_path / "b", "own")
    for name in ("own.json", "own.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_numbers_of_a_classification_by_hand() -> None:
    predicted, label = np.array([0, 0, 0, 2, 1]), np.array([0, 0, 0, 0, 2])
    numbers, rows = classified("toy", predicted, label, np.arange(5))
    # class 1 has no image and does not count
    assert numbers == {"toy/top1": (3 / 5, ACCURACY), "toy/macro": ((3 / 4 + 0) / 2, ACCURACY)}
    assert rows.scores["top1"].tolist() == [1, 1, 1, 0, 0]


def test_macro_of_balanced_classes_is_top1_exactly() -> None:
    label = np.arange(10_000) % 10
    predicted = np.where(np.arange(10_000) % 7 < 5, label, 0)
    numbers, _ = classified("toy", predicted, label, label)
    assert macro(predicted, label) == numbers["toy/top1"].value


def test_numbers_are_counted_again_from_their_examples() -> None:
    made = example()
    counted = {name: made.counted(name) for name in made.values}
    assert counted == {"toy/top1": 0.5, "toy/macro": 0.5, "toy/10%/surprise": 1.25, "toy/rank": None}
    raised = Result({**made.values, "toy/macro": Number(0.6, ACCURACY)}, {}, made.examples)
    assert [name for name in raised.values if not raised.agrees(name)] == ["toy/macro"]


def test_damage_is_named(tmp_path: Path) -> None:
    example().save(tmp_path, "own")
    with pytest.raises(UserError, match=r"linear\.json: not found"):
        Result.load(tmp_path, "linear")
    whole = (tmp_path / "own.npz").read_bytes()
    for broken in (whole[:100], whole[:-30], b""):
        (tmp_path / "own.npz").write_bytes(broken)
        with pytest.raises(UserError, match=r"own\.npz: damaged .* evaluate again"):
            Result.load(tmp_path, "own")
    (tmp_path / "own.npz").unlink()
    with pytest.raises(UserError, match=r"own\.npz: not found"):
        Result.load(tmp_path, "own")
    for text in ('{"format": 1, "protocol": "own"}', '{"format": 2, "protocol": "linear"}', "[]"):
        (tmp_path / "own.json").write_text(text)
        with pytest.raises(UserError, match="not a result of own in format 2"):
            Result.load(tmp_path, "own")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("values", {"toy/top1": 1.5}, "toy/top1 must be a fraction in 0..1, not 1.5"),
        ("values", {"toy/rank": float("nan")}, "toy/rank must be a finite number, not nan"),
        ("values", {"toy/rank": True}, "toy/rank must be a finite number, not True"),
        ("values", {"toy/other": 1.0}, "malformed"),
        ("measures", {"toy/top1": ["fraction", "up", 1]}, "toy/top1 direction must be one of higher, lower, none"),
        ("measures", {"toy/top1": ["", "higher", 1]}, "toy/top1 unit must be text"),
        ("measures", {"toy/top1": ["fraction", "higher", 10]}, "toy/top1 decimals must be from 0 to 9"),
        ("measures", {"toy/top1": ["fraction"]}, "malformed"),
    ],
)
def test_a_number_that_is_not_as_documented(tmp_path: Path, key: str, value: dict[str, Any], message: str) -> None:
    example().save(tmp_path, "own")
    about = json.loads((tmp_path / "own.json").read_text())
    (tmp_path / "own.json").write_text(json.dumps({**about, key: {**about[key], **value}}))
    with pytest.raises(UserError, match=rf"own\.json: {message}.*evaluate again"):
        Result.load(tmp_path, "own")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": np.array([7, 5, 9, 7])}, "a test example occurs twice"),
        ({"index": np.arange(3)}, "differ in shape"),
        ({"index": INDEX.astype(np.int32)}, "must be int64"),
        ({"predicted": None}, "both or neither"),
        ({"scores": {"top1": np.array([1.0, np.nan, 1.0, 0.0])}}, "scores of top1 must be finite"),
        ({"scores": {"top1": np.array([True, False, True, False])}}, "int64 or float64"),
        ({"scores": {"top1": np.array([1, 1, 1, 0])}}, "/top1: must be a value, the mean 0.75 of its scores"),
        ({"scores": {"top2": np.array([1, 1, 1, 0])}}, "/top2: must be a value"),
    ],
)
def test_examples_that_are_not_as_documented_are_never_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    made = example()
    examples = {"toy": replace(made.examples["toy"], **changes)}
    with pytest.raises(UserError, match=rf"^own: toy.*{message}"):
        Result(made.values, {}, examples).save(tmp_path, "own")
    assert not any(tmp_path.iterdir())


def test_arrays_that_do_not_fit_are_refused_on_reading(tmp_path: Path) -> None:
    made = example()
    made.save(tmp_path, "own")
    arrays = dict(made.examples["toy"].arrays("toy"))
    for name, array, message in (
        ("toy.index", np.zeros(4, np.int64), "occurs twice"),
        ("toy.label", np.zeros(3, np.int64), "differ in shape"),
        ("toy.colour", np.zeros(4), "damaged"),
    ):
        (tmp_path / "own.npz").write_bytes(npz_bytes({**arrays, name: array}))
        with pytest.raises(UserError, match=rf"own\.npz: .*{message}.* evaluate again"):
            Result.load(tmp_path, "own")


def test_a_value_that_is_not_a_number_is_never_written(tmp_path: Path) -> None:
    for value, measure in ((float("nan"), ACCURACY), (1.2, ACCURACY), (float("inf"), BITS)):
        with pytest.raises(UserError, match="own: toy/x: must be a f"):
            Result({"toy/x": Number(value, measure)}).save(tmp_path, "own")
    assert not any(tmp_path.iterdir())
