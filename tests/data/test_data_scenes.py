"""Scenes: layouts against each other, sources against the packed splits, bytes against themselves and libraries."""

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packing import pack
from PIL import Image

from polygrain.config.project import Project
from polygrain.config.resolved import scenes
from polygrain.config.stages import maker, stage_of
from polygrain.data.dense.coco import Coco
from polygrain.data.dense.davis import Davis
from polygrain.data.dense.tree import Tree
from polygrain.data.dense.voc import Voc
from polygrain.data.packed import open_packed
from polygrain.data.scenes.compose import Placed, Thing, annotated, keypoints, paint
from polygrain.data.scenes.cutouts import (
    GRID,
    Cutout,
    canonical_keypoints,
    cut,
    keypoint_pixels,
    mirrored,
    overlaps,
    part_labels,
    resized,
)
from polygrain.data.scenes.draws import below, draws
from polygrain.data.scenes.png import grey_png, packed_runs, palette_png, voc_palette
from polygrain.data.scenes.run import compose
from polygrain.data.scenes.sources import Source, Sources
from polygrain.data.scenes.stored import StoredZip
from polygrain.data.scenes.textures import PURPOSES, noise, texture
from polygrain.nn.random import hash64
from polygrain.provenance.errors import UserError

PROJECT = Project(Path(__file__).resolve().parents[2])
CONFIG: Any = {
    "name": "toy-scenes", "datasets": ["one", "two"], "side": 64, "scenes": {"train": 8, "validation": 4, "test": 5},
    "clips": {"train": 0, "validation": 1, "test": 2}, "frames": 6, "objects": [2, 5], "distractors": [0, 2],
    "extent": [16, 30], "parts": 2, "textures": {"train": 4, "validation": 2, "test": 3}, "seed": 0,
}  # fmt: skip


def _packed(root: Path, seed: int) -> Path:
    """Bright discs and bars on black, two classes."""
    generator, images = np.random.default_rng(seed), np.zeros((60, 1, 28, 28))
    row, column = np.indices((28, 28))
    for number, image in enumerate(images):
        at = generator.integers(10, 18, 2)
        inside = (row - at[0]) ** 2 + (column - at[1]) ** 2 < 60 if number % 2 else np.abs(row - at[0]) < 4
        image[0][inside] = generator.integers(60, 256)
    order, names = np.arange(60), [f"{root.name} {kind}" for kind in ("Bar/x", "disc")]
    splits = {"train": order[:30], "validation": order[30:44], "test": order[44:]}
    return pack(root, images, order % 2, splits, classes=names)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    compose(CONFIG, {name: _packed(root / name, seed) for seed, name in enumerate(CONFIG["datasets"])}, root / "out")
    return root


def _coco(made: Path, split: str) -> Coco:
    return Coco(Tree(made / "out/coco.zip"), f"annotations/instances_{split}2017.json", f"{split}2017")


def test_the_same_bytes_twice_whatever_other_scenes_there_are(made: Path, tmp_path: Path) -> None:
    folders = {name: made / name for name in CONFIG["datasets"]}
    compose(CONFIG, folders, tmp_path / "again")
    names = ("coco.zip", "voc.zip", "davis.zip", "manifest.json")
    for name in names:
        assert (made / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    fewer = {
        **CONFIG,
        "scenes": {"train": 8, "validation": 1, "test": 0},
        "clips": {"train": 0, "validation": 0, "test": 0},
    }
    compose(fewer, folders, tmp_path / "fewer")
    with zipfile.ZipFile(made / "out/coco.zip") as whole, zipfile.ZipFile(tmp_path / "fewer/coco.zip") as part:
        for number in (1, 8):
            name = f"train2017/{number:012d}.png"
            assert whole.read(name) == part.read(name)
    compose({**CONFIG, "seed": 1}, folders, tmp_path / "other")
    assert (made / "out/coco.zip").read_bytes() != (tmp_path / "other/coco.zip").read_bytes()


def test_every_cut_out_comes_from_the_split_of_its_scene_and_no_texture_is_in_two(made: Path) -> None:
    """Runs train on the packed train split only, so no test scene shows an image that one trains on."""
    textures: dict[str, set[str]] = {}
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        coco = _coco(made, name)
        content = Tree(made / "out/coco.zip").json(f"annotations/instances_{name}2017.json")
        textures[split] = {image["texture"] for image in content["images"]}
        assert all(one.startswith(f"{split}/") for one in textures[split])
        for picture in coco.pictures:
            assert 2 <= len(picture.instances) <= 5
            for instance in picture.instances:
                source = instance.more["source"]
                data = open_packed(made / source["dataset"])
                assert source["split"] == split
                assert source["index"] in data.split(split)
                kind = (
                    data.manifest["classes"][data.labels[source["index"]]].lower().replace(" ", "-").replace("/", "-")
                )
                assert coco.categories[instance.category] == kind
    assert not textures["train"] & textures["validation"] | textures["test"] & (
        textures["train"] | textures["validation"]
    )
    tracks = Tree(made / "out/davis.zip").json("tracks.json")
    for name, track in tracks.items():
        split = "test" if name.startswith("test") else "validation"
        for one in track["objects"]:
            assert one["source"]["index"] in open_packed(made / one["source"]["dataset"]).split(split)


def test_layouts_agree_and_masks_boxes_and_keypoints_fit(made: Path) -> None:
    coco, voc_tree = _coco(made, "train"), Tree(made / "out/voc.zip")
    about = json.loads((made / "out/manifest.json").read_text())
    voc = Voc(voc_tree, "train", about["classes"])
    assert len(voc.names) == len(coco.pictures) == 8
    seen = np.zeros(3, np.int64)
    for name, picture in zip(voc.names, coco.pictures, strict=True):
        np.testing.assert_array_equal(voc.image(name), coco.image(picture))
        semantic, numbers, parts = (
            voc.semantic(name),
            voc.instances(name),
            voc_tree.indices(f"SegmentationPart/{name}.png"),
        )
        drawn = np.zeros_like(semantic)
        for place, (instance, one) in enumerate(zip(picture.instances, voc.objects(name), strict=True), start=1):
            mask = coco.mask(picture, instance)
            np.testing.assert_array_equal(mask, numbers == place)
            drawn[mask] = instance.category
            assert one.box == instance.box
            rows, columns = np.nonzero(mask)
            left, top, width, height = instance.box
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width - 1, top + height - 1) == (columns.max(), rows.max())
            assert instance.more["area"] == mask.sum() > 0
            assert instance.keypoints is not None
            for x, y, shown in instance.keypoints:
                seen[shown] += 1
                assert mask[y, x] if shown == 2 else not mask[y, x] or (x, y) == (0, 0)
        np.testing.assert_array_equal(drawn, semantic)
        np.testing.assert_array_equal(parts > 0, semantic > 0)
        assert parts.max() <= 4
    assert seen.min() > 0, seen


def test_clips_keep_their_numbers_and_begin_with_every_object(made: Path) -> None:
    davis = Davis(Tree(made / "out/davis.zip"), "test-dev")
    tracks = Tree(made / "out/davis.zip").json("tracks.json")
    assert [one.name for one in davis.sequences] == ["test-dev-000", "test-dev-001"]
    for sequence in davis.sequences:
        assert len(davis.propagated(sequence)) == 5
        objects = tracks[sequence.name]["objects"]
        assert sequence.objects == tuple(range(1, len(objects) + 1))
        moved = False
        for number, one in enumerate(objects, start=1):
            boxes = [frame["box"] if frame else None for frame in one["frames"]]
            moved |= len(set(map(str, boxes))) > 1
            for frame, box in zip(sequence.frames, boxes, strict=True):
                rows, columns = np.nonzero(davis.mask(sequence, frame) == number)
                found = None
                if len(rows):
                    found = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
                assert found == box
        assert moved
        assert any(one["frames"][-1] is None for one in objects), "one object leaves"


def test_later_things_hide_earlier_ones_and_keypoints_say_so() -> None:
    """By hand: a 6 x 6 square at (2, 2), half covered by another one at (2, 5) on a scene of 12 px."""
    cutout = Cutout(np.full((6, 6), 200, np.uint8), np.ones((6, 6), bool))
    source = Source("one", "train", 0)
    placed = [Placed(Thing(cutout, 1, source), 2, 2), Placed(Thing(cutout, 2, source), 2, 5)]
    painted = paint(np.zeros((12, 12), np.uint8), placed, 2)
    assert [(painted.owner == number).sum() for number in (0, 1, 2)] == [144 - 54, 18, 36]
    first, second = annotated(painted, placed, [np.array([[0, 0], [8, 8], [15, 15]])] * 2)
    assert (first.box, second.box) == ((2, 2, 3, 6), (5, 2, 6, 6))
    assert first.keypoints.tolist() == [[2, 2, 2], [5, 5, 1], [7, 7, 1]]
    assert painted.parts[2].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 0]
    outside = Placed(Thing(cutout, 1, source), -3, 2)
    assert keypoints(painted.owner, outside, 1, np.array([[0, 0]])).tolist() == [[0, 0, 0]]
    gone = [Placed(Thing(cutout, 1, source), 40, 2)]
    assert annotated(paint(np.zeros((12, 12), np.uint8), gone, 2), gone, [np.zeros((1, 2), int)]) == []


def test_a_change_of_size_is_the_exact_area_mean() -> None:
    """Against a brute-force mean on the common refinement, in rational numbers."""
    generator = np.random.default_rng(0)
    shape = generator.random((7, 5)) < 0.7
    grey = np.where(shape, generator.integers(0, 256, (7, 5)), 0).astype(np.uint8)
    found = resized(Cutout(grey, shape), 4, 3)
    fine_grey, fine_shape = (np.kron(array.astype(float), np.ones((4, 3))) for array in (grey, shape))
    total = fine_grey.reshape(4, 7, 3, 5).sum(axis=(1, 3))
    area = fine_shape.reshape(4, 7, 3, 5).sum(axis=(1, 3))
    np.testing.assert_array_equal(found.shape, area >= 35 / 2)
    expected = np.where(found.shape, np.floor(total / np.maximum(area, 1) + 0.5), 0)
    np.testing.assert_array_equal(found.grey, expected)
    same = resized(Cutout(grey, shape), 7, 5)
    np.testing.assert_array_equal(same.grey, grey)
    assert overlaps(3, 2).tolist() == [[2, 0], [1, 1], [0, 2]]


def test_parts_and_keypoints_turn_with_the_object() -> None:
    shape = np.ones((6, 9), bool)
    np.testing.assert_array_equal(part_labels(shape, 3, True), part_labels(shape, 3, False)[:, ::-1])
    assert part_labels(shape, 3, False)[::2, ::3].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    cells = np.array([[0, 0], [15, 3]])
    plain, turned = (keypoint_pixels(cells, shape, mirror) for mirror in (False, True))
    np.testing.assert_array_equal(turned, np.stack([plain[:, 0], 8 - plain[:, 1]], axis=1))
    assert mirrored(Cutout(np.arange(6, dtype=np.uint8).reshape(2, 3), np.ones((2, 3), bool))).grey.tolist() == [
        [2, 1, 0], [5, 4, 3]
    ]  # fmt: skip


def test_keypoints_are_far_apart_on_what_most_images_cover() -> None:
    covered = np.zeros((GRID, GRID), np.int64)
    covered[2:14, 4:12] = 100
    cells = canonical_keypoints(covered, 100)
    assert len({tuple(cell) for cell in cells.tolist()}) == 8
    known = [(row, column) for row in range(2, 14) for column in range(4, 12)]
    chosen = [tuple(cell) for cell in cells.tolist()]
    for place, cell in enumerate(chosen[1:], start=1):
        distance = {one: min((one[0] - r) ** 2 + (one[1] - c) ** 2 for r, c in chosen[:place]) for one in known}
        assert cell == max(known, key=lambda one, distance=distance: (distance[one], -known.index(one)))
    assert chosen[:2] == [(2, 4), (13, 11)]
    rare = np.arange(GRID * GRID).reshape(GRID, GRID) // 4  # none of them reaches 75 of 100
    assert sorted(canonical_keypoints(rare, 100).tolist()) == [[15, column] for column in range(8, 16)]


def test_an_image_without_an_object_and_colour_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without any pixel of an object"):
        cut(np.zeros((28, 28), np.uint8))
    order = np.arange(12)
    splits = {"train": order[:6], "validation": order[6:9], "test": order[9:]}
    colour = open_packed(pack(tmp_path / "c", np.ones((12, 3, 8, 8)) * 99, order % 1, splits, classes=["x"]))
    with pytest.raises(UserError, match="c has colour images"):
        Sources({"c": colour})
    lacking = open_packed(pack(tmp_path / "l", np.ones((12, 1, 8, 8)) * 99, order // 6, splits, classes=["x", "y"]))
    with pytest.raises(UserError, match="the train split of l has no image of 'y'"):
        Sources({"l": lacking})
    plain = open_packed(pack(tmp_path / "p", np.ones((12, 1, 8, 8)) * 99, order % 1, splits, classes=["x"]))
    with pytest.raises(UserError, match="two classes are called 'x'"):
        Sources({"p": plain, "q": plain})


@pytest.mark.parametrize("size", [1, 2, 3, 257, 258, 259, 300, 5000])
def test_packed_runs_are_what_deflate_reads(size: int) -> None:
    generator = np.random.default_rng(size)
    for content in (
        np.zeros(size, np.uint8),
        generator.integers(0, 256, size).astype(np.uint8),
        np.repeat(generator.integers(0, 256, size), generator.integers(1, 600, size)).astype(np.uint8)[:70000],
    ):
        assert zlib.decompress(packed_runs(content), wbits=-15) == content.tobytes()


def test_png_files_are_read_by_a_library_and_their_masks_are_small() -> None:
    generator = np.random.default_rng(0)
    grey = generator.integers(0, 256, (300, 301)).astype(np.uint8)  # more than one stored block
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(grey_png(grey)))), grey)
    mask = np.zeros((64, 64), np.uint8)
    mask[10:40, 20:50] = 20
    written = palette_png(mask, voc_palette(21))
    shown = Image.open(io.BytesIO(written))
    assert shown.mode == "P"
    np.testing.assert_array_equal(np.asarray(shown), mask)
    assert shown.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]  # type: ignore[index]
    assert len(written) < 700
    with pytest.raises(ValueError, match="index 20 is outside the palette of 20"):
        palette_png(mask, voc_palette(20))


def test_archives_are_read_by_a_library_and_hold_no_time(tmp_path: Path) -> None:
    with StoredZip(tmp_path / "a.zip") as archive:
        archive.add("folder/ä.txt", b"content")
        archive.add("empty", b"")
    with zipfile.ZipFile(tmp_path / "a.zip") as read:
        assert read.testzip() is None
        assert [(one.filename, one.date_time, one.compress_type) for one in read.infolist()] == [
            ("folder/ä.txt", (1980, 1, 1, 0, 0, 0), zipfile.ZIP_STORED),
            ("empty", (1980, 1, 1, 0, 0, 0), zipfile.ZIP_STORED),
        ]
        assert read.read("folder/ä.txt") == b"content"


def test_draws_are_the_upper_bits_of_the_hash() -> None:
    words = hash64(3, "x", torch.arange(4)).numpy().view(np.uint64)
    expected = [int(word >> np.uint64(33)) * 10 >> 31 for word in words]
    assert below(10, 3, "x", torch.arange(4)).tolist() == expected
    many = below(6, 0, "dice", torch.arange(60000))
    assert np.abs(np.bincount(many, minlength=6) - 10000).max() < 400
    first, second = draws(2, ("a", "b"), 7)
    assert [first.below(1 << 30, "a"), second.below(1 << 30, "a")] == below(1 << 30, 7, torch.arange(2), 0).tolist()
    assert {second.between(3, 5, purpose) for purpose in ("a", "b")} <= {3, 4, 5}


def test_textures_are_other_patterns_in_each_split_even_where_their_settings_agree() -> None:
    keys = [(0, "texture", split, number) for split in ("train", "validation", "test") for number in range(3)]
    (drawn,) = draws(1, PURPOSES, 0)
    patterns = {noise(64, drawn, octave, *key).tobytes() for key in keys for octave in ("coarse", "fine")}
    assert len(patterns) == 2 * len(keys)
    made = [texture(64, *key) for key in keys]
    assert len({one.tobytes() for one in made}) == len(keys)
    np.testing.assert_array_equal(made[0], texture(64, *keys[0]))
    assert max(int(one.max()) for one in made) < 100


def test_the_stage_reads_packed_data_and_is_named_by_its_files() -> None:
    stage = stage_of(PROJECT, "compose", "data/scenes-smoke")
    assert {path.parts[1] for path in stage.inputs} == {"fashion-mnist", "animal-mnist"}
    assert stage.entries == ("polygrain.data.scenes.run",)
    found = maker(PROJECT, Path("data/scenes/coco.zip"))
    assert found is not None
    assert (found.verb, found.minutes) == ("compose", scenes(PROJECT, "scenes")["cost"]["minutes"])
    with pytest.raises(UserError, match="no scenes 'scene'; did you mean 'scenes'"):
        stage_of(PROJECT, "compose", "data/scene")
