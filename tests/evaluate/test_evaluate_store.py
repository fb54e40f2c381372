import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from polygrain.evaluate.store import Features, Split
from polygrain.provenance.errors import UserError


def test_what_is_saved_is_loaded(features, tmp_path: Path) -> None:
    made = features(names=("toy", "other"))
    made.save(tmp_path / "features.safetensors")
    read = Features.load(tmp_path / "features.safetensors")
    assert read.datasets.keys() == made.datasets.keys()
    for name, dataset in made.datasets.items():
        other = read.datasets[name]
        assert (other.name, other.classes, dict(other.label_subsets)) == (name, 5, {"10%": 40, "1%": 9})
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


def test_an_unknown_label_subset_names_what_there_is(features) -> None:
    with pytest.raises(UserError, match=r"toy: no label subset '20%' within its 400 .* there are all, 10%, 1%"):
        features().datasets["toy"].labelled("20%")


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
