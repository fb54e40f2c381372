import dataclasses
import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision

from polygrain.data.packed import open_packed
from polygrain.data.prepare import prepare
from polygrain.data.readers import stl_10
from polygrain.provenance.errors import UserError

COUNTS = {"train": 40, "test": 20, "unlabeled": 15}
CONFIG = {"name": "stl-10", "reader": "stl-10", "validation": 10, "test": 0, "seed": 0}


@pytest.fixture
def contents() -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    files = {f"{part}_X.bin": generator.bytes(count * 27_648) for part, count in COUNTS.items()}
    for part in ("train", "test"):
        files[f"{part}_y.bin"] = bytes(k % 10 + 1 for k in range(COUNTS[part]))
    names = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    files["class_names.txt"] = "".join(f"{name}\n" for name in names).encode()
    return files


@pytest.fixture
def pin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: dict[str, bytes]):
    """Take the present contents for the authors' and put them into the local folder."""
    monkeypatch.setattr(stl_10, "COUNTS", COUNTS)
    monkeypatch.setattr(stl_10, "BLOCK", 7)
    monkeypatch.setenv("POLYGRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("POLYGRAIN_DATA", str(tmp_path / "local"))
    whole = dict.fromkeys(stl_10.ARCHIVE.members)

    def put(packed: bool = False, place: str = ".") -> None:
        known = {name: hashlib.md5(contents[name]).hexdigest() for name in whole if name in contents}
        archive = tar(contents)
        changes: dict[str, Any] = {"members": {**whole, **known}, "md5": hashlib.md5(archive).hexdigest()}
        changed = dataclasses.replace(stl_10.ARCHIVE, url="http://127.0.0.1:9/archive", **changes)
        monkeypatch.setattr(stl_10, "ARCHIVE", changed)
        folder = tmp_path / "local" / place
        folder.mkdir(parents=True, exist_ok=True)
        if packed:
            (folder / "stl10_binary.tar.gz").write_bytes(archive)
            return
        (folder / "stl10_binary").mkdir(exist_ok=True)
        for name, data in contents.items():
            (folder / "stl10_binary" / name).write_bytes(data)

    return put


def tar(contents: dict[str, bytes]) -> bytes:
    """The files in another order than they are decoded in, with one that is not read."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name, data in {**dict(sorted(contents.items(), reverse=True)), "fold_indices.txt": b"0 1\n"}.items():
            entry = tarfile.TarInfo(f"stl10_binary/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def test_what_is_read_is_what_torchvision_reads(tmp_path, contents, pin, monkeypatch):
    pin()
    raw = stl_10.read()
    kind = torchvision.datasets.STL10
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(kind, part, [[name, stl_10.ARCHIVE.members[name]] for name, _ in getattr(kind, part)])
    known = {split: kind(tmp_path / "local", split=split) for split in ("train", "test", "unlabeled")}
    np.testing.assert_array_equal(raw.images, np.concatenate([part.data for part in known.values()]))
    assert raw.labels.tolist() == np.concatenate([part.labels for part in known.values()]).tolist()
    assert raw.labels[:3].tolist() == [0, 1, 2]
    assert raw.labels[raw.unlabelled].tolist() == [-1] * 15
    assert (raw.test.tolist(), raw.unlabelled.tolist()) == (list(range(40, 60)), list(range(60, 75)))
    assert list(raw.classes) == known["train"].classes
    assert raw.hashes == {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}


def test_columns_follow_each_other_and_the_first_plane_is_red(contents, pin):
    image = bytearray(27_648)
    image[1] = 7  # second byte: one down, in the leftmost column, red
    image[9216 + 3 * 96] = 8  # the top of the fourth column, green
    contents["test_X.bin"] = bytes(image) + contents["test_X.bin"][27_648:]
    pin()
    first = stl_10.read().images[40]
    assert np.argwhere(first).tolist() == [[0, 1, 0], [1, 0, 3]]
    assert (first[0, 1, 0], first[1, 0, 3]) == (7, 8)


def test_the_unlabelled_images_are_a_split_of_their_own(tmp_path, contents, pin):
    pin()
    prepare(CONFIG, tmp_path / "packed")
    packed = open_packed(tmp_path / "packed")
    assert packed.manifest["splits"] == {"train": 30, "validation": 10, "test": 20, "unlabelled": 15}
    assert sorted(packed.split("unlabelled").tolist()) == list(range(60, 75))
    assert packed.labels[packed.split("unlabelled")].tolist() == [-1] * 15
    train = packed.images[packed.split("train")].astype(np.float64) / 255
    np.testing.assert_allclose(packed.mean, train.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(packed.std, train.std(axis=(0, 2, 3)), rtol=1e-10)
    assert packed.manifest["raw"] == {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    assert packed.manifest["classes"] == list(stl_10.CLASSES)


@pytest.mark.parametrize("place", [".", "stl-10"])
def test_the_packed_bytes_are_the_same_for_archive_and_folder(tmp_path, pin, place):
    pin()
    prepare(CONFIG, tmp_path / "from-folder")
    pin(packed=True, place=place)
    prepare(CONFIG, tmp_path / "from-archive")
    for name in ("images.npy", "labels.npy", "splits.npz", "manifest.json"):
        assert (tmp_path / "from-folder" / name).read_bytes() == (tmp_path / "from-archive" / name).read_bytes()


def refused(match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        stl_10.read()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("train_X.bin", lambda d: d[:-1], "train_X.bin: ends after 39 of 40 images; delete the file"),
        ("unlabeled_X.bin", lambda d: d[: 2 * 27_648], "unlabeled_X.bin: ends after 2 of 15 images"),
        ("unlabeled_X.bin", lambda d: d + b"\0", "unlabeled_X.bin: holds more than 15 images"),
        ("test_y.bin", lambda d: d[:-1], "test_y.bin: 20 labels from 1 to 10 were expected, the file holds 19 from 1"),
        ("test_y.bin", lambda d: b"", r"test_y.bin: .* the file holds 0"),
        ("train_y.bin", lambda d: b"\0" + d[1:], "train_y.bin: .*the file holds 40 from 0 to 10"),
        ("train_y.bin", lambda d: b"\x0b" + d[1:], "train_y.bin: .*the file holds 40 from 1 to 11"),
        ("class_names.txt", lambda d: d[:-6], "class_names.txt: names 9 classes, not the 10 of STL-10 in order"),
        ("class_names.txt", lambda d: d.replace(b"cat\ndeer", b"deer\ncat"), "class_names.txt: names 10 classes, not"),
        ("class_names.txt", lambda d: b"\xff" + d, "class_names.txt: names 10 classes, not"),
    ],
)
def test_what_is_not_the_format_is_refused_by_name(contents, pin, name, change, match, packed):
    contents[name] = change(contents[name])
    pin(packed)
    refused(match)


@pytest.mark.parametrize("name", ["unlabeled_X.bin", "class_names.txt"])
def test_a_missing_file_is_refused_by_name(tmp_path, contents, pin, name):
    del contents[name]
    pin()
    refused(rf"stl-10: no source answered.*local folder: \S+/stl10_binary/{name}: not found")
    pin(packed=True)
    refused(rf"stl10_binary.tar.gz: holds no file stl10_binary/{name}; delete it")


def test_a_file_with_another_hash_is_refused(tmp_path, pin):
    pin()
    path = tmp_path / "local" / "stl10_binary" / "test_X.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    refused(r"local folder: \S+/test_X.bin: not the authors' file \(MD5 differs\).*its authors' site: ")


def test_an_archive_that_breaks_off_is_refused(tmp_path, pin, monkeypatch):
    pin(packed=True)
    path = tmp_path / "local" / "stl10_binary.tar.gz"
    path.write_bytes(path.read_bytes()[:1_000_000])
    refused(r"stl10_binary.tar.gz: not the authors' file")
    pinned = dataclasses.replace(stl_10.ARCHIVE, md5=hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setattr(stl_10, "ARCHIVE", pinned)
    refused(r"unlabeled_X.bin: ends after|stl10_binary.tar.gz: cannot be read \(")


def test_the_pins_are_those_of_torchvision():
    kind, archive = torchvision.datasets.STL10, stl_10.ARCHIVE
    known = (kind.filename, kind.tgz_md5, kind.url, kind.base_folder)
    assert (archive.name, archive.md5, archive.url, archive.folder) == known
    assert archive.members == {**dict(kind.train_list + kind.test_list), kind.class_names_file: None}
