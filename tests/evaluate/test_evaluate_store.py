import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from polygrain.evaluate.store import Features, Split, labelled_rows
from polygrain.provenance.errors import UserError


def test_what_is_saved_is_loaded(features, tmp_path: Path) -> None:
    made = features(names=("toy", "other"))
    made.save(tmp_path / "features.safetensors")
    read = Features.load(tmp_path / "features.safetensors")
    assert read.datasets.keys() == made.datasets.keys()
    for name, dataset in made.datasets.items():
        other = read.datasets[name]
        assert (other.name, other.classes) == (name, 5)
        for split in ("train", "validation", "test"):
            for part in ("features", "labels", "indices"):
                mine, theirs = getattr(getattr(dataset, split), part), getattr(getattr(other, split), part)
                assert mine.dtype == theirs.dtype
                np.testing.assert_array_equal(mine, theirs)


def test_equal_features_give_equal_bytes(features, tmp_path: Path) -> None:
    made = features(names=("toy", "other"))
    made.save(tmp_path / "a")
    Features(dict(reversed(made.datasets.items()))).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_a_label_subset_is_a_prefix_of_train(features) -> None:
    dataset = features().datasets["toy"]
    assert len(dataset.labelled("all")) == 400
    subset = dataset.labelled("10%")
    np.testing.assert_array_equal(subset.features, dataset.train.features[:40])
    np.testing.assert_array_equal(subset.labels, dataset.train.labels[:40])
    np.testing.assert_array_equal(subset.indices, dataset.train.indices[:40])


def test_a_label_subset_has_as_many_rows_of_each_class(features) -> None:
    dataset = features(rows=(403, 20, 20)).datasets["toy"]
    for subset, each in (("1%", 2), ("3%", 2), ("4%", 3), ("10%", 8), ("99.9%", 80)):
        assert np.bincount(dataset.labelled(subset).labels).tolist() == [each] * 5, subset


@pytest.mark.parametrize(
    ("subset", "rows", "classes", "expected"),
    [
        ("all", 403, 5, 403),
        ("all", 3, 5, 3),
        ("1%", 12_000, 10, 120),
        ("10%", 12_000, 10, 1200),
        ("0.5%", 12_000, 10, 60),
        ("0.05%", 100_000, 10, 50),
        ("01%", 12_000, 10, 120),
        ("1%", 12_999, 10, 120),  # 12.999 of each class
        ("1%", 13_000, 10, 130),
        ("0.5%", 560, 10, 20),  # two of each class, where the share has less than one
        ("1%", 20, 10, 20),
        ("99%", 20, 10, 20),
        ("7%", 10_000, 7, 700),
        # exact shares that floats miss by a bit: 0.29 * 100 is below 29, 0.57 * 100 below 57
        ("29%", 1000, 10, 290),
        ("57%", 100, 1, 57),
        ("58%", 100, 1, 58),
    ],
)
def test_a_share_is_in_whole_images_of_each_class(subset: str, rows: int, classes: int, expected: int) -> None:
    assert labelled_rows("toy", subset, rows, classes) == expected


def test_no_share_that_is_whole_loses_an_image_to_rounding() -> None:
    """By whole numbers: a share of thousandths, of as many images per class as make it whole, and of one fewer."""
    for thousandths in range(1, 1000):
        for classes in (1, 2, 3, 7, 10, 101, 1000):
            for each in (1000, 5000):
                rows = each * classes
                subset, whole = f"{thousandths / 10}%", max(2, thousandths * each // 1000)
                assert labelled_rows("toy", subset, rows, classes) == whole * classes, (subset, rows, classes)
                assert labelled_rows("toy", subset, rows - 1, classes) == max(2, whole - 1) * classes


@pytest.mark.parametrize(
    "subset", ["0%", "0.0%", "00%", "100%", "-1%", "1", "0.01", ".5%", "1.%", "1 %", "1%%", "", "10%\n"]
)
def test_what_is_not_a_share_is_refused(subset: str) -> None:
    with pytest.raises(UserError, match="toy: no label subset '"):
        labelled_rows("toy", subset, 1000, 10)


def test_an_unknown_label_subset_says_what_to_write(features) -> None:
    with pytest.raises(UserError, match=r"no label subset 'half'; write all, or a share such as 1% or 0\.5%"):
        features().datasets["toy"].labelled("half")


def test_two_rows_of_each_class_must_have_been_extracted() -> None:
    fault = "toy: label subset 10% needs 2 images of each of 10 classes; 19 train rows are extracted, extract more"
    with pytest.raises(UserError, match=fault):
        labelled_rows("toy", "10%", 19, 10)
    assert labelled_rows("toy", "all", 19, 10) == 19


@pytest.mark.parametrize("keep", [0, 7, 500, -1])
def test_a_truncated_file_is_named(features, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "features.safetensors"
    features().save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"features\.safetensors: not a whole features file .* extract again"):
        Features.load(path)


def test_a_foreign_or_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not found; extract the features first"):
        Features.load(tmp_path / "none.safetensors")
    save_file({"x": np.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="not a whole features file"):
        Features.load(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(features, value: float) -> None:
    dataset = features().datasets["toy"]
    broken = dataset.test.features.copy()
    broken[17, 3] = value
    with pytest.raises(UserError, match=r"toy, test split: row 17 .* encoder has diverged"):
        replace(dataset, test=replace(dataset.test, features=broken))


def test_parts_that_do_not_fit_are_refused(features) -> None:
    dataset = features().datasets["toy"]
    with pytest.raises(UserError, match=r"outside 0\.\.4"):
        replace(dataset, test=replace(dataset.test, labels=dataset.test.labels + 1))
    with pytest.raises(UserError, match="validation split: no rows"):
        replace(dataset, validation=dataset.validation.prefix(0))
    with pytest.raises(UserError, match="do not fit"):
        replace(dataset, test=replace(dataset.test, indices=dataset.test.indices[1:]))
    with pytest.raises(UserError, match="do not fit"):
        replace(dataset, test=replace(dataset.test, features=dataset.test.features[:, 1:]))


def test_a_collapsed_encoder_is_noted(features) -> None:
    made = features(names=("fine", "flat"))
    flat = made.datasets["flat"]
    constant = np.tile(flat.train.features[:1], (400, 1)) * (1 + 1e-7 * (np.arange(400)[:, None] % 2))
    collapsed = replace(flat, train=Split(constant.astype(np.float32), flat.train.labels, flat.train.indices))
    assert made.note() == ""
    note = Features({**made.datasets, "flat": collapsed}).note()
    assert note == "collapsed encoder: every train image of flat has one feature"


def test_reading_features_loads_no_network_library() -> None:
    code = "import sys, polygrain.evaluate.store; print(sorted({'torch', 'torchvision', 'timm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
