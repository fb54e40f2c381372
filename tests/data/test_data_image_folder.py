import io
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from zoo import CONFIG, read

from polygrain.data import shards
from polygrain.data.encoded import open_encoded
from polygrain.data.readers import image_folder, imagenette
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import sha256_file

PARAMS = Path(__file__).resolve().parents[2] / "params"


def put(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, "PNG" if path.suffix.lower() == ".png" else "JPEG")
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `zoo` under POLYGRAIN_DATA: two classes, two images each to train on, one to test."""
    monkeypatch.setenv("POLYGRAIN_DATA", str(tmp_path))
    monkeypatch.setenv("POLYGRAIN_CACHE", str(tmp_path / "cache"))
    for name in ("emu", "cat"):
        for part, images in (("train", ("b.jpg", "a.PNG")), ("val", ("c.jpeg",))):
            for image in images:
                put(tmp_path / "zoo" / part / name / image)
    return tmp_path / "zoo"


def test_files_come_by_part_class_and_name(root: Path) -> None:
    raw = read()
    assert raw.root == root
    assert list(raw.names) == [
        "train/cat/a.PNG", "train/cat/b.jpg", "train/emu/a.PNG", "train/emu/b.jpg", "val/cat/c.jpeg", "val/emu/c.jpeg",
    ]  # fmt: skip
    assert raw.labels.tolist() == [0, 0, 1, 1, 0, 1]
    assert raw.labels.dtype == np.int64
    assert raw.test is not None
    assert raw.test.tolist() == [4, 5]
    assert raw.unlabelled is None
    assert raw.classes == ("cat", "emu")
    assert (raw.licence, raw.source) == ("CC0", "drawn by hand")
    assert len(raw.images) == 6


def test_what_is_no_image_by_name_or_hidden_is_left_out(root: Path) -> None:
    for name in ("train/cat/notes.txt", "train/cat/.b.jpg", "train/.cache/x.jpg", "train/README.md", "noisy.csv"):
        put(root / name)
    assert len(read().names) == 6


def test_deeper_folders_and_links_are_followed(root: Path, tmp_path: Path) -> None:
    put(root / "train" / "cat" / "more" / "z.jpg")
    (root / "train" / "emu").rename(tmp_path / "elsewhere")
    (root / "train" / "emu").symlink_to(tmp_path / "elsewhere")
    names = read().names
    assert "train/cat/more/z.jpg" in names
    assert "train/emu/a.PNG" in names


def test_the_test_part_may_be_called_test_or_be_missing(root: Path) -> None:
    (root / "val").rename(root / "test")
    raw = read()
    assert raw.names[4] == "test/cat/c.jpeg"
    assert raw.test is not None
    put(root / "val" / "1.jpg")
    assert read().names[4] == "test/cat/c.jpeg"  # the one whose images are sorted by class
    for part in ("val", "test"):
        (root / part).rename(root.parent / part)
    assert read().test is None
    assert len(read().names) == 4


def test_unlabelled_images_need_no_classes(root: Path) -> None:
    put(root / "unlabelled" / "deep" / "q.jpg")
    put(root / "unlabelled" / "p.jpg")
    raw = read()
    assert list(raw.names[6:]) == ["unlabelled/deep/q.jpg", "unlabelled/p.jpg"]
    assert raw.unlabelled is not None
    assert raw.unlabelled.tolist() == [6, 7]
    assert raw.labels[6:].tolist() == [-1, -1]


def test_a_class_list_chooses_and_orders(root: Path) -> None:
    for name in ("train/yak/a.jpg", "val/yak/a.jpg", "val/ox/a.jpg"):
        put(root / name)
    raw = read(classes=["yak", "cat"])
    assert raw.classes == ("yak", "cat")
    assert list(raw.names) == [
        "train/yak/a.jpg", "train/cat/a.PNG", "train/cat/b.jpg", "val/yak/a.jpg", "val/cat/c.jpeg",
    ]  # fmt: skip
    assert raw.labels.tolist() == [0, 1, 1, 0, 1]


def test_faults_of_the_folder_are_named(root: Path) -> None:
    with pytest.raises(UserError, match=r"zoo/train/yak: no images of class 'yak'; every class needs its folder in tr"):
        read(classes=["cat", "yak"])
    put(root / "val" / "ox" / "a.jpg")
    with pytest.raises(UserError, match=r"zoo/val/ox: a class that train/ lacks; add or remove it"):
        read()
    (root / "train" / "empty").mkdir()
    with pytest.raises(UserError, match=r"zoo/train/empty: no images of class 'empty'"):
        read()


def test_a_test_part_that_is_not_sorted_by_class_is_named(root: Path) -> None:
    for image in (root / "val").rglob("*.jpeg"):
        image.rename(root / "val" / f"{image.parent.name}.jpeg")
    with pytest.raises(UserError, match=r"zoo/val/cat: no images of class 'cat'; every class needs its folder in val/"):
        read()


@pytest.mark.parametrize(("what", "count"), [("classes", 3), ("train", 5), ("test", 1)])
def test_an_incomplete_copy_is_refused(root: Path, what: str, count: int) -> None:
    whole = {"classes": 2, "train": 4, "test": 2}
    read(expected=whole)
    read(expected={**whole, what: None})
    put(root / "unlabelled" / "p.jpg")
    read(expected=whole)
    with pytest.raises(UserError, match=rf"zoo: {whole[what]} {what} where zoo has {count}; complete the copy"):
        read(expected={**whole, what: count})


def test_missing_keys_are_named(root: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if key not in ("classes", "licence")}
    with pytest.raises(UserError, match=r"dataset/zoo\.yaml: reader image-folder needs the keys classes, licence too"):
        image_folder.read(config)


def test_no_folder_says_where_to_put_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^aviary: no source answered.*no folder train in \S*aviary.*Put the images"):
        read(folder="aviary")
    monkeypatch.delenv("POLYGRAIN_DATA")
    with pytest.raises(UserError, match="POLYGRAIN_DATA is not set"):
        read()
    monkeypatch.setenv("POLYGRAIN_DATA", str(root))
    assert len(read(folder="aviary").names) == 6  # the variable may also name the folder itself


# --- Imagenette


def make_imagenette(folder: Path, per_class: int = 2, tests: int = 1) -> Path:
    for part, count in (("train", per_class), ("val", tests)):
        for label, name in enumerate(imagenette.WORDNET):
            for number in range(count):
                put(folder / part / name / f"{part}_{number}.JPEG", seed=10 * label + number)
    (folder / "noisy_imagenette.csv").write_text("path,noisy_labels_0\n")
    return folder


def archive(folder: Path, target: Path) -> Path:
    with tarfile.open(target, "w:gz") as packed:
        packed.add(folder, folder.name)
    return target


@pytest.fixture
def nette(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small edition 160 as the authors would give it: the archive on their site, nothing local."""
    made = make_imagenette(tmp_path / "made" / "imagenette2-160")
    (tmp_path / "site").mkdir()
    packed = archive(made, tmp_path / "site" / "imagenette2-160.tgz")
    monkeypatch.setattr(imagenette, "COUNTS", {"train": 20, "val": 10})
    monkeypatch.setattr(imagenette, "ARCHIVES", {"imagenette2-160": imagenette.md5_file(packed)})
    monkeypatch.setattr(imagenette, "SITE", (tmp_path / "site").as_uri() + "/")
    monkeypatch.setenv("POLYGRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("POLYGRAIN_DATA", raising=False)
    return tmp_path


NETTE = {**CONFIG, "name": "imagenette", "reader": "imagenette", "folder": "imagenette2-160", "validation": 10}


def test_the_archive_the_cache_and_a_local_folder_give_the_same_bytes(nette: Path, monkeypatch: Any) -> None:
    shards.prepare(NETTE, nette / "fetched")
    monkeypatch.setattr(imagenette, "SITE", "file:///nowhere/")
    shards.prepare(NETTE, nette / "cached")
    monkeypatch.setenv("POLYGRAIN_CACHE", str(nette / "empty"))
    monkeypatch.setenv("POLYGRAIN_DATA", str(nette / "made"))
    shards.prepare(NETTE, nette / "local")
    assert not (nette / "empty").exists()
    monkeypatch.setenv("POLYGRAIN_DATA", str(nette / "site"))
    shards.prepare(NETTE, nette / "packed")
    data = open_encoded(nette / "fetched", verify=True)
    assert data.manifest["splits"] == {"train": 10, "validation": 10, "test": 10}
    assert data.manifest["classes"][:2] == ["tench", "English springer"]
    assert data.labels[:20].tolist() == sorted(list(range(10)) * 2)
    files = [path.relative_to(data.root) for path in data.root.rglob("*") if path.is_file()]
    assert len(files) == 5
    for other in ("cached", "local", "packed"):
        for file in files:
            assert sha256_file(nette / other / file) == sha256_file(data.root / file), (other, file)


def test_only_the_authors_archive_is_unpacked(nette: Path) -> None:
    (nette / "site" / "imagenette2-160.tgz").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"no source answered.*its authors' site: .*not the authors' file"):
        imagenette.read(NETTE)
    assert not (nette / "cache" / "imagenette" / "imagenette2-160").exists()


def test_an_incomplete_local_folder_is_passed_over(nette: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYGRAIN_DATA", str(nette / "made"))
    next((nette / "made" / "imagenette2-160" / "val").rglob("*.JPEG")).unlink()
    assert imagenette.read(NETTE).root == nette / "cache" / "imagenette" / "imagenette2-160"
    monkeypatch.setattr(imagenette, "SITE", "file:///nowhere/")
    monkeypatch.setenv("POLYGRAIN_CACHE", str(nette / "empty"))
    with pytest.raises(UserError, match=r"val: 9 images where 10 are expected; delete the folder.*Set POLYGRAIN_DATA"):
        imagenette.read(NETTE)


def test_an_archive_that_reaches_outside_is_refused(nette: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(nette / "site" / "imagenette2-160.tgz", "w:gz") as packed:
        member = tarfile.TarInfo("../../escaped.txt")
        member.size = 4
        packed.addfile(member, io.BytesIO(b"gone"))
    md5 = imagenette.md5_file(nette / "site" / "imagenette2-160.tgz")
    monkeypatch.setattr(imagenette, "ARCHIVES", {"imagenette2-160": md5})
    with pytest.raises(
        UserError, match=r"imagenette2-160\.tgz: cannot be unpacked into .*; make room, or delete it if"
    ):
        imagenette.read(NETTE)
    assert not list(nette.rglob("escaped.txt"))


def test_an_unknown_edition_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"imagenette: no edition 'imagenette2-16'; did you mean 'imagenette2-160'"):
        imagenette.read({**NETTE, "folder": "imagenette2-16"})


def test_the_pinned_archives_are_torchvisions() -> None:
    from torchvision.datasets import Imagenette

    theirs = {Path(url).stem: (url, md5) for url, md5 in Imagenette._ARCHIVES.values()}
    assert {name: md5 for name, (_, md5) in theirs.items()} == imagenette.ARCHIVES
    assert all(url == f"{imagenette.SITE}{name}.tgz" for name, (url, _) in theirs.items())
    assert dict(zip(imagenette.WORDNET, imagenette.CLASSES, strict=True)) == {
        name: classes[0] for name, classes in Imagenette._WNID_TO_CLASS.items()
    }


# --- the YAMLs


def test_imagenet_100_lists_the_hundred_classes_of_cmc() -> None:
    from timm.data import ImageNetInfo

    config = yaml.safe_load((PARAMS / "dataset" / "imagenet-100.yaml").read_text())
    assert len(set(config["classes"])) == len(config["classes"]) == config["expected"]["classes"] == 100
    assert all(re.fullmatch(r"n\d{8}", name) for name in config["classes"])
    info = ImageNetInfo()
    known = set(info.label_names())
    assert set(config["classes"]) <= known
    first = [info.label_name_to_description(name) for name in config["classes"][:4]]
    assert [name.split(",")[0] for name in first] == ["bonnet", "green mamba", "langur", "Doberman"]


@pytest.mark.parametrize("name", ["imagenet-1k", "imagenet-100", "imagenette"])
def test_the_yamls_give_what_the_readers_read(name: str) -> None:
    config = yaml.safe_load((PARAMS / "dataset" / f"{name}.yaml").read_text())
    assert config["name"] == name
    assert config["format"] == "encoded"
    keys = {"folder", "statistics"}
    keys |= {"classes", "expected", "licence", "source", "duplicates"} if config["reader"] == "image-folder" else set()
    keys |= {"defaults", "cost", "side", "local_side"}  # for the configuration, not for the reader
    assert set(config) == keys | {"name", "reader", "format", "validation", "test", "seed"}
