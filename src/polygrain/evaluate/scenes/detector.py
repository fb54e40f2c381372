"""Mask R-CNN (He et al. 2017) of torchvision's parts on a pyramid, with draws, ties and levels of our own.

torchvision's sampler draws from torch's global state, its choice of a level takes a logarithm whose last bit differs
between processors, and its order of equally likely boxes is not declared. Here a draw is a function of (seed, step,
purpose, image, box), a level follows from comparing areas, and of equals the first box comes first.

Legend: B images, C channels, S side, W width of the pyramid, N boxes of all images, R boxes of one image, M side of a
mask in its box.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, paste_masks_in_image
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from polygrain.evaluate.scenes.pyramid import Pyramid
from polygrain.evaluate.scenes.resample import regions
from polygrain.nn.random import hash64

Key = tuple[int, int]

_CELLS = 28  # a region as wide as so many cells of a level belongs to the next one; 112 px at stride 4, as in the paper
_OVERLAPS = {"rpn": (0.7, 0.3), "box": (0.5, 0.5)}  # IoU from which a box is an object, and below which it is none
_SHARES = {"rpn": 0.5, "box": 0.25}  # of objects among the boxes that are drawn to train on, at most
_SUPPRESSED = {"rpn": 0.7, "box": 0.5}  # IoU above which the less likely of two boxes is dropped
_LEAST = 0.05  # score of a detection that is kept
_RATIOS = (0.5, 1.0, 2.0)  # height over width of the anchors


@dataclass(frozen=True)
class Heads:
    """Sizes of what stands behind the pyramid."""

    anchors: Sequence[float]
    """Sides of the square anchors, in cells of their level; each also has the ratios 1:2 and 2:1, of equal area."""
    proposals: int
    """Boxes of an image that the first stage hands on, at most."""
    drawn: int
    """Boxes of an image that each stage trains on, at most."""
    box_side: int
    """Cells of a region per side in the box head."""
    hidden: int
    """Width of the box head."""
    mask_layers: Sequence[int]
    """Widths of the mask head's convolutions."""
    mask_side: int
    """Cells of a region per side in the mask head; its mask has twice as many."""
    detections: int
    """Of an image, at most."""


class Detector(nn.Module):
    """Finds objects of `classes` classes; label 0 is the background, 1 + k is class k."""

    def __init__(self, pyramid: Pyramid, classes: int, heads: Heads) -> None:
        """The new layers start as torchvision starts them; seed torch before."""
        super().__init__()
        self.pyramid, width = pyramid, pyramid.width
        sides = [tuple(stride * cells for cells in heads.anchors) for stride in pyramid.strides]
        anchors = AnchorGenerator(tuple(sides), (_RATIOS,) * len(sides))
        # torchvision's are rounded to px, and lie around the corner of a cell instead of its centre
        anchors.cell_anchors = [cell_anchors(*level) for level in zip(sides, pyramid.strides, strict=True)]
        count = {"training": heads.proposals, "testing": heads.proposals}
        self.rpn = _Proposals(
            anchors, RPNHead(width, anchors.num_anchors_per_location()[0]), *_OVERLAPS["rpn"], heads.drawn,
            _SHARES["rpn"], {key: 4 * value for key, value in count.items()}, count, _SUPPRESSED["rpn"],
        )  # fmt: skip
        self.roi = RoIHeads(
            Regions(heads.box_side, pyramid.strides), TwoMLPHead(width * heads.box_side**2, heads.hidden),
            FastRCNNPredictor(heads.hidden, 1 + classes), *_OVERLAPS["box"], heads.drawn, _SHARES["box"], None,
            _LEAST, _SUPPRESSED["box"], heads.detections,
            Regions(heads.mask_side, pyramid.strides), MaskRCNNHeads(width, heads.mask_layers, 1),
            MaskRCNNPredictor(heads.mask_layers[-1], heads.mask_layers[-1], 1 + classes),
        )  # fmt: skip
        self.samplers = {"rpn": Sampler("rpn", heads.drawn), "box": Sampler("box", heads.drawn)}
        self.rpn.fg_bg_sampler, self.roi.fg_bg_sampler = self.samplers.values()

    def losses(self, views_BCSS: Tensor, targets: list[dict[str, Tensor]], key: Key) -> dict[str, Tensor]:
        """The five losses of Mask R-CNN, in training mode.

        targets: of each image `boxes` float32 [R, 4] (left, top, right, bottom; px), `labels` int64 [R] and `masks`
        uint8 [R, S, S]; R may be 0. key: seed and step of the draws.
        """
        for sampler in self.samplers.values():
            sampler.key = key
        maps, images = self._maps(views_BCSS)
        proposals, first = self.rpn(images, maps, targets)
        _, second = self.roi(maps, proposals, images.image_sizes, targets)
        return {**first, **second}

    @torch.no_grad()
    def forward(self, views_BCSS: Tensor) -> list[dict[str, Tensor]]:
        """In evaluation mode, of each image its detections, the likeliest first.

        `boxes` [R, 4], `labels` and `scores` [R], `masks` bool [R, S, S].
        """
        maps, images = self._maps(views_BCSS)
        proposals, _ = self.rpn(images, maps)
        found, _ = self.roi(maps, proposals, images.image_sizes)
        for one, size in zip(found, images.image_sizes, strict=True):
            one["masks"] = paste_masks_in_image(one["masks"], one["boxes"], size)[:, 0] >= 0.5
        return found  # type: ignore[no-any-return]

    def _maps(self, views_BCSS: Tensor) -> tuple[dict[str, Tensor], ImageList]:
        maps = {str(place): level for place, level in enumerate(self.pyramid(views_BCSS))}
        return maps, ImageList(views_BCSS, [tuple(views_BCSS.shape[-2:])] * len(views_BCSS))


def cell_anchors(sides: Sequence[float], stride: int) -> Tensor:
    """Anchors around the centre of the first cell, px, float32 [3 * len(sides), 4]: by ratio, then by side."""
    half = [
        (side / math.sqrt(ratio) / 2, side * math.sqrt(ratio) / 2)  # of the width and of the height
        for ratio in _RATIOS
        for side in sides
    ]
    return torch.tensor([(-across, -down, across, down) for across, down in half]) + stride / 2


class _Proposals(RegionProposalNetwork):  # type: ignore[misc]  # torchvision has no types
    """torchvision's first stage, whose likeliest boxes of a level are declared: of equals the first."""

    def _get_top_n_idx(self, objectness: Tensor, num_anchors_per_level: list[int]) -> Tensor:
        """Indices [B, K] of the likeliest anchors of each level."""
        found, first = [], 0
        for level in torch.split(objectness, num_anchors_per_level, 1):
            order = torch.argsort(level, dim=1, descending=True, stable=True)
            found.append(order[:, : self.pre_nms_top_n()] + first)
            first += level.shape[1]
        return torch.cat(found, dim=1)


class Sampler:
    """Draws the boxes to train on. torchvision's, but a draw depends on (seed, step, purpose, image, box) only."""

    def __init__(self, purpose: str, drawn: int) -> None:
        """purpose: `rpn` or `box`. drawn: boxes of an image, at most."""
        self.purpose, self.drawn, self.key = purpose, drawn, (0, 0)

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks uint8 [R] of the objects and of the background that are drawn.

        labels: of each image [R]: 0 for the background, above for objects, below for a box that is not used.
        """
        objects, ground = [], []
        boxes = torch.arange(max(len(label_R) for label_R in labels), device=labels[0].device)
        images = torch.arange(len(labels), device=labels[0].device)
        words_BR = hash64(*self.key, f"detection {self.purpose}", images[:, None], boxes)
        for row_R, label_R in zip(words_BR, labels, strict=True):
            words_R = row_R[: len(label_R)]
            object_R = _first(words_R, label_R >= 1, int(self.drawn * _SHARES[self.purpose]))
            objects.append(object_R)
            ground.append(_first(words_R, label_R == 0, self.drawn - int(object_R.sum())))
        return objects, ground


def _first(words_R: Tensor, wanted_R: Tensor, count: int) -> Tensor:
    """Mask uint8 [R] of the `count` boxes of the smallest words among the wanted."""
    places = torch.where(wanted_R)[0]
    chosen = torch.zeros_like(wanted_R, dtype=torch.uint8)
    chosen[places[torch.argsort(words_R[places], stable=True)[:count]]] = 1
    return chosen


class Regions(nn.Module):
    """Maps inside of boxes, [N, W, side, side]; each box is cut from one level, which its area decides."""

    def __init__(self, side: int, strides: Sequence[int]) -> None:
        """side: cells of the result. strides: px between the cells of each level, the finest first."""
        super().__init__()
        self.strides, self.output_size = list(strides), (side, side)

    def forward(self, maps: Mapping[str, Tensor], boxes: list[Tensor], _shapes: object = None) -> Tensor:
        """maps: [B, W, h, w] of each level. boxes: of each image [R, 4], px."""
        return torch.cat([self._cut([level[place] for level in maps.values()], box) for place, box in enumerate(boxes)])

    def _cut(self, maps: list[Tensor], box_R4: Tensor) -> Tensor:
        level_R, side = levels(box_R4, self.strides), self.output_size[0]
        found = maps[0].new_zeros(len(box_R4), len(maps[0]), side, side)
        for place, (level, stride) in enumerate(zip(maps, self.strides, strict=True)):
            rows = torch.where(level_R == place)[0]
            if len(rows):
                start_R2, stop_R2 = (box_R4[rows] / stride).chunk(2, dim=1)
                cells_1R4 = torch.cat([start_R2, stop_R2 - start_R2], dim=1)[None]
                found = found.index_copy(0, rows, regions(level[None], cells_1R4, side))
        return found


def levels(box_N4: Tensor, strides: Sequence[int]) -> Tensor:
    """The level of each box, int64 [N]: the first whose cells the root of its area is narrower than 28 of."""
    area_N = (box_N4[:, 2] - box_N4[:, 0]) * (box_N4[:, 3] - box_N4[:, 1])
    limits = torch.tensor([float((_CELLS * stride) ** 2) for stride in strides[:-1]], device=area_N.device)
    return (area_N[:, None] >= limits).sum(dim=1)
