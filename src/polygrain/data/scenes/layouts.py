"""Scenes and clips in the layouts of COCO 2017, VOC 2012 and DAVIS 2017, each into a `StoredZip`.

What the upstream layouts do not have stands beside what they have: `source` and `visible` of an object (COCO, VOC),
`texture` of an image (COCO), the folder `SegmentationPart` (VOC), `tracks.json` (DAVIS). Images are PNG files.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree as Tree

from polygrain.data.dense.rle import encode
from polygrain.data.scenes.clips import Clip
from polygrain.data.scenes.compose import Annotated, Integers, Scene, annotated, relabelled
from polygrain.data.scenes.cutouts import KEYPOINTS
from polygrain.data.scenes.png import grey_png, palette_png, voc_palette
from polygrain.data.scenes.sources import Category
from polygrain.data.scenes.stored import StoredZip

COCO_SPLITS = {"train": "train2017", "validation": "val2017", "test": "test2017"}
VOC_SPLITS = {"train": "train", "validation": "val", "test": "test"}
DAVIS_SPLITS = {"train": "train", "validation": "val", "test": "test-dev"}
_FIGURES = 100  # more than the things of a scene: an annotation's id is that of its image times this, plus its place


def plain_json(value: Any) -> bytes:
    """JSON in one line with sorted keys, for large files of whole numbers and texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


class Coco:
    """Images in a folder for each split, and one JSON file with boxes, run lengths and keypoints."""

    def __init__(self, archive: StoredZip, categories: Sequence[Category]) -> None:
        self._archive = archive
        names = [f"keypoint-{number + 1}" for number in range(KEYPOINTS)]
        self._categories = [
            {"id": one.number, "name": one.name, "supercategory": one.dataset, "keypoints": names, "skeleton": []}
            for one in categories
        ]
        self._images, self._annotations = list[dict[str, Any]](), list[dict[str, Any]]()

    def add(self, split: str, image: int, scene: Scene, objects: Sequence[Annotated]) -> None:
        """Write the scene as image number `image`, and remember its annotations."""
        side, name = len(scene.painted.image), f"{image:012d}.png"
        self._archive.add(f"{COCO_SPLITS[split]}/{name}", grey_png(scene.painted.image))
        about = {"id": image, "file_name": name, "height": side, "width": side}
        self._images.append(about | {"texture": f"{split}/{scene.texture}"})
        for place, each in enumerate(objects):
            self._annotations.append(
                {
                    "id": image * _FIGURES + place,
                    "image_id": image,
                    "category_id": each.placed.thing.category,
                    "iscrowd": 0,
                    "bbox": list(each.box),
                    "area": int(each.shown.sum()),
                    "segmentation": {"size": [side, side], "counts": encode(each.shown)},
                    "keypoints": each.keypoints.ravel().tolist(),
                    "num_keypoints": int((each.keypoints[:, 2] > 0).sum()),
                    **_origin(each),
                }
            )

    def finish(self, split: str) -> None:
        """Write the annotations of a split and forget them."""
        content = {"images": self._images, "annotations": self._annotations, "categories": self._categories}
        self._archive.add(f"annotations/instances_{COCO_SPLITS[split]}.json", plain_json(content))
        self._images, self._annotations = [], []


def _origin(each: Annotated) -> dict[str, Any]:
    """What upstream layouts do not say of an object: where it comes from, and which share of it is seen."""
    visible = 1000 * int(each.shown.sum()) // each.whole
    return {"source": asdict(each.source), "mirrored": each.placed.thing.mirror, "visible_thousandths": visible}


class Voc:
    """Folders of images and of masks with a palette, one XML file for each image, lists of names."""

    def __init__(self, archive: StoredZip, categories: Sequence[Category], parts: int) -> None:
        self._archive = archive
        self._names = {one.number: one.name for one in categories}
        self._palettes = [voc_palette(size) for size in (len(categories) + 1, 256, parts**2 + 1)]
        self._listed = list[str]()

    def add(self, split: str, image: int, scene: Scene, objects: Sequence[Annotated]) -> None:
        """Write the scene as image number `image`. Objects have the numbers of their places in the XML file, from 1."""
        name, painted = f"{image:06d}", scene.painted
        self._archive.add(f"JPEGImages/{name}.png", grey_png(painted.image))
        classes = relabelled(painted, objects, [each.placed.thing.category for each in objects])
        numbers = relabelled(painted, objects, range(1, len(objects) + 1))
        folders = ("SegmentationClass", "SegmentationObject", "SegmentationPart")
        sizes = (self._palettes[0], self._palettes[1][: len(objects) + 1], self._palettes[2])
        for folder, mask, palette in zip(folders, (classes, numbers, painted.parts), sizes, strict=True):
            self._archive.add(f"{folder}/{name}.png", palette_png(mask, palette))
        self._archive.add(f"Annotations/{name}.xml", self._xml(name, len(painted.image), objects))
        self._listed.append(name)

    def finish(self, split: str) -> None:
        """Write the list of a split's images."""
        text = "".join(f"{name}\n" for name in self._listed)
        self._archive.add(f"ImageSets/Segmentation/{VOC_SPLITS[split]}.txt", text.encode())
        self._listed = []

    def _xml(self, name: str, side: int, objects: Sequence[Annotated]) -> bytes:
        root = Tree.Element("annotation")
        _texts(root, filename=f"{name}.png", segmented=1)
        _texts(Tree.SubElement(root, "size"), width=side, height=side, depth=1)
        for each in objects:
            node, (left, top, width, height) = Tree.SubElement(root, "object"), each.box
            whole = int(each.shown.sum()) == each.whole
            _texts(node, name=self._names[each.placed.thing.category], occluded=int(not whole), difficult=0)
            box = Tree.SubElement(node, "bndbox")  # counted from 1, both ends included
            _texts(box, xmin=left + 1, ymin=top + 1, xmax=left + width, ymax=top + height)
            _texts(Tree.SubElement(node, "source"), **asdict(each.source))
        return Tree.tostring(root) + b"\n"


def _texts(node: Tree.Element, **values: str | int) -> None:
    for key, value in values.items():
        Tree.SubElement(node, key).text = str(value)


class Davis:
    """A folder of frames and a folder of masks for each clip, lists of names, and the tracks."""

    def __init__(self, archive: StoredZip, categories: Sequence[Category], cells: Sequence[Integers]) -> None:
        self._archive, self._cells = archive, cells
        self._names = {one.number: one.name for one in categories}
        self._listed, self._tracks = list[str](), dict[str, Any]()

    def add(self, split: str, clip: Clip) -> None:
        """Write a clip. An object has one number in all masks, from 1, in the drawing order."""
        name = f"{DAVIS_SPLITS[split]}-{clip.number:03d}"
        numbers = [place for place, each in enumerate(clip.things[0], start=1) if each.thing.category]
        tracks = [list[Any]() for _ in numbers]
        for frame, (painted, things) in enumerate(zip(clip.frames, clip.things, strict=True)):
            seen = {each.number: each for each in annotated(painted, things, self._cells)}
            labels = [numbers.index(number) + 1 for number in seen]
            mask = relabelled(painted, list(seen.values()), labels)
            self._archive.add(f"JPEGImages/480p/{name}/{frame:05d}.png", grey_png(painted.image))
            palette = voc_palette(len(numbers) + 1)
            self._archive.add(f"Annotations/480p/{name}/{frame:05d}.png", palette_png(mask, palette))
            for track, number in zip(tracks, numbers, strict=True):
                each = seen.get(number)
                track.append({"box": list(each.box), "keypoints": each.keypoints.tolist()} if each else None)
        objects = [clip.things[0][number - 1].thing for number in numbers]
        self._tracks[name] = {
            "texture": f"{split}/{clip.texture}",
            "objects": [
                {"category": self._names[thing.category], "source": asdict(thing.source), "frames": track}
                for thing, track in zip(objects, tracks, strict=True)
                if thing.source is not None
            ],
        }
        self._listed.append(name)

    def finish(self, split: str) -> None:
        """Write the list of a split's clips."""
        text = "".join(f"{name}\n" for name in self._listed)
        self._archive.add(f"ImageSets/2017/{DAVIS_SPLITS[split]}.txt", text.encode())
        self._listed = []

    def close(self) -> None:
        """Write the tracks of all clips: per frame the box and the keypoints of each object that is seen, else null."""
        self._archive.add("tracks.json", plain_json(self._tracks))
