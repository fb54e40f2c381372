"""The listing of a folder of photographs: which files there are, what changed, and when it makes a packing stale."""

import os
from pathlib import Path

import pytest

from polygrain.config.listing import difference, listing, source_changes, write_listing
from polygrain.provenance.stage import Stage

CONFIG = {"name": "mine", "reader": "image-folder", "folder": None, "classes": None}
DIRECTORY = Path("data/mine")
DAY = 86_400 * 10**9


def stage(**config: object) -> Stage:
    entries = ("polygrain.data.shards", "polygrain.data.readers.image_folder")
    outputs = (DIRECTORY / "labels.npy", DIRECTORY / "manifest.json")
    return Stage("prepare", "prepare", DIRECTORY, {**CONFIG, **config}, entries, (), outputs)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "sets/mine"
    for name in ("train/ant/1.jpg", "train/bee/1.png", "val/ant/1.jpg", "val/bee/1.jpg", "unlabelled/a/1.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"an image")
    monkeypatch.setenv("POLYGRAIN_DATA", str(folder.parent))
    monkeypatch.setenv("POLYGRAIN_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def root(tmp_path: Path, photos: Path) -> Path:
    """A project in which the photographs were packed a day ago."""
    root = tmp_path / "project"
    assert write_listing(root, stage()) == root / stage().listing_path
    (root / stage().packed_listing).parent.mkdir(parents=True)
    (root / stage().packed_listing).write_bytes((root / stage().listing_path).read_bytes())
    pack(root)
    return root


def pack(root: Path) -> None:
    for output in stage().outputs:
        (root / output).parent.mkdir(parents=True, exist_ok=True)
        (root / output).write_text("packed")


def test_what_packing_cannot_take_is_not_listed(photos: Path) -> None:
    before = listing(stage())
    assert len(before.splitlines()) == 6
    for name in ("train/ant/notes.txt", "train/.hidden/1.jpg", "other/ant/1.jpg", "train/ant/@eaDir/1.jpg", "1.jpg"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(b"no image of the set")
    assert listing(stage()) == before
    assert len(listing(stage(classes=["ant"])).splitlines()) == 4
    assert len(listing(stage(parts={"test": None, "unlabelled": None})).splitlines()) == 3


def test_each_kind_of_change_is_counted(photos: Path) -> None:
    before = listing(stage())
    (photos / "train/ant/2.jpg").write_bytes(b"another image")
    (photos / "val/ant/1.jpg").rename(photos / "val/ant/renamed.jpg")
    (photos / "train/bee/1.png").write_bytes(b"a longer image")
    moment = (photos / "unlabelled/a/1.jpg").stat().st_mtime_ns + DAY
    os.utime(photos / "unlabelled/a/1.jpg", ns=(moment, moment))
    assert difference(before, listing(stage())) == f"{photos}: 2 added, 1 removed, 2 changed"


def test_by_contents_a_time_is_no_change_and_a_hidden_edit_is_one(photos: Path) -> None:
    """An edit that leaves size and time as they were, and a touch."""
    times, contents = stage(), stage(compare="contents")
    before, known = listing(times), listing(contents)
    file = photos / "train/ant/1.jpg"
    moment = file.stat().st_mtime_ns
    os.utime(file, ns=(moment + DAY, moment + DAY))
    assert difference(before, listing(times)) == f"{photos}: 1 changed"
    assert difference(known, listing(contents)) == ""
    file.write_bytes(b"AN IMAGE")
    os.utime(file, ns=(moment, moment))
    assert difference(before, listing(times)) == ""
    assert difference(known, listing(contents)) == f"{photos}: 1 changed"


def test_a_folder_that_only_moved_is_the_same_and_another_one_is_named(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = listing(stage())
    monkeypatch.setenv("POLYGRAIN_DATA", str(tmp_path / "disk"))
    moved = photos.parent.rename(tmp_path / "disk") / "mine"
    assert listing(stage()) != before
    assert difference(before, listing(stage())) == ""
    (moved / "val/bee/1.jpg").unlink()
    assert difference(before, listing(stage())) == f"{moved} instead of {photos}: 1 removed"


def test_names_that_are_no_text_are_listed(photos: Path) -> None:
    before = listing(stage())
    (photos / os.fsdecode(b"train/ant/\xff\n.jpg")).write_bytes(b"an image")
    assert difference(before, listing(stage())) == f"{photos}: 1 added"


def test_the_same_files_write_nothing_and_a_change_is_said(
    root: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = root / stage().listing_path
    os.utime(file, ns=(DAY, DAY))
    assert write_listing(root, stage()) is None
    assert file.stat().st_mtime_ns == DAY
    assert source_changes(root, stage()) == ""
    (photos / "train/ant/2.jpg").write_bytes(b"another image")
    assert source_changes(root, stage()) == f"{photos}: 1 added"
    assert write_listing(root, stage()) == file
    assert file.stat().st_mtime_ns > DAY
    assert capsys.readouterr().err == f"data/mine: its source has changed, {photos}: 1 added\n"
    # until it is packed, whatever was looked at in between
    assert write_listing(root, stage()) is None
    assert source_changes(root, stage()) == f"{photos}: 1 added"


def test_without_the_folder_nothing_is_compared(root: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (root / stage().listing_path).read_bytes()
    monkeypatch.delenv("POLYGRAIN_DATA")
    assert write_listing(root, stage()) is None
    (photos / "train/ant/2.jpg").write_bytes(b"another image")
    assert source_changes(root, stage()) == f"{photos}: 1 added"  # doctor knows where it was
    photos.parent.rename(photos.parent.with_name("gone"))
    assert write_listing(root, stage()) is None
    assert source_changes(root, stage()) == ""
    assert (root / stage().listing_path).read_bytes() == before


def test_data_that_came_from_elsewhere_stay_when_the_folder_appears(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "restored"
    file = root / stage().listing_path
    with monkeypatch.context() as without:
        without.delenv("POLYGRAIN_DATA")
        assert write_listing(root, stage()) == file
        assert file.read_bytes() == b""
        pack(root)
        assert write_listing(root, stage()) is None
        assert source_changes(root, stage()) == ""
    assert write_listing(root, stage()) is None
    assert file.stat().st_mtime_ns < (root / stage().outputs[0]).stat().st_mtime_ns
    assert source_changes(root, stage()) == ""
    (photos / "train/ant/2.jpg").write_bytes(b"another image")
    assert write_listing(root, stage()) == file
