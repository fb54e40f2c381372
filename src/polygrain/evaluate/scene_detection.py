"""Detection and instance segmentation of scenes: the network, fine-tuned as the trunk of a small Mask R-CNN.

The network's copy, a feature pyramid and the heads train together by AdamW, with a warm-up and half a cosine, on scenes
that are mirrored half of the time. One declared rate for all runs: a search per run would take several times as long.
The last step is judged, once, on the test scenes: average precision by COCO's own library, over classes and limits of
IoU. Average precision has no score of one scene, so `box-iou` and `mask-iou` stand beside it: the mean over a scene's
objects of the best overlap of a sure detection of their class.

An object without a visible pixel, or with a box of no area, is no object here, neither in training nor in judging.

Legend: B images, C channels, S side, R objects of one image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polygrain.data.dense.coco import Picture
from polygrain.evaluate.result import ACCURACY, Examples, Number, Result
from polygrain.evaluate.scenes.average_precision import KINDS, Found, average_precisions, best_overlaps
from polygrain.evaluate.scenes.detector import Detector, Heads
from polygrain.evaluate.scenes.given import SceneEncoder, SceneSet
from polygrain.evaluate.scenes.pyramid import Pyramid
from polygrain.nn.optim import build, set_learning_rate, split_by_decay, with_own_rate
from polygrain.nn.random import hash64, permutation, uniform
from polygrain.nn.schedules import learning_rate
from polygrain.provenance.errors import UserError


@dataclass(frozen=True)
class Training:
    """How the detector is trained."""

    epochs: int
    batch: int
    """Scenes of a step."""
    rate: float
    """Of pyramid and heads, at its highest."""
    trunk_factor: float
    """The network's rate in rates of the others."""
    weight_decay: float
    warmup: float
    """Share of the steps in which the rate rises."""
    flip: float
    """Probability that a scene is mirrored."""
    seed: int
    """Of order, flips, draws and new layers; one for all runs."""


def evaluate(
    encoder: SceneEncoder,
    *,
    train: int,
    epochs: int,
    batch: int,
    rate: float,
    trunk_factor: float,
    weight_decay: float,
    warmup: float,
    flip: float,
    width: int,
    left_out: int,
    anchors: list[float],
    proposals: int,
    drawn: int,
    box_side: int,
    hidden: int,
    mask_layers: list[int],
    mask_side: int,
    detections: int,
    sure: float,
    seed: int,
) -> Result:
    """Train a detector and judge it on the test scenes.

    train: scenes from the front of the train split, at most. epochs, batch, rate, trunk_factor, weight_decay, warmup,
    flip, seed: see `Training`. width, left_out: of the pyramid, see `Pyramid`. anchors to detections: see `Heads`.
    sure: least score of a detection that counts for the overlaps by scene. Raises UserError for values out of range, a
    network that cannot be fine-tuned on these views, a split without images, a test split without an object, and a loss
    that is not finite.
    """
    training = Training(epochs, batch, rate, trunk_factor, weight_decay, warmup, flip, seed)
    heads = Heads(anchors, proposals, drawn, box_side, hidden, mask_layers, mask_side, detections)
    _check(train, training, heads, width, left_out)
    scenes = encoder.scenes
    pictures, tested = scenes.pictures("train", train), scenes.pictures("test")
    detector = new_detector(encoder, heads, width, left_out, seed)
    fit(detector, encoder, pictures, training)
    found = detect(detector, encoder, "test", tested)
    return judged(scenes, tested, found, detections, sure)


def _check(train: int, training: Training, heads: Heads, width: int, left_out: int) -> None:
    sizes = [width, heads.proposals, heads.drawn, heads.box_side, heads.hidden, *heads.mask_layers, heads.mask_side]
    least = min([train, training.epochs, training.batch, *sizes, heads.detections])
    if least < 1 or not heads.mask_layers or min(training.rate, training.trunk_factor) <= 0 or left_out < 0:
        raise UserError(
            f"scene-detection: train ({train}), epochs ({training.epochs}), batch ({training.batch}), rate"
            f" ({training.rate}), trunk_factor ({training.trunk_factor}) and the sizes of pyramid and heads must be"
            f" positive, left_out ({left_out}) not negative"
        )
    if not heads.anchors or min(heads.anchors) <= 0:
        raise UserError(f"scene-detection: anchors ({heads.anchors}) must be positive sides, at least one")


def new_detector(encoder: SceneEncoder, heads: Heads, width: int, left_out: int, seed: int) -> Detector:
    """A detector on a copy of the encoder's network. Raises UserError as `Pyramid` does."""
    view_BCSS = encoder.views("train", encoder.scenes.pictures("train", 1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(hash64(seed, "detection layers")))
        shape = {"channels": view_BCSS.shape[1], "side": view_BCSS.shape[-1]}
        pyramid = Pyramid(encoder.finetunable(), width, **shape, left_out=left_out)
        detector = Detector(pyramid, len(encoder.scenes.classes), heads)
    return detector.to(encoder.device)


def fit(detector: Detector, encoder: SceneEncoder, pictures: Sequence[Picture], training: Training) -> None:
    """Train in place; the detector is in evaluation mode afterwards."""
    trunk = {id(weight) for weight in detector.pyramid.network.parameters()}
    groups = with_own_rate(split_by_decay(detector), trunk, "trunk", training.trunk_factor)
    optimizer = build("adamw", groups, weight_decay=training.weight_decay, beta_1=0.9, beta_2=0.999, eps=1e-8)
    steps = training.epochs * -(-len(pictures) // training.batch)
    law = {"base": training.rate, "final": 0.0, "warmup": round(training.warmup * steps), "steps": steps}
    detector.train()
    for step, (views_BCSS, targets) in enumerate(_batches(encoder, pictures, training)):
        now = learning_rate("cosine", step=step, **law)  # type: ignore[arg-type]
        set_learning_rate(optimizer, base=training.rate, scheduled=now)
        optimizer.zero_grad()
        losses = detector.losses(views_BCSS, targets, (training.seed, step))
        loss = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(loss):
            raise UserError(f"scene-detection: the loss is not finite at step {step}; lower the rate {training.rate}")
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    detector.eval()


def _batches(
    encoder: SceneEncoder, pictures: Sequence[Picture], training: Training
) -> Iterator[tuple[Tensor, list[dict[str, Tensor]]]]:
    """Views [B, C, S, S] and targets of every step, some mirrored; the last batch of an epoch may be shorter."""
    for epoch in range(training.epochs):
        key = (training.seed, "detection", epoch)
        order = permutation(len(pictures), *key)
        mirrored = (uniform(*key, "flip", torch.arange(len(pictures))) < training.flip).tolist()
        for places in torch.split(order, training.batch):
            chosen = [pictures[place] for place in places.tolist()]
            views_BCSS = encoder.views("train", chosen)
            flips = [mirrored[place] for place in places.tolist()]
            views_BCSS[flips] = views_BCSS[flips].flip(-1)
            yield (
                views_BCSS,
                [
                    target(truth(encoder.scenes, "train", picture), flip, encoder.device)
                    for picture, flip in zip(chosen, flips, strict=True)
                ],
            )


def truth(scenes: SceneSet, split: str, picture: Picture) -> Found:
    """The known objects of a scene: those with a pixel and a box of some area."""
    masks = [scenes.splits[split].mask(picture, instance) for instance in picture.instances]
    kept = [
        place
        for place, (one, mask) in enumerate(zip(picture.instances, masks, strict=True))
        if mask.any() and min(one.box[2:]) > 0
    ]
    objects = [picture.instances[place] for place in kept]
    boxes = np.array([one.box for one in objects], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = np.array([scenes.label(one) for one in objects], np.int64)
    shown = np.array([masks[place] for place in kept], np.bool_).reshape(-1, picture.height, picture.width)
    return Found(boxes, labels, shown, np.ones(len(kept)), np.array([one.crowd for one in objects], np.bool_))


def target(known: Found, flip: bool, device: str) -> dict[str, Tensor]:
    """What `Detector.losses` takes of a scene, without crowds, mirrored where told."""
    boxes, masks = known.boxes[~known.crowd], known.masks[~known.crowd]
    if flip:
        side = masks.shape[-1]
        boxes = np.stack([side - boxes[:, 2], boxes[:, 1], side - boxes[:, 0], boxes[:, 3]], axis=1)
        masks = masks[:, :, ::-1]
    found = {
        "boxes": torch.from_numpy(boxes.astype(np.float32)),
        "labels": torch.from_numpy(known.labels[~known.crowd]),
        "masks": torch.from_numpy(masks.astype(np.uint8)),
    }
    return {name: value.to(device) for name, value in found.items()}


def detect(detector: Detector, encoder: SceneEncoder, split: str, pictures: Sequence[Picture]) -> list[Found]:
    """What the detector finds in each scene of a split, shown one by one, so that no scene's bits depend on others."""
    found = []
    for picture in pictures:
        (one,) = detector(encoder.views(split, [picture]))
        boxes, labels, scores, masks = (one[part].cpu().numpy() for part in ("boxes", "labels", "scores", "masks"))
        floats = boxes.astype(np.float64), scores.astype(np.float64)
        found.append(Found(floats[0], labels, masks, floats[1], np.zeros(len(labels), np.bool_)))
    return found


def judged(scenes: SceneSet, pictures: Sequence[Picture], found: Sequence[Found], most: int, sure: float) -> Result:
    """Average precisions over the test scenes, and by scene the best overlaps; a scene without object has none."""
    known = [truth(scenes, "test", picture) for picture in pictures]
    numbers = average_precisions(known, found, most)
    rows = [best_overlaps(one, other, sure) for one, other in zip(known, found, strict=True)]
    shown = [place for place, one in enumerate(known) if (~one.crowd).any()]
    scores = {f"{kind}-iou": np.array([rows[place][kind] for place in shown]) for kind in KINDS}
    numbers |= {metric: float(score.mean()) for metric, score in scores.items()}
    index = np.array([pictures[place].id for place in shown], dtype=np.int64)
    values = {f"{scenes.name}/{metric}": Number(value, ACCURACY) for metric, value in numbers.items()}
    return Result(values, examples={scenes.name: Examples(index, scores)})
