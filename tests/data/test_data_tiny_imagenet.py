import dataclasses
import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polygrain.data.packed import open_packed
from polygrain.data.prepare import prepare
from polygrain.data.readers import tiny_imagenet
from polygrain.provenance.errors import UserError

WNIDS = ("n09", "n03", "n07")  # not in the order of their names
CONFIG = {"name": "tiny-imagenet", "reader": "tiny-imagenet", "validation": 3, "test": 0, "seed": 0}


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def picture(generator: np.random.Generator) -> bytes:
    """Smooth noise in three channels."""
    coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3)).astype(np.uint8))
    return jpeg(np.asarray(coarse.resize((64, 64), Image.Resampling.BILINEAR)))


@pytest.fixture
def contents() -> dict[str, bytes]:
    """The layout of the authors' zip: six training, two validation images a class, one test image."""
    generator = np.random.default_rng(0)
    files = {f"train/{wnid}/images/{wnid}_{k}.JPEG": picture(generator) for wnid in WNIDS for k in range(6)}
    files |= {f"train/{wnid}/{wnid}_boxes.txt": b"a list that is not read" for wnid in WNIDS}
    lines = []
    for k, wnid in enumerate([*WNIDS, *reversed(WNIDS)]):
        files[f"val/images/val_{k}.JPEG"] = picture(generator)
        lines.append(f"val_{k}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    files["train/n03/images/n03_2.JPEG"] = jpeg(np.arange(0, 256, 4, dtype=np.uint8)[None].repeat(64, axis=0))
    files["val/val_annotations.txt"] = "".join(lines).encode()
    files["wnids.txt"] = "".join(f"{wnid}\n" for wnid in WNIDS).encode()
    files["words.txt"] = (
        b"n01\tentity\nn03\tgoldfish, Carassius auratus\nn07\tbullfrog\nn09\tAmerican black bear, bear\n"
    )
    files["test/images/test_0.JPEG"] = b"never read"
    return files


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: dict[str, bytes]):
    """Put the present contents into the local folder, as the zip (whose hash is pinned) or the folder."""
    monkeypatch.setattr(tiny_imagenet, "CLASSES", 3)
    monkeypatch.setattr(tiny_imagenet, "PER_CLASS", {"train": 6, "val": 2})
    monkeypatch.setattr(
        tiny_imagenet, "ARCHIVE", dataclasses.replace(tiny_imagenet.ARCHIVE, url="http://127.0.0.1:9/zip")
    )
    monkeypatch.setenv("POLYGRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("POLYGRAIN_DATA", str(tmp_path / "local"))
    (tmp_path / "local").mkdir()

    def placed(packed: bool = True) -> Path:
        root = tmp_path / "local"
        if not packed:
            for name, data in contents.items():
                path = root / "tiny-imagenet-200" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            return root / "tiny-imagenet-200"
        path = root / "tiny-imagenet-200.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.mkdir("tiny-imagenet-200")
            for name, data in reversed(contents.items()):
                archive.writestr(f"tiny-imagenet-200/{name}", data)
        pin(monkeypatch, path)
        return path

    return placed


def pin(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(tiny_imagenet, "ARCHIVE", dataclasses.replace(tiny_imagenet.ARCHIVE, md5=md5))


@pytest.mark.parametrize("packed", [True, False])
def test_images_labels_and_names_are_those_of_the_files(contents, put, packed):
    put(packed)
    raw = tiny_imagenet.read()
    assert raw.images.shape == (24, 3, 64, 64)
    assert raw.images.dtype == np.uint8
    assert raw.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6 + [0, 1, 2, 2, 1, 0]
    assert raw.test.tolist() == list(range(18, 24))
    assert raw.classes == ("American black bear", "goldfish", "bullfrog")
    order = [f"train/{wnid}/images/{wnid}_{k}.JPEG" for wnid in WNIDS for k in range(6)]
    order += [f"val/images/val_{k}.JPEG" for k in range(6)]
    for image, name in zip(raw.images, order, strict=True):
        with Image.open(io.BytesIO(contents[name])) as known:
            np.testing.assert_array_equal(Image.fromarray(image.transpose(1, 2, 0)), known.convert("RGB"))


def test_grey_files_are_decoded_to_three_equal_channels(put):
    put()
    image = tiny_imagenet.read().images[6 + 2]
    assert (image == image[:1]).all()
    assert np.abs(image[0].astype(int) - np.arange(0, 256, 4)).max() <= 3


def test_an_asymmetric_picture_keeps_its_corner_and_its_colours(contents, put):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:16, 32:] = (250, 120, 10)
    contents["val/images/val_1.JPEG"] = jpeg(pixels)
    put()
    image = tiny_imagenet.read().images[18 + 1]
    assert np.abs(image[:, 4, 50].astype(int) - (250, 120, 10)).max() < 12
    assert image[:, 4, 10].max() < 12
    assert image[:, 50, 50].max() < 12


def test_the_packed_bytes_are_the_same_for_zip_and_folder(tmp_path, contents, put):
    put(packed=False)
    prepare(CONFIG, tmp_path / "from-folder")
    put(packed=True)
    prepare(CONFIG, tmp_path / "from-zip")
    for name in ("images.npy", "labels.npy", "splits.npz", "manifest.json"):
        assert (tmp_path / "from-folder" / name).read_bytes() == (tmp_path / "from-zip" / name).read_bytes()
    packed = open_packed(tmp_path / "from-zip")
    assert packed.manifest["splits"] == {"train": 15, "validation": 3, "test": 6}
    assert packed.manifest["coarse"] == {"names": ["all"], "of_class": [0, 0, 0]}
    lines = "".join(
        f"val/images/val_{k}.JPEG {hashlib.sha256(contents[f'val/images/val_{k}.JPEG']).hexdigest()}\n"
        for k in range(6)
    )
    assert packed.manifest["raw"]["val"] == hashlib.sha256(lines.encode()).hexdigest()
    assert packed.manifest["raw"]["words.txt"] == hashlib.sha256(contents["words.txt"]).hexdigest()
    assert sorted(packed.manifest["raw"]) == ["train", "val", "val/val_annotations.txt", "wnids.txt", "words.txt"]


def refused(match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        tiny_imagenet.read()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("train/n07/images/n07_4.JPEG", lambda d: d[: len(d) // 2], r"n07_4.JPEG: no JPEG, or damaged \(.*truncated"),
        ("train/n07/images/n07_4.JPEG", lambda d: b"", r"n07_4.JPEG: no JPEG, or damaged \(cannot identify"),
        (
            "val/images/val_3.JPEG",
            lambda d: jpeg(np.zeros((64, 63, 3), np.uint8)),
            "val_3.JPEG: 63 x 64 px where 64 x 64",
        ),
        ("train/n07/images/n07_4.JPEG", None, "tiny-imagenet-200/train: 5 images of class n07 where 6 were expected"),
        (
            "val/images/val_3.JPEG",
            None,
            "val_annotations.txt: image 'val_3.JPEG' is missing or its class 'n07' unknown",
        ),
        ("wnids.txt", lambda d: b"n09\nn03\n", "wnids.txt: 2 classes in 2 lines where 3 were expected"),
        ("wnids.txt", lambda d: b"n09\nn03\nn03\n", "wnids.txt: 2 classes in 3 lines where 3 were expected"),
        ("wnids.txt", lambda d: b"n09\nn03\nn08\n", "train: 0 images of class n08 where 6|class 'n07' unknown"),
        (
            "val/val_annotations.txt",
            lambda d: d.replace(b"val_3.JPEG\tn07", b"val_3.JPEG\tn01"),
            "image 'val_3.JPEG' is missing or its class 'n01' unknown",
        ),
        (
            "val/val_annotations.txt",
            lambda d: d.replace(b"val_3.JPEG", b"../../../outside.JPEG"),
            r"image '../../../outside.JPEG' is missing",
        ),
        ("val/val_annotations.txt", lambda d: d[: d.rindex(b"val_5")], "tiny-imagenet-200/val: 1 images of class n09"),
        ("val/val_annotations.txt", lambda d: d + d, "tiny-imagenet-200/val: 4 images of class n09 where 2"),
    ],
)
def test_what_is_not_the_layout_is_refused_by_name(tmp_path, contents, put, name, change, match, packed):
    (tmp_path / "local" / "outside.JPEG").write_bytes(contents[name] if change else b"")
    if change:
        contents[name] = change(contents[name])
    else:
        del contents[name]
    put(packed)
    refused(match)


@pytest.mark.parametrize("name", tiny_imagenet.LISTS)
def test_a_missing_list_is_refused_by_name(contents, put, name):
    del contents[name]
    put(packed=False)
    refused(rf"tiny-imagenet: no source answered.*local folder: \S+/tiny-imagenet-200/{name}: not found")
    put(packed=True)
    refused(rf"tiny-imagenet-200.zip: holds no file {name}; delete it")


def test_a_zip_with_another_hash_or_broken_inside_is_refused(put, monkeypatch):
    path = put()
    whole = path.read_bytes()
    start = whole.index(b"\xff\xd8")
    for damaged in (whole[: len(whole) // 2], whole[: start + 300] + b"\0\0\0" + whole[start + 303 :]):
        path.write_bytes(damaged)
        refused(r"local folder: \S+/tiny-imagenet-200.zip: not the authors' file \(MD5 differs\); delete it")
        pin(monkeypatch, path)
        refused(r"tiny-imagenet-200.zip: cannot be read \(")
        path.write_bytes(whole)
        pin(monkeypatch, path)


def test_a_zip_reaches_no_path_of_its_own(tmp_path, put, monkeypatch):
    path = put()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("tiny-imagenet-200/../../evil", b"evil")
        archive.writestr(f"{tmp_path}/evil", b"evil")
    pin(monkeypatch, path)
    before = sorted(tmp_path.rglob("*"))
    assert len(tiny_imagenet.read().labels) == 24
    assert sorted(tmp_path.rglob("*")) == before


def test_without_a_source_one_line_names_them_all(put):
    refused(
        r"tiny-imagenet: no source answered. Tried local folder: no tiny-imagenet-200.zip and no tiny-imagenet-200 in"
        r" .*; cache: nothing there yet; its authors' site: http://127.0.0.1:9/zip: .*Set POLYGRAIN_DATA to a folder"
    )
