import fcntl
import io
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from polygrain.data import shards
from polygrain.data.encoded import decode, measure, open_encoded
from polygrain.data.load import open_data
from polygrain.data.packed import open_packed
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import sha256_file

CONFIG: dict[str, Any] = {
    "name": "toy", "reader": "image-folder", "format": "encoded", "validation": 4, "test": 0, "seed": 3,
    "folder": None, "classes": None, "expected": None, "statistics": None, "licence": "none", "source": None,
}  # fmt: skip
CLASSES = ("ant", "bee")


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """A smooth RGB image, which a JPEG holds well."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def stored(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


KINDS = {
    "jpeg": stored(picture(40, 61), "JPEG"),
    "progressive jpeg": stored(picture(70, 31), "JPEG", progressive=True),
    "png": stored(picture(17, 40), "PNG"),
}


def test_broken_exif_means_upright() -> None:
    content = stored(picture(30, 44), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert decode(content, "", "").shape == (3, 30, 44)
    assert measure(content, "", "") == (30, 44)


BAD = {
    "half a jpeg": KINDS["jpeg"][: len(KINDS["jpeg"]) // 2],
    "a jpeg without its last twentieth": KINDS["jpeg"][: len(KINDS["jpeg"]) * 19 // 20],
    "half a progressive jpeg": KINDS["progressive jpeg"][: len(KINDS["progressive jpeg"]) // 2],
    "half a png": KINDS["png"][: len(KINDS["png"]) // 2],
    "a png with a damaged header": KINDS["png"][:20] + bytes([KINDS["png"][20] ^ 255]) + KINDS["png"][21:],
    "text": b"this is no image\n" * 30,
    "html": b"<html>404</html>",
    "nothing": b"",
    "zeros": bytes(5000),
}


@pytest.mark.parametrize("look", [decode, measure])
@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_whole_image_is_refused_in_one_line(kind: str, look: Any) -> None:
    with pytest.raises(UserError, match=r"^a/b\.jpg: not a whole image \(.+\); delete it$") as caught:
        look(BAD[kind], "a/b.jpg", "delete it")
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)


def make_folder(root: Path, per_class: int = 12, tests: int = 3, unlabelled: int = 0) -> Path:
    """An image folder of two classes; sizes, kinds and contents follow from the position."""
    parts = [(f"train/{name}", per_class) for name in CLASSES] + [(f"val/{name}", tests) for name in CLASSES]
    parts += [("unlabelled", unlabelled)] if unlabelled else []
    seed = 0
    for part, count in parts:
        (root / part).mkdir(parents=True)
        for number in range(count):
            seed += 1
            image = picture(24 + seed % 7, 40 - seed % 5, seed)
            kind = ("JPEG", "PNG")[seed % 2]
            mode = ("RGB", "L", "RGB", "P")[seed % 4] if kind == "PNG" else ("RGB", "L")[seed % 3 == 0]
            (root / part / f"{number:03d}.{kind.lower()}").write_bytes(stored(image.convert(mode), kind))
    return root


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pack an image folder through the real reader; shards are closed at 4 kB."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 4096)
    monkeypatch.setenv("POLYGRAIN_CACHE", str(tmp_path / "cache"))

    def packed(source: Path, out: str = "packed", **changes: Any) -> Path:
        monkeypatch.setenv("POLYGRAIN_DATA", str(source))
        shards.prepare({**CONFIG, **changes}, tmp_path / out)
        return tmp_path / out

    return packed


def test_what_is_packed_are_the_files_in_order(pack: Any, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    root = pack(source)
    data = open_encoded(root, verify=True)
    names = [*sorted((source / "train").rglob("*.*")), *sorted((source / "val").rglob("*.*"))]
    assert len(data.labels) == len(names) == 30
    for position, name in enumerate(names):
        assert data.content(position) == name.read_bytes()
        image = data.decode(position)
        assert torch.equal(image, decode(name.read_bytes(), "", ""))
        assert tuple(data.sizes(np.array([position]))[0]) == image.shape[1:]
        assert CLASSES[data.labels[position]] == name.parent.name
    assert data.sizes(np.arange(30)).dtype == np.int64
    stored_bytes = b"".join(path.read_bytes() for path in sorted((root / "shards").iterdir()))
    assert stored_bytes == b"".join(name.read_bytes() for name in names)


def test_shards_are_of_the_chosen_size_and_memory_mapped(pack: Any, tmp_path: Path) -> None:
    data = open_encoded(pack(make_folder(tmp_path / "source")))
    paths = sorted((data.root / "shards").iterdir())
    sizes = [path.stat().st_size for path in paths]
    assert [path.name for path in paths] == [f"shard-{number:05d}.bin" for number in range(len(paths))]
    assert len(paths) > 3
    assert max(sizes) <= 4096
    assert all(first + second > 4096 for first, second in itertools.pairwise(sizes))
    data.content(0)
    assert all(isinstance(shard, np.memmap) for shard in data._shards.values())
    assert list(data._shards) == [0]  # nothing is mapped before it is asked for


def test_a_file_larger_than_a_shard_has_one_to_itself(pack: Any, tmp_path: Path, monkeypatch: Any) -> None:
    source = make_folder(tmp_path / "source")
    monkeypatch.setattr(shards, "SHARD_BYTES", 10)
    data = open_encoded(pack(source), verify=True)
    assert len(set(data.index["shard"])) == 30
    assert not data.index["offset"].any()


def test_splits_and_manifest_are_as_for_pixels(pack: Any, tmp_path: Path) -> None:
    data = open_encoded(pack(make_folder(tmp_path / "source", unlabelled=5)))
    assert {name: len(positions) for name, positions in data.splits.items()} == data.manifest["splits"]
    assert data.manifest["splits"] == {"train": 20, "validation": 4, "test": 6, "unlabelled": 5}
    assert set(np.concatenate(list(data.splits.values())).tolist()) == set(range(35))
    assert np.bincount(data.labels[data.split("validation")]).tolist() == [2, 2]
    assert np.bincount(data.labels[data.split("train")[:10]]).tolist() == [5, 5]
    assert data.labels[data.split("unlabelled")].tolist() == [-1] * 5
    assert data.manifest["format"] == 2
    assert data.manifest["encoded"] is True
    assert data.manifest["classes"] == list(CLASSES)
    assert data.subset("train", 7).tolist() == data.split("train")[:7].tolist()
    assert list(data.manifest["files"]) == sorted(data.manifest["files"])


def test_packing_twice_gives_the_same_bytes(pack: Any, tmp_path: Path) -> None:
    first = pack(make_folder(tmp_path / "one"), "first")
    other = pack(make_folder(tmp_path / "two"), "other")
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) > 7
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    for file in files:
        assert sha256_file(first / file) == sha256_file(other / file), file


def test_mean_and_std_are_those_of_the_training_pixels(pack: Any, tmp_path: Path) -> None:
    data = open_encoded(pack(make_folder(tmp_path / "source")))
    pixels = [data.decode(position).reshape(3, -1).numpy() / 255.0 for position in data.split("train").tolist()]
    np.testing.assert_allclose(data.mean, np.concatenate(pixels, axis=1).mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(data.std, np.concatenate(pixels, axis=1).std(axis=1), rtol=1e-10)


def test_a_sample_serves_for_mean_and_std(pack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "STATISTICS_IMAGES", 7)
    data = open_encoded(pack(make_folder(tmp_path / "source")))
    sample = shards.statistics_sample(data.split("train"), CONFIG["seed"])
    assert len(set(sample.tolist())) == 7
    assert set(sample.tolist()) <= set(data.split("train").tolist())
    pixels = [data.decode(position).reshape(3, -1).numpy() / 255.0 for position in sample.tolist()]
    np.testing.assert_allclose(data.mean, np.concatenate(pixels, axis=1).mean(axis=1), rtol=1e-12)


def test_mean_and_std_can_be_given(pack: Any, tmp_path: Path) -> None:
    given = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    data = open_encoded(pack(make_folder(tmp_path / "source"), statistics=given))
    assert (data.mean, data.std) == (given["mean"], given["std"])


@pytest.mark.parametrize("kind", ["half a jpeg", "text", "nothing"])
@pytest.mark.parametrize("statistics", [None, {"mean": [0.5] * 3, "std": [0.2] * 3}])
def test_a_bad_file_is_named_and_nothing_is_left(pack: Any, tmp_path: Path, kind: str, statistics: Any) -> None:
    source = make_folder(tmp_path / "source")
    bad = source / "train" / "bee" / "zzz.jpg"
    bad.write_bytes(BAD[kind])
    with pytest.raises(UserError, match=r"^\S*train/bee/zzz\.jpg: not a whole image .*; replace or remove"):
        pack(source, statistics=statistics)
    assert list((tmp_path / "packed").iterdir()) == []


def test_a_failed_packing_leaves_the_earlier_one_alone(pack: Any, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    root = pack(source)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    (source / "val" / "ant" / "bad.png").write_bytes(b"no")
    with pytest.raises(UserError, match=r"val/ant/bad\.png"):
        pack(source)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_packing_again_replaces_everything_and_clears_up(pack: Any, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    root = pack(source)
    many = len(list((root / "shards").iterdir()))
    (root / ".packing" / "shards").mkdir(parents=True)
    (root / ".packing" / "shards" / "half").write_bytes(b"left by a killed process")
    (root / "config").mkdir()
    for path in [*source.rglob("*.png")]:
        if "train" in path.parts:
            path.unlink()
    data = open_encoded(pack(source, validation=2), verify=True)
    assert len(list((root / "shards").iterdir())) == len(set(data.index["shard"])) < many
    assert {path.name for path in root.iterdir()} == {
        "config", "index.npz", "labels.npy", "manifest.json", "shards", "splits.npz",
    }  # fmt: skip


def test_shards_that_are_not_there_are_packed_again_to_the_same_bytes(pack: Any, tmp_path: Path) -> None:
    """As in a copy that a record brought back; of another source they are refused, and nothing is left."""
    source = make_folder(tmp_path / "source")
    root = pack(source)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    times = {path: path.stat().st_mtime_ns for path in root.iterdir() if path.is_file()}
    shutil.rmtree(root / "shards")
    added = source / "train" / "ant" / "added.png"
    added.write_bytes(next(source.rglob("*.png")).read_bytes())
    with pytest.raises(
        UserError, match=r"source: not the files that .*packed/manifest\.json tells of; put those there"
    ):
        shards.pack_again(CONFIG, root)
    assert {path.name for path in root.iterdir()} == {path.name for path in times}
    added.unlink()
    shards.pack_again(CONFIG, root)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert {path: path.stat().st_mtime_ns for path in root.iterdir() if path.is_file()} == times
    shutil.rmtree(source)
    shards.pack_again(CONFIG, root)  # what is there is not packed


def test_a_kill_between_the_moves_leaves_nothing_that_opens(pack: Any, tmp_path: Path, monkeypatch: Any) -> None:
    source = make_folder(tmp_path / "source")
    root = pack(source)
    replace = os.replace

    def stop(source: Any, target: Any) -> None:
        if Path(target).name == "labels.npy" and Path(target).parent == root:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        pack(source)
    with pytest.raises(UserError, match=r"manifest\.json: not found"):
        open_encoded(root)


def test_two_processes_do_not_pack_the_same_data_set(pack: Any, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    (tmp_path / "packed").mkdir()
    descriptor = os.open(tmp_path / "packed", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="packed: another process is packing this data set; wait for it or stop it"):
        pack(source)
    os.close(descriptor)
    pack(source)


@pytest.mark.parametrize("name", ["shards/shard-00001.bin", "index.npz", "labels.npy", "splits.npz"])
def test_damage_is_refused_by_name(pack: Any, tmp_path: Path, name: str) -> None:
    root = pack(make_folder(tmp_path / "source"))
    path = root / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=rf"{name}: damaged.*rebuild it with `snakemake"):
        open_encoded(root, verify=True)
    if name.startswith("shards"):
        open_encoded(root)  # 256 MB a shard are not hashed at every start
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"{name}: damaged"):
        open_encoded(root)
    path.unlink()
    with pytest.raises(UserError, match=f"{name}: not found"):
        open_encoded(root)


def test_a_damaged_image_names_its_shard(pack: Any, tmp_path: Path) -> None:
    root = pack(make_folder(tmp_path / "source"))
    data = open_encoded(root)
    number, offset = int(data.index["shard"][4]), int(data.index["offset"][4])
    with (root / f"shards/shard-{number:05d}.bin").open("r+b") as stream:
        stream.seek(offset)
        stream.write(bytes(30))
    with pytest.raises(UserError, match=rf"shard-{number:05d}\.bin, image 4: not a whole image .*rebuild it with"):
        open_encoded(root).decode(4)


def test_an_image_of_another_size_than_was_packed_is_refused(pack: Any, tmp_path: Path) -> None:
    data = open_encoded(pack(make_folder(tmp_path / "source")))
    data.index["width"][2] += 1
    with pytest.raises(UserError, match=r"shard-00000\.bin, image 2: another size than index\.npz says"):
        data.decode(2)


def test_either_format_is_opened(pack: Any, tmp_path: Path) -> None:
    root = pack(make_folder(tmp_path / "source"))
    assert type(open_data(root)) is type(open_encoded(root))
    manifest = json.loads((root / "manifest.json").read_text())
    pixels = tmp_path / "pixels"
    pixels.mkdir()
    np.save(pixels / "images.npy", np.zeros((3, 1, 2, 2), np.uint8))
    np.save(pixels / "labels.npy", np.zeros(3, np.int64))
    np.savez(pixels / "splits.npz", train=np.arange(3))
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in pixels.iterdir()}
    (pixels / "manifest.json").write_text(json.dumps({**manifest, "format": 1, "files": files}))
    assert type(open_data(pixels)) is type(open_packed(pixels))
