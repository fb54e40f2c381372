import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from polygrain.evaluate.result import Predictions, Result, npz_bytes
from polygrain.provenance.errors import UserError


def example() -> Result:
    rows = Predictions(np.array([1, 0, 2, 2]), np.array([1, 1, 2, 0]), np.array([7, 5, 9, 8]))
    return Result({"toy/top1": 0.5, "toy/10%/top1": 1 / 3}, {"toy": {"k": 5}}, {"toy": rows, "toy/10%": rows}, "seen")


def test_the_files_hold_what_the_contract_says(tmp_path: Path) -> None:
    example().save(tmp_path, "knn")
    assert json.loads((tmp_path / "knn.json").read_text()) == {
        "format": 1,
        "protocol": "knn",
        "values": {"toy/top1": 0.5, "toy/10%/top1": 1 / 3},
        "selected": {"toy": {"k": 5}},
        "note": "seen",
    }
    with np.load(tmp_path / "knn.npz") as arrays:
        assert sorted(arrays) == sorted(
            f"{key}.{part}" for key in ("toy", "toy/10%") for part in ("predicted", "label", "index")
        )
        np.testing.assert_array_equal(arrays["toy.predicted"], [1, 0, 2, 2])
        np.testing.assert_array_equal(arrays["toy/10%.label"], [1, 1, 2, 0])
        np.testing.assert_array_equal(arrays["toy.index"], [7, 5, 9, 8])
        assert all(arrays[name].dtype == np.int64 for name in arrays)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    example().save(tmp_path, "knn")
    read = Result.load(tmp_path, "knn")
    assert (read.values, read.selected, read.note) == (example().values, example().selected, "seen")
    assert read.predictions.keys() == {"toy", "toy/10%"}
    np.testing.assert_array_equal(read.predictions["toy/10%"].predicted, [1, 0, 2, 2])


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    made = example()
    turned = Result(
        dict(reversed(made.values.items())), made.selected, dict(reversed(made.predictions.items())), made.note
    )
    made.save(tmp_path / "a", "knn")
    turned.save(tmp_path / "b", "knn")
    for name in ("knn.json", "knn.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_archive_bytes_are_golden() -> None:
    digest = hashlib.sha256(npz_bytes({"b": np.arange(3), "a": np.zeros(2, np.int64)})).hexdigest()
    assert digest == "79acd04e2104d9bcc163149a0674a478433b089ab28001a7dc84bb9e85ba2f74"


def test_top1_and_macro_by_hand() -> None:
    rows = Predictions(np.array([0, 0, 0, 2, 1]), np.array([0, 0, 0, 0, 2]), np.arange(5))
    assert rows.top1() == 3 / 5
    assert rows.macro() == (3 / 4 + 0) / 2  # class 1 has no image and does not count


def test_macro_of_balanced_classes_is_top1_exactly() -> None:
    label = np.arange(10_000) % 10
    predicted = np.where(np.arange(10_000) % 7 < 5, label, 0)
    rows = Predictions(predicted, label, label)
    assert rows.macro() == rows.top1()


def test_damage_is_named(tmp_path: Path) -> None:
    example().save(tmp_path, "knn")
    with pytest.raises(UserError, match=r"linear\.json: not found"):
        Result.load(tmp_path, "linear")
    whole = (tmp_path / "knn.npz").read_bytes()
    for broken in (whole[:100], whole[:-30], b""):
        (tmp_path / "knn.npz").write_bytes(broken)
        with pytest.raises(UserError, match=r"knn\.npz: damaged .* evaluate again"):
            Result.load(tmp_path, "knn")
    (tmp_path / "knn.npz").unlink()
    with pytest.raises(UserError, match=r"knn\.npz: not found"):
        Result.load(tmp_path, "knn")
    for text in ('{"format": 2, "protocol": "knn"}', '{"format": 1, "protocol": "linear"}', "[]"):
        (tmp_path / "knn.json").write_text(text)
        with pytest.raises(UserError, match="not a result of knn in format 1"):
            Result.load(tmp_path, "knn")


def test_a_value_that_is_not_a_number_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        Result({"toy/top1": float("nan")}, {}, {}).save(tmp_path, "knn")
    assert not (tmp_path / "knn.json").exists()
