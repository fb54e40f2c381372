import functools
import gzip
import http.server
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from polygrain.data.readers import fashion_mnist
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import sha256_bytes


def idx(array: np.ndarray) -> bytes:
    """The IDX format as its authors define it: magic, big-endian sizes, bytes."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(size).to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Eight training and four test images in the upstream format, pinned in place of the real ones."""
    generator = np.random.default_rng(0)
    contents = {
        "train-images-idx3-ubyte": idx(generator.integers(0, 256, (8, 28, 28))),
        "train-labels-idx1-ubyte": idx(np.arange(8) % 10),
        "t10k-images-idx3-ubyte": idx(generator.integers(0, 256, (4, 28, 28))),
        "t10k-labels-idx1-ubyte": idx(np.array([9, 8, 1, 0])),
    }
    monkeypatch.setattr(fashion_mnist, "FILES", {name: sha256_bytes(data) for name, data in contents.items()})
    monkeypatch.setattr("torchvision.datasets.FashionMNIST.mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(fashion_mnist, "PACKAGE", "no-such-package")
    monkeypatch.setenv("POLYGRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("POLYGRAIN_DATA", raising=False)
    return contents


def store(folder: Path, contents: dict[str, bytes], packed: bool) -> None:
    folder.mkdir(parents=True)
    for name, data in contents.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / name).write_bytes(data)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", [".", "fashion-mnist", "FashionMNIST/raw"])
def test_a_local_folder_is_read_plain_or_packed(tmp_path, small, monkeypatch, place, packed):
    store(tmp_path / "local" / place, small, packed)
    monkeypatch.setenv("POLYGRAIN_DATA", str(tmp_path / "local"))
    raw = fashion_mnist.read()
    assert raw.images.shape == (12, 1, 28, 28)
    assert raw.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 9, 8, 1, 0]
    assert raw.test.tolist() == [8, 9, 10, 11]
    assert raw.images[9].tobytes() == small["t10k-images-idx3-ubyte"][16 + 784 : 16 + 2 * 784]


def test_a_mirror_is_read_when_there_is_no_folder(tmp_path, small, monkeypatch):
    store(tmp_path / "mirror", small, packed=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "mirror"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        monkeypatch.setattr("torchvision.datasets.FashionMNIST.mirrors", ["http://127.0.0.1:9/", address])
        first = fashion_mnist.read()
        server.shutdown()
    again = fashion_mnist.read()
    np.testing.assert_array_equal(first.images, again.images)


def test_content_that_is_not_the_pinned_one_is_refused_and_the_next_source_asked(tmp_path, small, monkeypatch):
    damaged = dict(small)
    damaged["train-images-idx3-ubyte"] = small["train-images-idx3-ubyte"][:-1] + b"\x00"
    store(tmp_path / "local", damaged, packed=True)
    monkeypatch.setenv("POLYGRAIN_DATA", str(tmp_path / "local"))
    with pytest.raises(UserError) as caught:
        fashion_mnist.read()
    message = str(caught.value)
    assert "\n" not in message
    for words in (
        "fashion-mnist: no source answered",
        "local folder:",
        "train-images-idx3-ubyte: its content is not Fashion-MNIST's",
        "torchvision's mirrors:",
        "Debian package: this system has no apt-get",
        "Set POLYGRAIN_DATA",
    ):
        assert words in message


@pytest.mark.parametrize("damage", [lambda d: d[:-5], lambda d: d[:3], lambda d: b"\x00\x00\x0d\x01" + d[4:]])
def test_a_truncated_or_foreign_file_is_refused(small, damage):
    with pytest.raises(UserError, match="not an IDX file of bytes, or truncated"):
        fashion_mnist.parse_idx("train-labels-idx1-ubyte", damage(small["train-labels-idx1-ubyte"]))


def test_the_real_data_set_is_what_it_is_known_to_be():
    try:
        raw = fashion_mnist.read()
    except UserError as error:
        if os.environ.get("POLYGRAIN_REQUIRE") == "all":
            raise
        pytest.skip(str(error))
    assert raw.images.shape == (70_000, 1, 28, 28)
    assert np.bincount(raw.labels).tolist() == [7_000] * 10
    assert raw.test.tolist() == list(range(60_000, 70_000))
    assert raw.images.mean() == pytest.approx(72.97, abs=0.1)
