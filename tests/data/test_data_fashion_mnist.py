import gzip
import http.server
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from polygrain.data.prepare import prepare
from polygrain.data.raw import fetch_first
from polygrain.data.readers import fashion_mnist
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import sha256_bytes


def idx(array: np.ndarray) -> bytes:
    """The IDX format as its authors define it: magic, big-endian sizes, bytes."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(size).to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Twenty training and ten test images in the upstream format, pinned in place of the real ones."""
    generator = np.random.default_rng(0)
    contents = {
        "train-images-idx3-ubyte": idx(generator.integers(0, 256, (20, 28, 28))),
        "train-labels-idx1-ubyte": idx(np.arange(20) % 10),
        "t10k-images-idx3-ubyte": idx(generator.integers(0, 256, (10, 28, 28))),
        "t10k-labels-idx1-ubyte": idx(np.arange(10)[::-1]),
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
    assert raw.images.shape == (30, 1, 28, 28)
    assert raw.labels.tolist() == [*range(10), *range(10), *range(9, -1, -1)]
    assert raw.test.tolist() == list(range(20, 30))
    assert raw.images[21].tobytes() == small["t10k-images-idx3-ubyte"][16 + 784 : 16 + 2 * 784]


class Mirror(http.server.BaseHTTPRequestHandler):
    """A mirror in one of the states that a network offers."""

    contents: dict[str, bytes]
    state = "well"

    def do_GET(self) -> None:
        body = gzip.compress(self.contents[self.path.removeprefix("/").removesuffix(".gz")], mtime=0)
        if self.state == "portal":
            body = b"<html>log in first</html>"
        if self.state == "other":
            body = gzip.compress(b"another file")
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.state == "cut" else body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def mirror(small, monkeypatch) -> Iterator[Callable[[str], None]]:
    """Put a loopback mirror in place of torchvision's; returns what sets its state, None takes it away."""
    handler = type("Handler", (Mirror,), {"contents": small})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/"

        def put(state: str | None) -> None:
            handler.state = state
            reachable = [address] if state else []
            monkeypatch.setattr("torchvision.datasets.FashionMNIST.mirrors", ["http://127.0.0.1:9/", *reachable])

        yield put
        server.shutdown()


def test_a_mirror_is_read_when_there_is_no_folder_and_asked_once(small, mirror):
    mirror("well")
    first = fashion_mnist.read()
    mirror(None)
    again = fashion_mnist.read()
    np.testing.assert_array_equal(first.images, again.images)


@pytest.mark.parametrize("state", ["portal", "other", "cut"])
def test_a_mirror_that_misleads_is_named_and_leaves_nothing_in_the_cache(tmp_path, mirror, state):
    mirror(state)
    with pytest.raises(UserError, match="torchvision's mirrors:"):
        fashion_mnist.read()
    assert list((tmp_path / "cache" / "fashion-mnist").iterdir()) == []
    mirror("well")
    assert len(fashion_mnist.read().labels) == 30


def test_a_damaged_cache_is_fetched_again(tmp_path, small, mirror):
    store(tmp_path / "cache" / "fashion-mnist", {name: data[:20] for name, data in small.items()}, packed=True)
    mirror("well")
    fashion_mnist.read()
    mirror(None)
    assert len(fashion_mnist.read().labels) == 30


def test_the_packed_bytes_do_not_depend_on_the_source(tmp_path, small, mirror, monkeypatch):
    config = {"name": "fashion-mnist", "reader": "fashion-mnist", "validation": 10, "test": 0, "seed": 0}
    mirror("well")
    prepare(config, tmp_path / "from-mirror")
    store(tmp_path / "local", small, packed=False)
    monkeypatch.setenv("POLYGRAIN_DATA", str(tmp_path / "local"))
    prepare(config, tmp_path / "from-folder")
    names = sorted(path.name for path in (tmp_path / "from-mirror").iterdir())
    assert names == ["images.npy", "labels.npy", "manifest.json", "splits.npz"]
    for name in names:
        assert (tmp_path / "from-mirror" / name).read_bytes() == (tmp_path / "from-folder" / name).read_bytes()


@pytest.mark.parametrize("broken", [b"", b"\x1f\x8b\x08", b"\x1f\x8b\x08\0\0\0\0\0\0\3" + b"\xff" * 40])
def test_a_broken_archive_in_a_local_folder_is_named(tmp_path, small, monkeypatch, broken):
    store(tmp_path / "local", small, packed=True)
    (tmp_path / "local" / "t10k-labels-idx1-ubyte.gz").write_bytes(broken)
    monkeypatch.setenv("POLYGRAIN_DATA", str(tmp_path / "local"))
    with pytest.raises(UserError, match=r"local folder: .*t10k-labels-idx1-ubyte"):
        fashion_mnist.read()


def test_a_local_folder_is_asked_before_the_cache(tmp_path, small):
    local, cache = tmp_path / "local", tmp_path / "cache" / "fashion-mnist"
    for folder in (local, cache):
        store(folder, small, packed=True)
    assert fetch_first("fashion-mnist", lambda: local, (), fashion_mnist.check, "") == local
    (local / "t10k-labels-idx1-ubyte.gz").unlink()
    assert fetch_first("fashion-mnist", lambda: local, (), fashion_mnist.check, "") == cache


def test_a_local_folder_needs_no_cache_that_can_be_written(tmp_path, small, monkeypatch):
    store(tmp_path / "local", small, packed=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POLYGRAIN_CACHE", str(tmp_path / "file"))
    monkeypatch.setenv("POLYGRAIN_DATA", str(tmp_path / "local"))
    assert len(fashion_mnist.read().labels) == 30


def test_the_systems_apt_hooks_do_not_run(tmp_path, monkeypatch):
    if shutil.which("apt-get") is None:
        pytest.skip("this system has no apt-get")
    hook = "".join(f'APT::Update::{name} {{ "touch {tmp_path}/ran"; }};\n' for name in fashion_mnist.APT_HOOKS)
    (tmp_path / "apt.conf").write_text(f'{hook}Dir::Etc::sourcelist "/dev/null";\nDir::Etc::sourceparts "/dev/null";')
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    monkeypatch.setattr(fashion_mnist, "PACKAGE", "no-such-package")
    (tmp_path / "scratch").mkdir()
    with pytest.raises(OSError, match="apt-get failed: E: Unable to locate package no-such-package"):
        fashion_mnist._debian(tmp_path / "scratch")
    assert not (tmp_path / "ran").exists()


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
