"""Semantic segmentation of scenes by fine-tuning: the whole network with the head of Semantic FPN.

The head (Kirillov et al. 2019; MGC's specification, 8.3) stands on a feature pyramid: a 3 x 3 convolution with batch
norm on each level, the levels upsampled bilinearly to the finest and added, a 1 x 1 convolution to classes. The loss is
the cross-entropy of every pixel with the prediction of its cell of the finest level; for judging, the logits are
upsampled bilinearly to the pixels. The rate is selected by the mean IoU on validation, of equals the first; the last
step is reported, test is used once. How it is trained: `scenes/training.py`.

Legend: B images, C classes, 0 the background; H width of the head, h, w the finest level, S side of an image.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, log_softmax

from polygrain.data.dense.coco import Picture
from polygrain.evaluate.result import Result
from polygrain.evaluate.scenes.given import SceneEncoder
from polygrain.evaluate.scenes.iou import confusion, mean_iou, segmented
from polygrain.evaluate.scenes.pyramid import Pyramid
from polygrain.evaluate.scenes.resample import upsampled
from polygrain.evaluate.scenes.training import Training, fit, fresh, mirrored
from polygrain.provenance.errors import UserError

Integers = npt.NDArray[np.int64]

NAME = "scene-fine-tuning"
_JUDGED = 100  # images at once


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
    seed: int,
) -> Result:
    """Train and test a copy of the network.

    train: scenes from the front of the train split, at most. epochs, batch, warmup, weight_decay, seed: see
    `training.Training`. rates: to select from. width: of the pyramid. head: of the head's convolutions. Raises
    UserError for values out of range, images whose side the map does not divide, a split without images, a network
    without weights, and a loss that is not finite.
    """
    training = Training(NAME, epochs, batch, warmup, weight_decay, seed)
    training.check(train, rates, (width, head))
    given = encoder.scenes
    classes = 1 + len(given.classes)
    pictures, held, shown = given.pictures("train", train), given.pictures("validation"), given.pictures("test")
    tried = [_trained(encoder, pictures, training, rate, (width, head)) for rate in rates]
    truth_BSS = semantic(encoder, "validation", held)
    scores = [mean_iou(confusion(predicted(encoder, one, "validation", held), truth_BSS, classes)) for one in tried]
    best = scores.index(max(scores))
    found_BSS = predicted(encoder, tried[best], "test", shown)
    chosen = {"rate": rates[best], "validation_miou": scores[best], "scenes": len(pictures)}
    return segmented(given.name, given.classes, found_BSS, semantic(encoder, "test", shown), shown, chosen)


class SemanticFpn(nn.Module):
    """Forward of views [B, channels, S, S]: logits [B, C, h, w] on the finest level of the pyramid."""

    def __init__(self, pyramid: Pyramid, width: int, classes: int) -> None:
        """width: H."""
        super().__init__()
        self.pyramid = pyramid
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(pyramid.width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
            )
            for _ in pyramid.strides
        )
        self.classes = nn.Conv2d(width, classes, 1)

    def forward(self, views_BCSS: Tensor) -> Tensor:
        """See the class."""
        maps = [level(given) for level, given in zip(self.levels, self.pyramid(views_BCSS), strict=True)]
        sum_BHhw = maps[-1]
        for finer_BHhw in reversed(maps[:-1]):
            sum_BHhw = upsampled(sum_BHhw, finer_BHhw.shape[-1]) + finer_BHhw
        logits_BChw: Tensor = self.classes(sum_BHhw)
        return logits_BChw


def _trained(
    encoder: SceneEncoder, pictures: Sequence[Picture], training: Training, rate: float, sizes: tuple[int, int]
) -> nn.Module:
    channels, side = len(encoder.mean), pictures[0].height
    classes = 1 + len(encoder.scenes.classes)
    network = fresh(
        encoder,
        training,
        lambda backbone: SemanticFpn(Pyramid(backbone, sizes[0], channels=channels, side=side), sizes[1], classes),
    )

    def loss_of(chosen: Sequence[Picture], mirrored_B: Tensor) -> Tensor:
        truth_BSS = torch.from_numpy(semantic(encoder, "train", chosen)).to(encoder.device)
        logits_BChw = network(mirrored(encoder.views("train", chosen), mirrored_B))
        return pixel_loss(logits_BChw, mirrored(truth_BSS, mirrored_B))

    fit(network, loss_of, pictures, training, rate)
    return network


def pixel_loss(logits_BChw: Tensor, truth_BSS: Tensor) -> Tensor:
    """The mean over pixels of -log softmax at the pixel's class, of the logits of the cell that covers it; a scalar.

    Raises UserError where the map does not divide the image.
    """
    classes, rows, columns = logits_BChw.shape[1:]
    side = truth_BSS.shape[1]
    if side % rows or rows != columns:
        raise UserError(
            f"{NAME}: a map of {rows} x {columns} cells does not divide images of {side} px; use scenes of another side"
        )
    of_class = truth_BSS[:, None] == torch.arange(classes, device=truth_BSS.device)[:, None, None]
    shape = (len(truth_BSS), classes, rows, side // rows, columns, side // columns)
    share_BChw = of_class.view(shape).to(logits_BChw.dtype).mean(dim=(3, 5))
    return -(share_BChw * log_softmax(logits_BChw, dim=1)).sum(dim=1).mean()


def semantic(encoder: SceneEncoder, split: str, pictures: Sequence[Picture]) -> Integers:
    """The class at each pixel, int64 [B, S, S]."""
    return np.stack([encoder.scenes.semantic(split, picture) for picture in pictures])


@torch.no_grad()
def predicted(encoder: SceneEncoder, network: nn.Module, split: str, pictures: Sequence[Picture]) -> Integers:
    """The class with the highest upsampled logit at each pixel, the first of equals, int64 [B, S, S]."""
    found = []
    for start in range(0, len(pictures), _JUDGED):
        views_BCSS = encoder.views(split, pictures[start : start + _JUDGED])
        logits_BCSS = interpolate(network(views_BCSS), size=views_BCSS.shape[-2:], mode="bilinear", align_corners=False)
        found.append(logits_BCSS.cpu().numpy().argmax(axis=1))
    return np.concatenate(found)
