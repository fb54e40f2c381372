import dataclasses
import hashlib
import http.server
import io
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torchvision

from polygrain.data.archives import download_wheel, load_pickle
from polygrain.data.packed import open_packed
from polygrain.data.prepare import prepare
from polygrain.data.readers import cifar_10, cifar_100
from polygrain.provenance.errors import UserError


def string(text: bytes) -> bytes:
    """A string as Python 2 pickled it."""
    return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + struct.pack("<i", len(text)) + text


def integer(value: int) -> bytes:
    return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)


def items(values: list[bytes]) -> bytes:
    return b"](" + b"".join(values) + b"e"


def array(rows: np.ndarray) -> bytes:
    """A two-dimensional array of bytes, as numpy of Python 2 pickled it."""
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + b"\x85" + string(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + string(b"u1") + integer(0) + integer(1) + b"\x87R"
    dtype += b"(" + integer(3) + string(b"|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
    shape = integer(rows.shape[0]) + integer(rows.shape[1]) + b"\x86"
    return empty + b"(" + integer(1) + shape + dtype + b"\x89" + string(rows.astype(np.uint8).tobytes()) + b"tb"


def mapping(entries: dict[str, bytes]) -> bytes:
    """A whole pickle of protocol 2."""
    return b"\x80\x02}(" + b"".join(string(key.encode()) + value for key, value in entries.items()) + b"u."


def batch(generator: np.random.Generator, labels: dict[str, list[int]]) -> bytes:
    count = len(next(iter(labels.values())))
    rows = generator.integers(0, 256, (count, 3072))
    lists = {key: items([integer(value) for value in values]) for key, values in labels.items()}
    return mapping({"batch_label": string(b"a batch"), "data": array(rows), **lists})


def meta(**lists: list[str]) -> bytes:
    return mapping({key: items([string(name.encode()) for name in names]) for key, names in lists.items()})


def small_10() -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    contents = {
        f"data_batch_{k}": batch(generator, {"labels": generator.permutation(np.arange(20) % 10).tolist()})
        for k in range(1, 6)
    }
    contents["test_batch"] = batch(generator, {"labels": list(range(9, -1, -1))})
    contents["batches.meta"] = meta(label_names=[f"c{k}" for k in range(10)])
    return contents


def small_100() -> dict[str, bytes]:
    generator = np.random.default_rng(1)
    parts = {"train": generator.permutation(np.arange(300) % 100), "test": np.arange(100)}
    contents = {
        name: batch(generator, {"coarse_labels": (fine * 7 % 20).tolist(), "fine_labels": fine.tolist()})
        for name, fine in parts.items()
    }
    fine_names, coarse_names = ([f"{kind}{k}" for k in range(count)] for kind, count in (("fine", 100), ("coarse", 20)))
    contents["meta"] = meta(fine_label_names=fine_names, coarse_label_names=coarse_names)
    return contents


class Upstream:
    """A small data set in the authors' format, pinned in place of the real one."""

    def __init__(self, name: str, reader: ModuleType, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch):
        self.name, self.reader, self.contents, self.monkeypatch = name, reader, contents, monkeypatch
        self.pin()

    def pin(self, **changes: Any) -> None:
        """Take the present contents for the authors'."""
        archive = dataclasses.replace(
            self.reader.ARCHIVE,
            md5=hashlib.md5(self.tar()).hexdigest(),
            url="http://127.0.0.1:9/archive",
            members={name: hashlib.md5(data).hexdigest() for name, data in self.contents.items()},
        )
        self.monkeypatch.setattr(self.reader, "ARCHIVE", dataclasses.replace(archive, **changes))

    def tar(self, *extra: tuple[tarfile.TarInfo, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            top = tarfile.TarInfo(self.reader.ARCHIVE.folder)
            top.type = tarfile.DIRTYPE
            archive.addfile(top)
            for entry, data in extra:
                archive.addfile(entry, io.BytesIO(data))
            for name, data in reversed(self.contents.items()):
                entry = tarfile.TarInfo(f"{top.name}/{name}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        # gzip stamps the time on its header
        return buffer.getvalue()[:4] + b"\0\0\0\0" + buffer.getvalue()[8:]

    def store(self, place: Path, packed: bool = True) -> None:
        """Put the archive or its unpacked folder under `place`."""
        if packed:
            place.mkdir(parents=True, exist_ok=True)
            (place / self.reader.ARCHIVE.name).write_bytes(self.tar())
        else:
            (place / self.reader.ARCHIVE.folder).mkdir(parents=True)
            for name, data in self.contents.items():
                (place / self.reader.ARCHIVE.folder / name).write_bytes(data)


@pytest.fixture
def no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYGRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("POLYGRAIN_DATA", str(tmp_path / "local"))
    (tmp_path / "local").mkdir()


@pytest.fixture
def ten(no_source: None, monkeypatch: pytest.MonkeyPatch) -> Upstream:
    return Upstream("cifar-10", cifar_10, small_10(), monkeypatch)


@pytest.fixture
def hundred(no_source: None, monkeypatch: pytest.MonkeyPatch) -> Upstream:
    return Upstream("cifar-100", cifar_100, small_100(), monkeypatch)


@pytest.fixture(params=["cifar-10", "cifar-100"])
def upstream(request: pytest.FixtureRequest) -> Upstream:
    return request.getfixturevalue("ten" if request.param == "cifar-10" else "hundred")


def oracle(upstream: Upstream, root: Path, train: bool) -> Any:
    """torchvision's own reading of the same files."""
    kind = torchvision.datasets.CIFAR10 if upstream.name == "cifar-10" else torchvision.datasets.CIFAR100
    for part in ("train_list", "test_list"):
        pinned = [[name, upstream.reader.ARCHIVE.members[name]] for name, _ in getattr(kind, part)]
        upstream.monkeypatch.setattr(kind, part, pinned)
    pinned_meta = {**kind.meta, "md5": upstream.reader.ARCHIVE.members[kind.meta["filename"]]}
    upstream.monkeypatch.setattr(kind, "meta", pinned_meta)
    return kind(root, train=train)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", [".", "named"])
def test_what_is_read_is_what_torchvision_reads(tmp_path, upstream, place, packed):
    upstream.store(tmp_path / "local" / (upstream.name if place == "named" else "."), packed)
    raw = upstream.reader.read()
    upstream.store(tmp_path / "oracle", packed=False)
    train, test = (oracle(upstream, tmp_path / "oracle", part) for part in (True, False))
    np.testing.assert_array_equal(raw.images.transpose(0, 2, 3, 1), np.concatenate([train.data, test.data]))
    assert raw.images.dtype == np.uint8
    assert raw.labels.tolist() == train.targets + test.targets
    assert raw.test.tolist() == list(range(len(train), len(train) + len(test)))
    assert list(raw.classes) == train.classes
    assert raw.hashes == {name: hashlib.sha256(data).hexdigest() for name, data in upstream.contents.items()}


def test_the_first_plane_is_red_and_rows_run_from_the_top(tmp_path, ten):
    rows = np.zeros((20, 3072), np.uint8)
    rows[:, 1] = 7  # second pixel of the top row, red
    rows[:, 1024 + 32] = 8  # first pixel of the second row, green
    lists = items([integer(k % 10) for k in range(20)])
    ten.contents["data_batch_1"] = mapping({"data": array(rows), "labels": lists})
    ten.pin()
    ten.store(tmp_path / "local")
    image = cifar_10.read().images[0]
    assert np.argwhere(image).tolist() == [[0, 0, 1], [1, 1, 0]]
    assert (image[0, 0, 1], image[1, 1, 0]) == (7, 8)


def test_coarse_labels_are_the_superclasses(tmp_path, hundred):
    hundred.store(tmp_path / "local")
    raw = cifar_100.read()
    assert raw.coarse_of_class == tuple(k * 7 % 20 for k in range(100))
    assert raw.coarse_names == tuple(f"coarse{k}" for k in range(20))


def test_the_packed_bytes_are_the_same_for_every_source_and_build(tmp_path, upstream):
    classes = 10 if upstream.name == "cifar-10" else 100
    config = {"name": upstream.name, "reader": upstream.name, "validation": classes, "test": 0, "seed": 0}
    upstream.store(tmp_path / "local", packed=False)
    prepare(config, tmp_path / "from-folder")
    upstream.store(tmp_path / "local" / upstream.name, packed=True)
    for name in ("from-archive", "again"):
        prepare(config, tmp_path / name)
    for name in ("images.npy", "labels.npy", "splits.npz", "manifest.json"):
        content = (tmp_path / "from-folder" / name).read_bytes()
        assert content == (tmp_path / "from-archive" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    packed = open_packed(tmp_path / "again")
    total = len(packed.labels)
    assert packed.manifest["splits"] == {"train": total - 2 * classes, "validation": classes, "test": classes}
    assert packed.manifest["shape"] == [3, 32, 32]
    assert len(packed.manifest["classes"]) == len(packed.manifest["coarse"]["of_class"]) == classes
    assert packed.manifest["raw"] == {
        name: hashlib.sha256(data).hexdigest() for name, data in upstream.contents.items()
    }
    np.testing.assert_array_equal(packed.images, upstream.reader.read().images)
    assert set(packed.split("test").tolist()) == set(range(total - classes, total))


def refused(upstream: Upstream, match: str) -> str:
    with pytest.raises(UserError, match=match) as caught:
        upstream.reader.read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_a_source_one_line_names_them_all(upstream):
    message = refused(upstream, f"{upstream.name}: no source answered")
    archive = upstream.reader.ARCHIVE
    for words in (
        f"local folder: no {archive.name} and no {archive.folder} in",
        "cache: nothing there yet",
        "its authors' site: http://127.0.0.1:9/archive: <urlopen error",
        f"Set POLYGRAIN_DATA to a folder that holds {archive.name} or {archive.folder}",
    ):
        assert words in message


def test_a_file_with_another_hash_is_refused(tmp_path, upstream):
    name = list(upstream.contents)[-1]
    upstream.store(tmp_path / "local", packed=False)
    path = tmp_path / "local" / upstream.reader.ARCHIVE.folder / name
    path.write_bytes(path.read_bytes()[:-1])
    refused(upstream, rf"local folder: \S+/{name}: not the authors' file \(MD5 differs\); delete it")
    path.unlink()
    refused(upstream, rf"local folder: \S+/{name}: not found")
    upstream.pin(md5="0" * 32)
    upstream.store(tmp_path / "local", packed=True)
    refused(upstream, rf"local folder: \S+/{upstream.reader.ARCHIVE.name}: not the authors' file \(MD5 differs\)")


@pytest.mark.parametrize("damage", [lambda d: d[: len(d) // 2], lambda d: d[:-2000], lambda d: b"<html>log in</html>"])
def test_a_truncated_archive_is_refused(tmp_path, ten, damage):
    broken = damage(ten.tar())
    (tmp_path / "local" / ten.reader.ARCHIVE.name).write_bytes(broken)
    refused(ten, "MD5 differs")
    ten.pin(md5=hashlib.md5(broken).hexdigest())
    refused(ten, r"cifar-10-python.tar.gz: (cannot be read \(|holds no file cifar-10-batches-py/).*delete it")


def test_an_archive_without_a_member_is_refused(tmp_path, ten):
    del ten.contents["data_batch_3"]
    ten.pin(members=dict.fromkeys(small_10()))
    ten.store(tmp_path / "local")
    refused(ten, r"cifar-10-python.tar.gz: holds no file cifar-10-batches-py/data_batch_3; delete it")


def test_an_archive_reaches_no_path_of_its_own(tmp_path, ten):
    """Members outside are never written; a link in the place of a member is not followed."""
    secret = tmp_path / "secret"
    secret.write_bytes(ten.contents.pop("batches.meta"))
    link = tarfile.TarInfo("cifar-10-batches-py/batches.meta")
    link.type, link.linkname = tarfile.SYMTYPE, str(secret)
    climbing = tarfile.TarInfo("cifar-10-batches-py/../../../evil")
    absolute = tarfile.TarInfo(str(tmp_path / "evil"))
    climbing.size = absolute.size = 4
    archive = ten.tar((link, b""), (climbing, b"evil"), (absolute, b"evil"))
    (tmp_path / "local" / ten.reader.ARCHIVE.name).write_bytes(archive)
    ten.pin(members=dict.fromkeys(small_10()), md5=hashlib.md5(archive).hexdigest())
    before = sorted(tmp_path.rglob("*"))
    refused(ten, "holds no file cifar-10-batches-py/batches.meta")
    ten.contents["batches.meta"] = secret.read_bytes()
    archive = ten.tar((climbing, b"evil"), (absolute, b"evil"))
    (tmp_path / "local" / ten.reader.ARCHIVE.name).write_bytes(archive)
    ten.pin(md5=hashlib.md5(archive).hexdigest())
    assert len(cifar_10.read().images) == 110
    assert sorted(tmp_path.rglob("*")) == before


def test_a_hostile_pickle_runs_nothing(tmp_path, upstream):
    name = next(iter(upstream.contents))
    command = string(f"touch {tmp_path}/owned".encode())
    for module, call in ((b"posix", b"system"), (b"__builtin__", b"eval"), (b"numpy", b"load"), (b"os", b"system")):
        upstream.contents[name] = b"\x80\x02c" + module + b"\n" + call + b"\n" + command + b"\x85R."
        upstream.pin()
        upstream.store(tmp_path / "local")
        asked = f"{module.decode()}.{call.decode()}"
        refused(upstream, rf"{name}: a pickle that should hold an array asks for {asked}; refused")
    assert not (tmp_path / "owned").exists()
    protocol_4 = b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + command + b"\x85R."
    with pytest.raises(UserError, match=r"x: a pickle .* asks for posix.system; refused"):
        load_pickle("x", protocol_4)
    assert not (tmp_path / "owned").exists()


def some(count: int = 20, **entries: bytes) -> bytes:
    """A batch in which entries are replaced."""
    whole = {"data": array(np.zeros((count, 3072))), "labels": items([integer(k % 10) for k in range(count)])}
    return mapping({**whole, **entries})


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("data_batch_2", some()[:-200], r"data_batch_2: cannot be read as a pickle \(\w+"),
        ("data_batch_2", b"", r"data_batch_2: cannot be read as a pickle \(EOFError"),
        ("data_batch_2", b"\x80\x02](K\x01e.", "data_batch_2: holds a list where a mapping was expected"),
        ("test_batch", some(data=array(np.zeros((20, 3071)))), "test_batch: 'data' is no array with rows of 3072"),
        ("test_batch", some(data=string(b"x")), "test_batch: 'data' is no array"),
        ("test_batch", some(labels=items([integer(0)] * 19)), "test_batch: 'labels' is no list with a number for each"),
        ("test_batch", some(labels=items([string(b"x")] * 20)), "test_batch: 'labels' is no list"),
        ("test_batch", mapping({"data": array(np.zeros((1, 3072)))}), "test_batch: 'labels' is no list"),
        ("batches.meta", meta(label_names=[str(k) for k in range(9)]), "batches.meta: 'label_names' names 9 classes"),
        ("batches.meta", meta(label_names=["a"] * 10), "where 10 different ones were expected"),
        ("batches.meta", meta(other=["a"]), "batches.meta: 'label_names' names 0 classes"),
    ],
)
def test_what_is_not_the_format_is_refused_by_name(tmp_path, ten, name, content, match):
    ten.contents[name] = content
    ten.pin()
    ten.store(tmp_path / "local")
    refused(ten, match)


def test_labels_that_no_class_has_are_refused(tmp_path, ten):
    ten.contents["data_batch_1"] = some(labels=items([integer(k % 10 + 1) for k in range(20)]))
    ten.pin()
    ten.store(tmp_path / "local")
    config = {"name": "cifar-10", "reader": "cifar-10", "validation": 10, "test": 0, "seed": 0}
    with pytest.raises(UserError, match=r"cifar-10: the \w+ split has label 10 where 0 to 9 was expected"):
        prepare(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", ["two superclasses", "a missing class", "a missing superclass"])
def test_superclasses_must_belong_to_classes(wrong):
    fine = np.tile(np.arange(100), 3)
    coarse = fine % 20
    if wrong == "two superclasses":
        coarse[250] = (coarse[250] + 1) % 20
    elif wrong == "a missing class":
        fine, coarse = fine[fine != 99], coarse[fine != 99]
    else:
        coarse = fine % 19
    with pytest.raises(UserError, match="100 fine labels with one of 20 coarse labels each were expected"):
        cifar_100.superclasses(fine, coarse)


class Site(http.server.BaseHTTPRequestHandler):
    """The authors' site in one of the states that a network offers."""

    body: bytes
    state = "well"

    def do_GET(self) -> None:
        body = b"<html>log in first</html>" if self.state == "portal" else self.body
        self.send_response(404 if self.state == "gone" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.state == "cut" else body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def site(ten: Upstream) -> Iterator[Callable[[str], None]]:
    """Put a loopback site in place of the authors'; returns what sets its state."""
    handler = type("Handler", (Site,), {"body": ten.tar()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def put(state: str) -> None:
            handler.state = state
            ten.pin(url=f"http://127.0.0.1:{server.server_address[1]}/archive")

        yield put
        server.shutdown()


def test_the_authors_site_is_asked_once(tmp_path, ten, site):
    site("well")
    first = cifar_10.read()
    assert (tmp_path / "cache" / "cifar-10" / "cifar-10-python.tar.gz").read_bytes() == ten.tar()
    site("gone")
    np.testing.assert_array_equal(first.images, cifar_10.read().images)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("portal", "cifar-10-python.tar.gz: not the authors' file"),
        ("cut", r"archive: broke off after \d+ of \d+ bytes"),
        ("gone", "archive: HTTP Error 404"),
    ],
)
def test_a_site_that_misleads_is_named_and_leaves_nothing_in_the_cache(tmp_path, ten, site, state, reason):
    site(state)
    refused(ten, f"its authors' site: .*{reason}")
    assert list((tmp_path / "cache" / "cifar-10").iterdir()) == []
    site("well")
    assert len(cifar_10.read().labels) == 110


def test_only_a_wheel_is_asked_of_the_index(tmp_path, monkeypatch):
    """A source release would be built, which runs its code."""
    record = tmp_path / "python"
    record.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/asked\n')
    record.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(record))
    assert download_wheel("thing==1.0", tmp_path) == tmp_path
    asked = (tmp_path / "asked").read_text().splitlines()
    assert {"--no-deps", "--only-binary=:all:", "thing==1.0"} < set(asked)
    assert asked[asked.index("--dest") + 1] == str(tmp_path)


def test_the_pins_are_those_of_torchvision():
    for reader, kind in ((cifar_10, torchvision.datasets.CIFAR10), (cifar_100, torchvision.datasets.CIFAR100)):
        archive = reader.ARCHIVE
        known = (kind.filename, kind.tgz_md5, kind.url, kind.base_folder)
        assert (archive.name, archive.md5, archive.url, archive.folder) == known
        members = dict(kind.train_list + kind.test_list)
        assert archive.members == {**members, kind.meta["filename"]: kind.meta["md5"]}
