"""Keypoints of objects in scenes by fine-tuning: given an object's box and class, heat maps say where they are.

Top-down with true boxes, as keypoints of COCO are also reported: the box, a quarter larger, is cut out of the finest
level of a feature pyramid (RoIAlign); 3 x 3 convolutions and a transposed convolution, each with batch norm, make a
finer map of it, and a 1 x 1 convolution a heat map for each keypoint. What keypoint 3 is differs by class, so each
class has a 1 x 1 convolution of its own and shares all before it. The loss is the cross-entropy over the cells of a
heat map of every labelled keypoint, shown or hidden, inside the larger box (as of Mask R-CNN's keypoint head). A
keypoint is found in the first of the highest cells, a quarter of a cell towards the higher neighbour. A mirrored object
keeps the numbers of its keypoints, as scenes have it; keypoints that are named left and right would have to be
exchanged.

Judged by OKS with one sigma (`scenes/oks.py`). Objects without area or labelled keypoint, and crowds, play no part.
The rate is selected by the average precision on validation, of equals the first; the last step is reported, test is
used once. How it is trained: `scenes/training.py`.

Legend: B images, M places for objects of an image, N objects, K keypoints of a class, C classes, H width of the head,
g cells along a side of a heat map, P = g * g cells, R bins of the region, S side of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from polygrain.data.dense.coco import Instance, Picture
from polygrain.evaluate.result import ACCURACY, Examples, Number, Result
from polygrain.evaluate.scenes.given import SceneEncoder, SceneSet
from polygrain.evaluate.scenes.oks import Posed, average_precision, oks
from polygrain.evaluate.scenes.pyramid import Pyramid
from polygrain.evaluate.scenes.resample import regions
from polygrain.evaluate.scenes.training import Training, fit, fresh, mirrored
from polygrain.provenance.errors import UserError

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

NAME = "scene-pose"
_LARGER = 1.25  # of the box, along a side
_JUDGED = 50  # images at once
_NONE = -1  # in place of a cell


@dataclass(frozen=True)
class Sizes:
    """Of the head."""

    width: int
    """Of the pyramid."""
    head: int
    depth: int
    """3 x 3 convolutions."""
    bins: int
    """Along a side of the region; a heat map has twice as many cells."""


def evaluate(
    encoder: SceneEncoder,
    *,
    train: int,
    epochs: int,
    batch: int,
    rates: list[float],
    warmup: float,
    weight_decay: float,
    width: int,
    head: int,
    depth: int,
    bins: int,
    sigma: float,
    seed: int,
) -> Result:
    """Train and test a copy of the network.

    train: scenes from the front of the train split, at most. epochs, batch, warmup, weight_decay, seed: see
    `training.Training`. rates: to select from. width, head, depth, bins: see `Sizes`. sigma: of OKS, for every
    keypoint. Raises UserError for values out of range, a split without an object that has labelled keypoints, classes
    that differ in their number, a network without weights, and a loss that is not finite.
    """
    training = Training(NAME, epochs, batch, warmup, weight_decay, seed)
    training.check(train, rates, (width, head, depth, bins))
    if not sigma > 0:
        raise UserError(f"{NAME}: sigma ({sigma}) must be positive")
    scenes = encoder.scenes
    learned = _Split(scenes, "train", scenes.pictures("train", train))
    held, shown = (_Split(scenes, split, scenes.pictures(split)) for split in ("validation", "test"))
    sizes = Sizes(width, head, depth, bins)
    tried = [_trained(encoder, learned, training, rate, sizes) for rate in rates]
    scores = [average_precision(held.objects, *_found(encoder, one, held), sigma)["oks-ap"] for one in tried]
    best = scores.index(max(scores))
    found_NK2, sure_N = _found(encoder, tried[best], shown)
    similarity_N = oks(shown.objects, found_NK2, sigma)
    numbers = average_precision(shown.objects, found_NK2, sure_N, sigma) | {"oks": float(similarity_N.mean())}
    values = {f"{scenes.name}/{metric}": Number(value, ACCURACY) for metric, value in numbers.items()}
    chosen = {"rate": rates[best], "validation_oks_ap": scores[best], "scenes": len(learned.pictures)}
    index = np.array([one.id for one in shown.objects], dtype=np.int64)
    return Result(values, {scenes.name: chosen}, {scenes.name: Examples(index, {"oks": similarity_N})})


class _Split:
    """The images of a split that hold an object with labelled keypoints, and these objects, image by image."""

    def __init__(self, scenes: SceneSet, split: str, pictures: Sequence[Picture]) -> None:
        self.name = split
        places = {number: place for place, number in enumerate(sorted(scenes.splits["train"].categories))}
        where = f"{scenes.name}, {split} split"
        self.by_image = {
            picture.id: [_posed(where, picture, one, places[one.category]) for one in picture.instances if _usable(one)]
            for picture in pictures
        }
        self.pictures = [picture for picture in pictures if self.by_image[picture.id]]
        self.objects = [one for picture in self.pictures for one in self.by_image[picture.id]]
        if not self.objects:
            raise UserError(f"{NAME}: no object of the {split} split of {scenes.name} has a labelled keypoint")
        counts = {len(one.points) for one in self.objects}
        if len(counts) > 1:
            raise UserError(f"{NAME}: {where}: objects have {sorted(counts)} keypoints; all classes need as many")
        self.keypoints = counts.pop()


def _usable(instance: Instance) -> bool:
    known = instance.keypoints is not None and bool((instance.keypoints[:, 2] > 0).any())
    return known and not instance.crowd and min(instance.box[2:]) > 0 and instance.more.get("area", 1) > 0


def _posed(where: str, picture: Picture, instance: Instance, place: int) -> Posed:
    if instance.keypoints is None or "area" not in instance.more:
        raise UserError(f"{NAME}: {where}: annotation {instance.id} has no area, which OKS is measured in; add it")
    area = float(instance.more["area"])
    return Posed(instance.id, picture.id, place, instance.box, area, instance.keypoints)


class HeatMaps(nn.Module):
    """Forward of views [B, channels, S, S] and objects: logits [N, K, P] over the cells of each heat map."""

    def __init__(self, pyramid: Pyramid, sizes: Sizes, classes: int, keypoints: int) -> None:
        super().__init__()
        self.pyramid, self.bins, self.keypoints = pyramid, sizes.bins, keypoints
        widths = [pyramid.width, *[sizes.head] * sizes.depth]
        layers: list[nn.Module] = []
        for given, made in pairwise(widths):
            layers += nn.Conv2d(given, made, 3, padding=1, bias=False), nn.BatchNorm2d(made), nn.ReLU(inplace=True)
        finer = nn.ConvTranspose2d(sizes.head, sizes.head, 2, 2, bias=False)
        self.layers = nn.Sequential(*layers, finer, nn.BatchNorm2d(sizes.head), nn.ReLU(inplace=True))
        self.by_class = nn.Linear(classes, keypoints * sizes.head, bias=False)
        nn.init.normal_(self.by_class.weight, std=0.01)

    def forward(self, views_BCSS: Tensor, boxes_BM4: Tensor, slot_N: Tensor, class_NC: Tensor) -> Tensor:
        """boxes_BM4: px. slot_N: where the objects are among the B * M boxes. class_NC: one-hot.

        A heat map has no bias of its own: it would change no softmax over its cells.
        """
        finest_BWhw, stride = self.pyramid(views_BCSS)[0], self.pyramid.strides[0]
        maps_NHgg = self.layers(regions(finest_BWhw, boxes_BM4 / stride, self.bins)[slot_N])
        cells_NPH = maps_NHgg.permute(0, 2, 3, 1).flatten(1, 2)
        of_class_NKH = self.by_class(class_NC).view(len(class_NC), self.keypoints, -1)
        return torch.bmm(cells_NPH, of_class_NKH.mT).mT


def _trained(encoder: SceneEncoder, split: _Split, training: Training, rate: float, sizes: Sizes) -> nn.Module:
    channels, side = len(encoder.mean), split.pictures[0].height
    classes = len(encoder.scenes.classes)
    network = fresh(
        encoder,
        training,
        lambda backbone: HeatMaps(
            Pyramid(backbone, sizes.width, channels=channels, side=side), sizes, classes, split.keypoints
        ),
    )

    def loss_of(pictures: Sequence[Picture], mirrored_B: Tensor) -> Tensor:
        views_BCSS = mirrored(encoder.views(split.name, pictures), mirrored_B)
        objects = [
            [_mirror(one, side) if backwards else one for one in split.by_image[picture.id]]
            for picture, backwards in zip(pictures, mirrored_B.tolist(), strict=True)
        ]
        logits_NKP = network(views_BCSS, *placed(objects, classes, views_BCSS.device))
        cells_NK = cells_of([one for each in objects for one in each], 2 * sizes.bins)
        return heat_loss(logits_NKP, torch.from_numpy(cells_NK).to(logits_NKP.device))

    fit(network, loss_of, split.pictures, training, rate)
    return network


def heat_loss(logits_NKP: Tensor, cell_NK: Tensor) -> Tensor:
    """The mean over keypoints of -log softmax at their cell, a scalar; 0 where no keypoint has a cell."""
    total = cross_entropy(logits_NKP.flatten(0, 1), cell_NK.flatten(), ignore_index=_NONE, reduction="sum")
    return total / (cell_NK != _NONE).sum().clamp(min=1)


def _mirror(one: Posed, side: int) -> Posed:
    left, top, width, height = one.box
    column, row, shown = one.points.T
    points = np.stack([side - 1 - column, row, shown], axis=1)
    return Posed(one.id, one.image, one.place, (side - left - width, top, width, height), one.area, points)


def larger(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """The box that is cut out: around the same centre."""
    left, top, width, height = box
    more = (_LARGER - 1) / 2
    return left - more * width, top - more * height, _LARGER * width, _LARGER * height


def placed(objects: Sequence[Sequence[Posed]], classes: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """`boxes_BM4`, `slot_N` and `class_NC` of the objects of some images; boxes of places without object are empty."""
    most = max(len(each) for each in objects)
    boxes_BM4 = torch.zeros(len(objects), most, 4)
    slots, places = [], []
    for image, each in enumerate(objects):
        for place, one in enumerate(each):
            boxes_BM4[image, place] = torch.tensor(larger(one.box))
            slots.append(image * most + place)
            places.append(one.place)
    class_NC = torch.eye(classes)[places]
    return boxes_BM4.to(device), torch.tensor(slots, device=device), class_NC.to(device)


def cells_of(objects: Sequence[Posed], cells: int) -> Integers:
    """The cell of each heat map that holds its keypoint, int64 [N, K]; -1 for one that is not labelled or outside."""
    points_NK3 = np.stack([one.points for one in objects])
    box_N4 = np.array([larger(one.box) for one in objects])
    place_NK2 = (points_NK3[..., :2] + 0.5 - box_N4[:, None, :2]) / box_N4[:, None, 2:]  # a pixel's centre is at 0.5
    column_row = np.floor(place_NK2 * cells).astype(np.int64)
    inside_NK = ((column_row >= 0) & (column_row < cells)).all(axis=2) & (points_NK3[..., 2] > 0)
    found: Integers = np.where(inside_NK, column_row[..., 1] * cells + column_row[..., 0], _NONE)
    return found


@torch.no_grad()
def _found(encoder: SceneEncoder, network: nn.Module, split: _Split) -> tuple[Floats, Floats]:
    """Columns and rows, px, float64 [N, K, 2], and the mean over the heat maps of their highest probability [N]."""
    points, sure = [], []
    for start in range(0, len(split.pictures), _JUDGED):
        pictures = split.pictures[start : start + _JUDGED]
        objects = [split.by_image[picture.id] for picture in pictures]
        views_BCSS = encoder.views(split.name, pictures)
        logits_NKP = network(views_BCSS, *placed(objects, len(encoder.scenes.classes), views_BCSS.device)).cpu()
        points.append(located(logits_NKP.numpy(), [larger(one.box) for each in objects for one in each]))
        sure.append(logits_NKP.softmax(dim=2).amax(dim=2).double().mean(dim=1).numpy())
    return np.concatenate(points), np.concatenate(sure)


def located(logits_NKP: npt.NDArray[np.float32], boxes: Sequence[tuple[float, float, float, float]]) -> Floats:
    """Columns and rows of the highest cells in their boxes, float64 [N, K, 2], in pixels whose centres are whole."""
    cells = round(logits_NKP.shape[2] ** 0.5)
    maps = logits_NKP.reshape(*logits_NKP.shape[:2], cells, cells)
    row, column = np.divmod(logits_NKP.argmax(axis=2), cells)
    each, keypoint = np.indices(row.shape)

    def shift(down: int, right: int, place: Integers) -> Floats:
        after = maps[each, keypoint, np.minimum(row + down, cells - 1), np.minimum(column + right, cells - 1)]
        before = maps[each, keypoint, np.maximum(row - down, 0), np.maximum(column - right, 0)]
        inner = (place > 0) & (place < cells - 1)
        quarter: Floats = np.where(inner, np.sign(after - before) / 4.0, 0.0)
        return quarter

    at_NK2 = np.stack([column + shift(0, 1, column), row + shift(1, 0, row)], axis=2) + 0.5
    box_N4 = np.array(boxes)
    found: Floats = box_N4[:, None, :2] + at_NK2 / cells * box_N4[:, None, 2:] - 0.5
    return found
