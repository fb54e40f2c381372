"""Image folders as people have them: stray files, links, bad files, copies, parts of other names."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from zoo import CONFIG, read

from polygrain.config.models import DatasetChoice
from polygrain.data import shards
from polygrain.data.encoded import open_encoded
from polygrain.provenance.errors import UserError


def put(path: Path) -> Path:
    """An image whose pixels follow from its path, so that no two are alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(list(os.fsencode(path))).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, "JPEG")
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `zoo` under POLYGRAIN_DATA: two classes, four images each to train on, one to test."""
    monkeypatch.setenv("POLYGRAIN_DATA", str(tmp_path))
    monkeypatch.setenv("POLYGRAIN_CACHE", str(tmp_path / "cache"))
    for name in ("emu", "cat"):
        for image in "abcd":
            put(tmp_path / "zoo" / "train" / name / f"{image}.jpg")
        put(tmp_path / "zoo" / "val" / name / "e.jpg")
    return tmp_path / "zoo"


def pack(out: Path, **changes: Any) -> dict[str, Any]:
    """The manifest of the packed folder."""
    shards.prepare({**CONFIG, **changes}, out)
    manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    return manifest


# --- what is taken and what is left


def test_hidden_files_and_folders_are_left_and_counted(root: Path) -> None:
    for name in ("cat/.ipynb_checkpoints/a.jpg", "cat/@eaDir/a.jpg", "emu/.a.jpg", "emu/@b.jpg", ".cache/x.jpg"):
        put(root / "train" / name)
    put(root / ".thumbs" / "x.jpg")
    raw = read()
    assert len(raw.names) == 10
    assert raw.classes == ("cat", "emu")
    assert raw.left == {("hidden", "folders"): 4, ("hidden", ".jpg"): 2}


def test_every_name_of_a_jpeg_is_read_and_unknown_ones_are_shown(root: Path, tmp_path: Path, capsys: Any) -> None:
    for name in ("x.jfif", "y.JPE", "z.HEIC", "w.heic", "README"):
        put(root / "train" / "cat" / name)
    put(root / "train" / "stray.jpg")
    put(root / "raw" / "q.jpg")
    os.mkfifo(root / "train" / "emu" / "pipe.jpg")  # to open it would wait for ever
    (root / "train" / "emu" / "gone.jpg").symlink_to("nowhere.jpg")
    (root / "train" / "emu" / "self.jpg").symlink_to("self.jpg")
    pack(tmp_path / "packed")
    assert capsys.readouterr().out.splitlines() == [
        "zoo: took 12 images: 1 .jfif, 1 .jpe, 10 .jpg",
        "zoo: left, in no class: 1 .jpg",
        "zoo: left, in no part: 1 folders",
        "zoo: left, no regular file: 3 .jpg",
        "zoo: left, not an image by its name: 1 (none), 2 .heic",
    ]


@pytest.mark.parametrize(("link", "target"), [("train/cat/up", ".."), ("train/yak", "."), ("train/cat/x/y", "../.."),
                                              ("train/cat/me", "../cat"), ("train/cat/all", "../.."),
                                              ("train/cat/out", "../../..")])  # fmt: skip
def test_a_link_to_a_folder_above_is_refused(root: Path, link: str, target: str) -> None:
    (root / link).parent.mkdir(exist_ok=True)
    (root / link).symlink_to(target)
    with pytest.raises(UserError, match=rf"zoo/{link}: a link to \S+, a folder above it; remove the link$"):
        read()


def test_a_circle_by_way_of_another_place_is_refused(root: Path, tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "z.jpg")
    (root / "train" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    assert "train/cat/more/z.jpg" in read().names
    (tmp_path / "elsewhere" / "back").symlink_to(root / "train" / "cat")
    with pytest.raises(UserError, match=r"zoo/train/cat/more/back: a link to \S+zoo/train/cat, a folder above it"):
        read()


def test_a_class_whose_name_is_no_utf_8_is_refused(root: Path) -> None:
    os.rename(os.fsencode(root / "train" / "cat"), os.fsencode(root / "train") + b"/\xc3\xa9t\xe9")
    with pytest.raises(UserError, match=r"zoo/train/ét\\xe9: the folder's name is not UTF-8; rename it$"):
        read()


def test_a_file_whose_name_is_no_utf_8_is_packed_and_named_when_bad(root: Path, tmp_path: Path) -> None:
    odd = os.fsencode(root / "train" / "cat") + b"/\xe9.jpg"
    os.rename(root / "train" / "cat" / "a.jpg", odd)
    assert pack(tmp_path / "packed")["splits"]["train"] == 6
    Path(os.fsdecode(odd)).write_bytes(b"no")
    with pytest.raises(UserError, match=r"train/cat/\\xe9\.jpg: not a whole image"):
        pack(tmp_path / "packed")


# --- parts


def test_two_labelled_parts_need_a_word(root: Path) -> None:
    for name in ("emu", "cat"):
        put(root / "test" / name / "f.jpg")
    with pytest.raises(UserError, match=r"images by class in test, val; say in params/dataset/zoo\.yaml which folder"):
        read()
    assert read(parts={"test": "test"}).names[8:] == ["test/cat/f.jpg", "test/emu/f.jpg"]
    assert read(parts={"test": "val"}).names[8:] == ["val/cat/e.jpg", "val/emu/e.jpg"]
    assert read(parts={"test": None}).test is None
    assert read(parts={"test": "val"}).left == {("in no part", "folders"): 1}


def test_a_test_part_of_another_name_is_advised_and_read(root: Path) -> None:
    (root / "val").rename(root / "valid")
    with pytest.raises(UserError, match=r"images by class in valid; say in .* as in `parts: \{test: valid\}`, or"):
        read()
    assert read(parts={"test": "valid"}).names[8:] == ["valid/cat/e.jpg", "valid/emu/e.jpg"]


def test_any_folder_can_be_train_or_unlabelled(root: Path) -> None:
    (root / "train").rename(root / "Training")
    put(root / "pile" / "p.jpg")
    raw = read(parts={"train": "Training", "unlabelled": "pile"})
    assert raw.names[0] == "Training/cat/a.jpg"
    assert raw.unlabelled is not None
    assert raw.names[raw.unlabelled[0]] == "pile/p.jpg"
    with pytest.raises(UserError, match=r"zoo/tset: not found, but parts\.test in params/dataset/zoo\.yaml names it"):
        read(parts={"train": "Training", "test": "tset"})


# --- bad files


def spoil(root: Path) -> list[Path]:
    bad = [root / "train" / "cat" / "bad.jpg", root / "train" / "emu" / "c.jpg", root / "val" / "cat" / "z.png"]
    whole = bad[1].read_bytes()
    bad[1].rename(root / "train" / "emu" / "moved.jpg")
    for path, content in zip(bad, (b"no", whole[: len(whole) // 2], b""), strict=True):
        path.write_bytes(content)
    return bad


def test_all_bad_files_are_named_at_once(root: Path, tmp_path: Path) -> None:
    bad = spoil(root)
    with pytest.raises(UserError) as caught:
        pack(tmp_path / "packed")
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [str(path) for path in bad]
    assert all(line.endswith("or set on_bad: skip in params/dataset/zoo.yaml") for line in lines)
    assert list((tmp_path / "packed").iterdir()) == []


@pytest.mark.parametrize("shard", [10, 1500, 1 << 20])
def test_to_skip_bad_files_is_to_pack_without_them(
    root: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, shard: int
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", shard)
    bad = spoil(root)
    put(root / "unlabelled" / "u.jpg")
    manifest = pack(tmp_path / "skipped", on_bad="skip")
    assert manifest.pop("skipped") == {".jpg": 2, ".png": 1}
    said = capsys.readouterr().out
    assert "zoo: left, bad: 2 .jpg, 1 .png\n" in said
    assert all(f"zoo: {path}: not a whole image" in said for path in bad)
    for path in bad:
        path.unlink()
    without = pack(tmp_path / "without")
    assert without.pop("skipped") == {}
    assert manifest == without
    data = open_encoded(tmp_path / "skipped", verify=True)
    assert all(data.decode(position).shape == (3, 9, 12) for position in range(len(data.labels)))


def test_a_class_of_which_every_file_is_bad_is_named(root: Path, tmp_path: Path) -> None:
    for path in (root / "val" / "cat").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="the test split has no image of class 'cat'"):
        pack(tmp_path / "packed", on_bad="skip")


def test_limits_are_those_of_the_data_set(root: Path, tmp_path: Path) -> None:
    pack(tmp_path / "packed", limits={"pixels": 108})
    with pytest.raises(
        UserError, match=r"cat/a\.jpg: 12 x 9 pixels, where limits\.pixels of params/dataset/zoo\.yaml a"
    ):
        pack(tmp_path / "packed", limits={"pixels": 107})


# --- copies


def test_copies_within_a_split_are_counted_and_named(root: Path, tmp_path: Path, capsys: Any) -> None:
    for name in ("f.jpg", "g.jpg"):
        (root / "val" / "emu" / name).write_bytes((root / "val" / "cat" / "e.jpg").read_bytes())
    assert pack(tmp_path / "packed")["duplicates"] == {"within": 2, "across": 0}
    assert capsys.readouterr().out.endswith(
        "zoo: 2 files have the bytes of another in their split (val/cat/e.jpg = val/emu/f.jpg = val/emu/g.jpg)\n"
    )


def test_copies_across_splits_are_refused_unless_allowed(root: Path, tmp_path: Path) -> None:
    (root / "val" / "emu" / "copy.jpg").write_bytes((root / "train" / "cat" / "a.jpg").read_bytes())
    with pytest.raises(UserError) as caught:
        pack(tmp_path / "packed")
    assert str(caught.value) == (
        f"{root}: 1 files have the bytes of another in another split (train/cat/a.jpg = val/emu/copy.jpg); remove the"
        " copies, or set duplicates: allow in params/dataset/zoo.yaml"
    )
    assert pack(tmp_path / "packed", duplicates="allow")["duplicates"] == {"within": 0, "across": 1}


# --- the configuration


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["ant", "ant", "bee"]}, r"classes names 'ant' twice; each class needs one label"),
        ({"on_bad": "ignore"}, r"on_bad.*'refuse' or 'skip'"),
        ({"duplicates": True}, r"duplicates.*'refuse' or 'allow'"),
        ({"limits": {"pixels": 0}}, r"limits\.pixels.*at least 1"),
        ({"limits": {"pixel": 1}}, r"limits\.pixel.*did you mean 'pixels'"),
        ({"parts": {"test": "../val"}}, r"parts\.test"),
        ({"parts": {"test": "train"}}, r"each part needs a folder of its own, not train, train"),
        ({"parts": {"validation": "val"}}, r"parts\.validation"),
    ],
)
def test_unfit_values_are_refused_at_the_door(changes: dict[str, Any], message: str) -> None:
    whole = {**CONFIG, "side": 32, "local_side": 16, "validation": 2, "cost": {"minutes": 1, "memory": 100}}
    DatasetChoice.of("zoo.yaml", {**whole, "parts": {"test": "valid"}, "limits": {"text": 5}, "on_bad": "skip"})
    with pytest.raises(UserError, match=message):
        DatasetChoice.of("zoo.yaml", {**whole, **changes})
