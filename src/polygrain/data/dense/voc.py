"""VOC 2012: `JPEGImages`, masks with a palette, XML files, and lists of names.

Layout: `ImageSets/Segmentation/val.txt`, `JPEGImages/2007_000033.jpg`, `SegmentationClass/2007_000033.png`,
`SegmentationObject/2007_000033.png`, `Annotations/2007_000033.xml`. In masks 0 is the background, 255 not to be judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as Xml

from polygrain.data.dense.tree import Bytes, Integers, Tree, checked_indices, same_size
from polygrain.provenance.errors import UserError

IGNORED = 255
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


@dataclass(frozen=True)
class VocObject:
    """An object of an XML file."""

    name: str
    box: tuple[float, float, float, float]
    """Left, top, width, height, px from 0, as in COCO; the file counts from 1 and includes both ends."""
    difficult: bool


class Voc:
    """The images that a list names, in its order."""

    def __init__(self, tree: Tree, split: str, classes: Sequence[str] = VOC_CLASSES) -> None:
        """split: train, val or test. classes: those of the numbers from 1 on.

        Raises UserError for a list that is empty or missing.
        """
        self._tree, self.classes = tree, tuple(classes)
        listing = f"ImageSets/Segmentation/{split}.txt"
        self.names = tree.lines(listing)
        if not self.names:
            raise UserError(f"{tree.where(listing)}: names no image")

    def image(self, name: str) -> Bytes:
        """Pixels, uint8 [C, H, W]. Raises UserError when the file is missing or damaged."""
        return self._tree.image(self._tree.with_suffix(f"JPEGImages/{name}"))

    def semantic(self, name: str) -> Integers:
        """The class number at each pixel, int64 [H, W]. Raises UserError for a number that no class has."""
        file = f"SegmentationClass/{name}.png"
        mask = checked_indices(
            self._tree.indices(file), [*range(len(self.classes) + 1), IGNORED], self._tree.where(file)
        )
        same_size(self.image(name), mask, self._tree.where(file))
        return mask

    def instances(self, name: str) -> Integers:
        """The number of the object at each pixel, from 1 in the order of the XML file, int64 [H, W]."""
        return self._tree.indices(f"SegmentationObject/{name}.png")

    def objects(self, name: str) -> list[VocObject]:
        """The objects of an image; it may have none. Raises UserError for a broken file and a box outside."""
        file = f"Annotations/{name}.xml"
        where = self._tree.where(file)
        try:
            root = Xml.fromstring(self._tree.read(file))
            size = [float(root.findtext(f"size/{key}", "")) for key in ("width", "height")]
            found = []
            for node in root.iter("object"):
                ends = [float(node.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax")]
                if not (1 <= ends[0] <= ends[2] <= size[0] and 1 <= ends[1] <= ends[3] <= size[1]):
                    raise UserError(f"{where}: box {ends} is outside of its image of {size[1]:g} x {size[0]:g} px")
                kind = node.findtext("name", "").strip()
                if kind not in self.classes:
                    raise UserError(f"{where}: '{kind}' is no class of this data set")
                box = (ends[0] - 1, ends[1] - 1, ends[2] - ends[0] + 1, ends[3] - ends[1] + 1)
                found.append(VocObject(kind, box, node.findtext("difficult", "0").strip() == "1"))
        except (Xml.ParseError, ValueError) as error:
            raise UserError(f"{where}: not as VOC writes it ({error}); correct it") from None
        return found
