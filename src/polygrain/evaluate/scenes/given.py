"""What a protocol on scenes gets: the run's encoder and the scenes, read in the layouts of COCO and DAVIS.

A scene is shown at its own side, with the statistics and channels of pre-training. A network that takes views of one
side only (a linear map of pixels) sees a window of that side around each cell of a grid instead, with the border
repeated outside; its image vector is the mean over the windows.

Legend: B images, D width, S side of a scene, h, w rows and columns of the map, P pixels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from polygrain.backbones.contract import Backbone, Encoded, from_map
from polygrain.data.dense.coco import Coco, Instance, Picture, same_categories
from polygrain.data.dense.davis import Davis
from polygrain.data.dense.tree import Tree
from polygrain.data.load import statistics
from polygrain.data.packed import MANIFEST, DataSet
from polygrain.evaluate.given import as_channels, load_encoder, trainable
from polygrain.evaluate.store import SPLITS
from polygrain.provenance.errors import UserError
from polygrain.provenance.files import read_json, sha256_file
from polygrain.views.apply import plain_view

if TYPE_CHECKING:
    from polygrain.config.typed import Shown

Integers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

COCO, DAVIS = "coco.zip", "davis.zip"
_FOLDERS = {"train": "train2017", "validation": "val2017", "test": "test2017"}
_LISTS = {"train": "train", "validation": "val", "test": "test-dev"}
_STRIDE = 8  # px between windows


class SceneSet:
    """The scenes of three splits. Raises UserError for files that do not belong together."""

    def __init__(self, name: str, splits: Mapping[str, Coco], clips: Callable[[str], Davis] | None = None) -> None:
        """name: what numbers are called after. clips: opens the clips of a split, where there are any."""
        self.name, self.splits, self._clips = name, splits, clips
        for split, coco in splits.items():
            same_categories(splits["train"], coco, f"{name}, {split} split")
        categories = splits["train"].categories
        self._place = {number: place for place, number in enumerate(sorted(categories))}
        self.classes = [categories[number] for number in self._place]
        """Names of the categories, sorted by their ids."""

    def pictures(self, split: str, limit: int | None = None) -> list[Picture]:
        """The first `limit` images of a split. Raises UserError when there is none."""
        found = self.splits[split].pictures[:limit]
        if not found:
            raise UserError(f"{self.name}: the {split} split holds no image")
        return found

    def clips(self, split: str) -> Davis:
        """The clips of a split. Raises UserError where there is none, and naming the file that is damaged."""
        found = self._clips(split) if self._clips else None
        if found is None or not found.sequences:
            raise UserError(f"{self.name}: the {split} split holds no clip")
        return found

    def semantic(self, split: str, picture: Picture) -> Integers:
        """The class at each pixel, int64 [S, S]: 0 for none, else 1 + its place in `classes`.

        Where masks overlap the later annotation counts; one without pixels changes nothing.
        """
        labels = np.zeros((picture.height, picture.width), np.int64)
        for instance in picture.instances:
            labels[self.splits[split].mask(picture, instance)] = 1 + self._place[instance.category]
        return labels

    def label(self, instance: Instance) -> int:
        """1 + the place of an object's category in `classes`."""
        return 1 + self._place[instance.category]

    def present(self, picture: Picture) -> npt.NDArray[np.bool_]:
        """Which classes are in an image, [classes]."""
        found = np.zeros(len(self.classes), np.bool_)
        found[[self._place[instance.category] for instance in picture.instances]] = True
        return found


class SceneEncoder:
    """A frozen backbone, and scenes."""

    def __init__(
        self,
        network: Backbone,
        scenes: SceneSet,
        statistics: tuple[Sequence[float], Sequence[float]],
        device: str = "cpu",
        *,
        side: int,
        batch: int,
    ) -> None:
        """statistics: mean and std per channel. side: of a view in pre-training. batch: images of a forward pass."""
        self.network, self.scenes, self.device = network.to(device), scenes, device
        self.side, self.batch = side, batch
        self.mean, self.std = statistics

    @torch.no_grad()
    def encoded(self, split: str, pictures: Sequence[Picture]) -> Iterator[Encoded]:
        """Frozen maps and pooled features of images, batch by batch, in their order.

        Raises UserError for images that differ in size.
        """
        for start in range(0, len(pictures), self.batch):
            yield self.encoded_pixels(self._pixels(split, pictures[start : start + self.batch]))

    @torch.no_grad()
    def encoded_pixels(self, pixels: Bytes) -> Encoded:
        """Frozen maps and pooled features of uint8 [B, C, S, S], at most `batch` of them.

        Every forward pass has the same size (missing images are copies of the last), so an image's result does not
        depend on other images.
        """
        images = torch.from_numpy(pixels)
        filled = torch.cat([images, images[-1:].expand(self.batch - len(images), *images.shape[1:])])
        whole = self._encode(self._shown(filled))
        return Encoded(*(found[: len(images)] for found in (whole.tokens, whole.map, whole.pooled)))

    def views(self, split: str, pictures: Sequence[Picture]) -> Tensor:
        """What the network is shown of images, float32 [B, C, S, S]. Raises UserError where their sizes differ."""
        return self._shown(torch.from_numpy(self._pixels(split, pictures)))

    def finetunable(self) -> Backbone:
        """A copy of the network whose weights may be trained, in training mode; see `given.trainable`."""
        return trainable(self.network)

    def _pixels(self, split: str, pictures: Sequence[Picture]) -> Bytes:
        if len({(one.height, one.width) for one in pictures}) > 1 or pictures[0].height != pictures[0].width:
            raise UserError(f"{self.scenes.name}: the images of the {split} split must be squares of one size")
        return np.stack([self.scenes.splits[split].image(one) for one in pictures])

    def _shown(self, images_BCSS: Tensor) -> Tensor:
        shown = as_channels(images_BCSS, len(self.mean)).to(self.device)
        return plain_view(shown, shown.shape[-1], self.mean, self.std)

    def _encode(self, views_BCSS: Tensor) -> Encoded:
        try:
            return self.network(views_BCSS)  # type: ignore[no-any-return]
        except UserError:  # made for views of one side
            return self._windows(views_BCSS)

    def _windows(self, views_BCSS: Tensor) -> Encoded:
        """The pooled vector of the window around each cell, as a map."""
        before = (self.side - _STRIDE) // 2
        around = (before, self.side - _STRIDE - before)
        padded = pad(views_BCSS, (*around, *around), mode="replicate")
        windows = padded.unfold(2, self.side, _STRIDE).unfold(3, self.side, _STRIDE)
        rows = [
            torch.stack([self.network(windows[:, :, row, column]).pooled for column in range(windows.shape[3])], dim=-1)
            for row in range(windows.shape[2])
        ]
        return from_map(torch.stack(rows, dim=2))


def scene_set(folder: Path) -> SceneSet:
    """Open scenes that `polygrain compose` wrote. Raises UserError naming the file that is not what was written."""
    tree = _archive(folder, COCO)
    splits = {name: Coco(tree, f"annotations/instances_{_FOLDERS[name]}.json", _FOLDERS[name]) for name in SPLITS}
    return SceneSet(folder.name, splits, lambda split: Davis(_archive(folder, DAVIS), _LISTS[split]))


def _archive(folder: Path, name: str) -> Tree:
    about: dict[str, Any] = read_json(folder / MANIFEST)
    path = folder / name
    if sha256_file(path) != about["files"][name]["sha256"]:
        raise UserError(
            f"{path}: damaged, its content is not what the manifest says;"
            f" rebuild it with `snakemake --cores all --force {path}`"
        )
    return Tree(path)


def scene_encoder_of(config: "Shown", checkpoint: Path, own: Path, scenes: Path, device: str) -> SceneEncoder:
    """Load a checkpoint's encoder and open scenes.

    config: `backbone`, `statistics` and `features` as for `polygrain.evaluate.given.encoder_of`. own: packed folder of
    the data set of pre-training, of which the manifest is read. Raises UserError on a damaged checkpoint or file.
    """
    about = DataSet(np.empty(0, np.int64), read_json(own / MANIFEST), {})
    mean, std = statistics(about, config["statistics"])
    network = load_encoder(config["backbone"], checkpoint, channels=len(mean))
    features = config["features"]
    return SceneEncoder(network, scene_set(scenes), (mean, std), device, side=features["size"], batch=features["batch"])
