"""Readers of dense data sets on small files in the upstream layouts, in a folder and in a zip archive alike."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polygrain.data.dense.ade20k import Ade20k
from polygrain.data.dense.cityscapes import Cityscapes
from polygrain.data.dense.coco import Coco, same_categories
from polygrain.data.dense.davis import Davis
from polygrain.data.dense.polygons import polygon_mask
from polygrain.data.dense.rle import decode, encode, from_text, to_text
from polygrain.data.dense.tree import Tree
from polygrain.data.dense.voc import Voc
from polygrain.provenance.errors import UserError

FORMS = ("folder", "zip")


def _save(path: Path, pixels: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if mode == "P":
        image.putpalette([value for index in range(256) for value in (index, index, index)])
    image.save(path)


def _tree(root: Path, form: str) -> Tree:
    if form == "folder":
        return Tree(root)
    target = root.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(root))
    return Tree(target)


def _photo(height: int = 6, width: int = 8) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def _annotation(number: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "id": number, "image_id": 139, "category_id": 18, "bbox": [1.0, 1.0, 3.0, 2.0], "area": 6.0, "iscrowd": 0,
        "segmentation": [[1.0, 1.0, 4.0, 1.0, 4.0, 3.0, 1.0, 3.0]], **changes,
    }  # fmt: skip


def _coco(root: Path, annotations: list[dict[str, Any]], form: str = "folder", **changes: Any) -> Coco:
    _save(root / "val2017/000000000139.jpg", _photo())
    _save(root / "val2017/000000000285.jpg", _photo())
    images = [
        {"license": 2, "file_name": f"{number:012d}.jpg", "height": 6, "width": 8, "id": number}
        for number in (285, 139)
    ]
    categories = [
        {"supercategory": "animal", "id": 18, "name": "dog"},
        {"supercategory": "", "id": 1, "name": "person"},
    ]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations/instances_val2017.json").write_text(json.dumps(content | changes))
    return Coco(_tree(root, form), "annotations/instances_val2017.json", "val2017")


@pytest.mark.parametrize("form", FORMS)
def test_coco(tmp_path: Path, form: str) -> None:
    """Polygons, run lengths as numbers and as text, a crowd, an image without objects, hidden keypoints, no pixel."""
    mask = np.zeros((6, 8), bool)
    mask[1:3, 1:4] = True
    runs = {"size": [6, 8], "counts": encode(mask)}
    points = [3, 2, 2, 0, 0, 0, 4, 4, 1]
    coco = _coco(
        tmp_path / "coco",
        [
            _annotation(7, keypoints=points, num_keypoints=2),
            _annotation(8, segmentation=runs, iscrowd=1),
            _annotation(9, segmentation={**runs, "counts": to_text(runs["counts"])}),  # type: ignore[arg-type]
            _annotation(10, segmentation=[], keypoints=[0] * 9, num_keypoints=0),
        ],
        form,
    )
    first, empty = coco.pictures
    assert (first.id, empty.id, empty.instances) == (139, 285, ())
    assert coco.image(first).shape == (3, 6, 8)
    for instance in first.instances[:3]:
        np.testing.assert_array_equal(coco.mask(first, instance), mask)
    nothing = first.instances[3]
    assert not coco.mask(first, nothing).any()
    assert nothing.keypoints is not None
    assert not nothing.keypoints[:, 2].any()
    assert first.instances[0].keypoints.tolist() == [[3, 2, 2], [0, 0, 0], [4, 4, 1]]  # type: ignore[union-attr]
    assert [one.crowd for one in first.instances] == [False, True, False, False]
    assert coco.categories == {18: "dog", 1: "person"}


@pytest.mark.parametrize(
    ("annotations", "changes", "message"),
    [
        ([_annotation(1), _annotation(1)], {}, "annotation id 1 occurs twice"),
        ([_annotation(bbox=[6.0, 1.0, 4.0, 2.0])], {}, r"annotation 1: box .* is outside of its image of 6 x 8 px"),
        ([_annotation(category_id=3)], {}, "annotation 1: category 3 is not in the file"),
        ([_annotation(image_id=4)], {}, "annotation 1 belongs to image 4, which is not in the file"),
        ([_annotation(keypoints=[1, 1, 2], num_keypoints=0)], {}, "num_keypoints is 0, but 1 are labelled"),
        ([], {"images": [{"id": 5, "file_name": "no.jpg", "height": 6, "width": 8}]}, r"val2017/no\.jpg, which is not"),
        ([], {"images": [{"id": 5}]}, "not as COCO writes it"),
        ([{"id": 3}], {}, "not as COCO writes it"),
    ],
)
def test_bad_coco_is_one_line(tmp_path: Path, annotations: Any, changes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        _coco(tmp_path, annotations, **changes)
    assert "\n" not in str(raised.value)


def test_a_mask_of_another_size_and_a_category_that_train_lacks(tmp_path: Path) -> None:
    coco = _coco(tmp_path / "one", [_annotation(segmentation={"size": [5, 8], "counts": [40]})])
    with pytest.raises(UserError, match=r"annotation 1: its mask is not of 6 x 8 px"):
        coco.mask(coco.pictures[0], coco.pictures[0].instances[0])
    train = _coco(tmp_path / "two", [], categories=[{"id": 18, "name": "dog"}])
    with pytest.raises(UserError, match="toy: category 1 'person' is not declared in the train split"):
        same_categories(train, coco, "toy")
    same_categories(coco, train, "toy")


def test_run_lengths_there_and_back() -> None:
    generator = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 1.0):
        mask = generator.random((37, 50)) < share
        mask[:, 20:40] |= generator.random() < 0.5
        counts = encode(mask)
        np.testing.assert_array_equal(decode(counts, 37, 50, "here"), mask)
        np.testing.assert_array_equal(decode(to_text(counts), 37, 50, "here"), mask)
    assert encode(np.array([[False, True], [True, True]])) == [1, 3]
    assert encode(np.array([[True, False]])) == [0, 1, 1]
    # by hand: 6, 1, 40 as they are, then 5 - 1 = 4 and 40 - 40 = 0; 40 is 8 + 32, in two groups
    assert to_text([6, 1, 40, 5, 40]) == "61X1" + "40"
    assert from_text("61X140", "here") == [6, 1, 40, 5, 40]
    with pytest.raises(UserError, match="here: run lengths of 3 pixels for a mask of 2 x 2"):
        decode([1, 2], 2, 2, "here")
    for text in ("X", "6~"):
        with pytest.raises(UserError, match="here: "):
            from_text(text, "here")


def test_polygons_by_hand() -> None:
    square = polygon_mask([[1, 1, 4, 1, 4, 3, 1, 3]], 6, 8, "here")
    assert np.argwhere(square).tolist() == [[row, column] for row in (1, 2) for column in (1, 2, 3)]
    triangle = polygon_mask([[0, 0, 4, 0, 0, 4]], 4, 4, "here")
    assert triangle.sum(axis=1).tolist() == [3, 2, 1, 0]  # centres strictly inside the diagonal
    with pytest.raises(UserError, match="at least three corners"):
        polygon_mask([[0, 0, 1, 1]], 4, 4, "here")


XML = """<annotation><folder>VOC2012</folder><filename>2007_000033.jpg</filename>
<size><width>8</width><height>6</height>
<depth>3</depth></size><segmented>1</segmented><object><name>{name}</name><pose>Left</pose><truncated>0</truncated>
<difficult>1</difficult><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>{xmax}</xmax><ymax>3</ymax></bndbox></object>
</annotation>"""


def _voc(root: Path, form: str = "folder", index: int = 15, **xml: Any) -> Voc:
    mask = np.zeros((6, 8), np.uint8)
    mask[1:3, 1:4], mask[0] = index, 255
    _save(root / "JPEGImages/2007_000033.jpg", _photo())
    _save(root / "SegmentationClass/2007_000033.png", mask, "P")
    _save(root / "SegmentationObject/2007_000033.png", np.where(mask == index, 1, mask).astype(np.uint8), "P")
    for folder in ("ImageSets/Segmentation", "Annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("2007_000033\n\n")
    (root / "Annotations/2007_000033.xml").write_text(XML.format(**{"name": "person", "xmax": 4, **xml}))
    return Voc(_tree(root, form), "val")


@pytest.mark.parametrize("form", FORMS)
def test_voc(tmp_path: Path, form: str) -> None:
    voc = _voc(tmp_path / "voc", form)
    assert voc.names == ["2007_000033"]
    assert voc.image("2007_000033").shape == (3, 6, 8)
    semantic = voc.semantic("2007_000033")
    assert np.unique(semantic).tolist() == [0, 15, 255]
    np.testing.assert_array_equal(voc.instances("2007_000033") == 1, semantic == 15)
    (found,) = voc.objects("2007_000033")
    assert (found.name, found.box, found.difficult) == ("person", (1.0, 1.0, 3.0, 2.0), True)


def test_bad_voc_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"SegmentationClass/2007_000033\.png: holds the number 21, which is no class"):
        _voc(tmp_path / "a", index=21).semantic("2007_000033")
    with pytest.raises(UserError, match=r"box .* is outside of its image of 6 x 8 px"):
        _voc(tmp_path / "b", xmax=9).objects("2007_000033")
    with pytest.raises(UserError, match="'unicorn' is no class"):
        _voc(tmp_path / "c", name="unicorn").objects("2007_000033")
    voc = _voc(tmp_path / "d")
    (tmp_path / "d/JPEGImages/2007_000033.jpg").unlink()
    with pytest.raises(UserError, match=r"JPEGImages/2007_000033\.jpg: not found, nor with \.png"):
        voc.image("2007_000033")
    (tmp_path / "d/SegmentationObject/2007_000033.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="not a whole image"):
        voc.instances("2007_000033")
    with pytest.raises(UserError, match=r"train\.txt: not found"):
        Voc(Tree(tmp_path / "d"), "train")
    with pytest.raises(UserError, match="not found; give a folder or a zip"):
        Tree(tmp_path / "nowhere")


@pytest.mark.parametrize("form", FORMS)
def test_ade20k(tmp_path: Path, form: str) -> None:
    root, name = tmp_path / "ade", "ADE_val_00000001"
    mask = np.arange(48, dtype=np.uint8).reshape(6, 8)
    mask[5, 7] = 150
    _save(root / f"images/validation/{name}.jpg", _photo())
    _save(root / f"annotations/validation/{name}.png", mask)
    ade = Ade20k(_tree(root, form), "validation")
    assert ade.names == [name]
    found = ade.semantic(name)
    assert (found[0, 0], found[0, 1], found[5, 7]) == (255, 0, 149)
    mask[0, 0] = 151
    _save(tmp_path / f"bad/annotations/validation/{name}.png", mask)
    _save(tmp_path / f"bad/images/validation/{name}.jpg", _photo())
    with pytest.raises(UserError, match="holds the number 151"):
        Ade20k(_tree(tmp_path / "bad", form), "validation").semantic(name)
    _save(tmp_path / f"size/annotations/validation/{name}.png", mask[:4] * 0)
    _save(tmp_path / f"size/images/validation/{name}.jpg", _photo())
    with pytest.raises(UserError, match="a mask of 4 x 8 for an image of 6 x 8"):
        Ade20k(_tree(tmp_path / "size", form), "validation").semantic(name)


@pytest.mark.parametrize("form", FORMS)
def test_cityscapes(tmp_path: Path, form: str) -> None:
    root, stem = tmp_path / "city", "val/lindau/lindau_000000_000019"
    ids = np.array([[7, 33, 0, 255], [26, 24, 29, 11]], np.uint8)
    _save(root / f"leftImg8bit/{stem}_leftImg8bit.png", _photo(2, 4))
    _save(root / f"gtFine/{stem}_gtFine_labelIds.png", ids)
    _save(root / f"gtFine/{stem}_gtFine_instanceIds.png", np.array([[7, 33, 0, 0], [26000, 24001, 29, 11]], np.uint16))
    city = Cityscapes(_tree(root, form), "val")
    assert city.names == ["lindau/lindau_000000_000019"]
    assert city.image(city.names[0]).shape == (3, 2, 4)
    assert city.semantic(city.names[0]).tolist() == [[0, 18, 255, 255], [13, 11, 255, 2]]
    assert city.instances(city.names[0])[1, :2].tolist() == [26000, 24001]
    with pytest.raises(UserError, match="holds no city"):
        Cityscapes(_tree(root, form), "test")


def _davis(root: Path, masks: list[np.ndarray], form: str = "folder") -> Davis:
    for number, mask in enumerate(masks):
        _save(root / f"JPEGImages/480p/bike-packing/{number:05d}.jpg", _photo())
        _save(root / f"Annotations/480p/bike-packing/{number:05d}.png", mask, "P")
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("bike-packing\n")
    return Davis(_tree(root, form), "val")


@pytest.mark.parametrize("form", FORMS)
def test_davis(tmp_path: Path, form: str) -> None:
    masks: list[Callable[[], np.ndarray]] = [lambda: np.zeros((6, 8), np.uint8)] * 3
    first, second, third = (make() for make in masks)
    first[1, 1], first[2, 2], second[1, 2] = 1, 2, 2
    davis = _davis(tmp_path / "davis", [first, second, third], form)
    (sequence,) = davis.sequences
    assert (sequence.objects, davis.propagated(sequence)) == ((1, 2), ("00001", "00002"))
    np.testing.assert_array_equal(davis.mask(sequence, "00001"), second)
    assert davis.image(sequence, "00002").shape == (3, 6, 8)


def test_bad_davis_is_one_line(tmp_path: Path) -> None:
    none, unknown = np.zeros((6, 8), np.uint8), np.full((6, 8), 3, np.uint8)
    short = _davis(tmp_path / "a", [none])
    assert short.sequences[0].objects == ()
    with pytest.raises(UserError, match="a clip of one frame"):
        short.propagated(short.sequences[0])
    davis = _davis(tmp_path / "b", [none, unknown])
    with pytest.raises(UserError, match=r"00001\.png: holds the number 3"):
        davis.mask(davis.sequences[0], "00001")
    _davis(tmp_path / "c", [none, none])
    (tmp_path / "c/Annotations/480p/bike-packing/00000.png").unlink()
    with pytest.raises(UserError, match="has no mask of the first frame, 00000"):
        Davis(Tree(tmp_path / "c"), "val")
