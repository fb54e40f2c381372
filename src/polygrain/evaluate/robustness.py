"""Robustness: a linear probe trained on clean images, tested on corrupted and on shifted ones.

The probe is that of the protocol `linear` on the vectors of the plain view, with its weight decay selected on clean
validation images. It is tested on the first test images, clean and in every kind of `corruptions` at five severities.

`{kind}/top1` is the mean over severities: an image's score is the share of severities at which it is classified right.
`corrupted/top1` is the mean over the 15 corruptions, `shifted/top1` over position, size and rotation. `clean/top1` is
of the same images. `relative` is `corrupted` over `clean`: what share of its accuracy a network keeps. A network that
is weak on clean images keeps a larger share easily, so look at both.

Legend: N images, D width + 1 (the last input is the constant 1, for the bias), C classes.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polygrain.evaluate.corruptions import CORRUPTIONS, SEVERITIES, SHIFTS, corrupt
from polygrain.evaluate.given import Encoder, as_channels, images_of
from polygrain.evaluate.linear import Rows, Solver, fit, select
from polygrain.evaluate.result import ACCURACY, Examples, Measure, Number, Result
from polygrain.evaluate.scaling import Doubles, Scaling
from polygrain.evaluate.store import Floats, Integers
from polygrain.provenance.errors import UserError
from polygrain.views.apply import plain_view

CLEAN = "clean"
RELATIVE = Measure("1", "higher", decimals=3)


def evaluate(
    encoder: Encoder, *, images: int, decays: list[float], iterations: int, tolerance: float, seed: int
) -> Result:
    """Train a probe on every data set and test it.

    images: of the test split, from its front. decays, iterations, tolerance: of the probe, as in `linear`. seed: of the
    corruptions, one for all runs. Raises UserError for values out of range.
    """
    if images < 1 or iterations < 1 or not tolerance > 0 or not decays or min(decays) < 0:
        raise UserError(
            f"robustness: images ({images}), iterations ({iterations}) and tolerance ({tolerance}) must be positive,"
            f" decays ({decays}) at least one number and none negative"
        )
    values, selected, examples = dict[str, Number](), {}, {}
    for name in encoder.datasets:
        probe = _Probe(encoder, name, sorted(set(decays), reverse=True), Solver(iterations, tolerance))
        selected[name] = {"decay": probe.decay, "validation_top1": probe.accuracy}
        positions = encoder.positions(name, "test")[:images]
        labels_N = encoder.labels(name, positions)
        hits = dict[str, Integers]()
        for kind, vectors_ND in _shown(encoder, name, positions, seed):
            hits[kind] = hits.get(kind, np.zeros(len(positions), np.int64)) + (probe.predict(vectors_ND) == labels_N)
        right: dict[str, Doubles] = {kind: hit_N / (1 if kind == CLEAN else SEVERITIES) for kind, hit_N in hits.items()}
        right["corrupted"] = np.mean([hits[kind] for kind in CORRUPTIONS], axis=0) / SEVERITIES
        right["shifted"] = np.mean([hits[kind] for kind in SHIFTS], axis=0) / SEVERITIES
        for kind, score_N in right.items():
            values[f"{name}/{kind}/top1"] = Number(float(score_N.mean()), ACCURACY)
            examples[f"{name}/{kind}"] = Examples(positions, {"top1": score_N})
        if right[CLEAN].any():
            values[f"{name}/relative"] = Number(float(right["corrupted"].mean() / right[CLEAN].mean()), RELATIVE)
    return Result(values, selected, examples)


class _Probe:
    """A linear probe on the vectors of plain views: `decay` selected on validation, and its `accuracy` there."""

    def __init__(self, encoder: Encoder, name: str, decays: list[float], solver: Solver) -> None:
        train_ND, labels_N = _plain(encoder, name, "train")
        self.scaling = Scaling(train_ND)
        rows = Rows(self._inputs(train_ND), torch.from_numpy(labels_N))
        weights_RDC = fit(rows, decays, solver, encoder.classes(name))
        vectors_ND, labels_N = _plain(encoder, name, "validation")
        judges = Rows(self._inputs(vectors_ND), torch.from_numpy(labels_N))
        best = select([(weights_RDC, judges)])
        self.decay, self.weights = decays[best], weights_RDC[best]
        self.accuracy = float((self.predict(vectors_ND) == labels_N).mean())

    def predict(self, vectors_ND: Floats) -> Integers:
        """Classes, int64 [N]."""
        return np.asarray((self._inputs(vectors_ND) @ self.weights).numpy().argmax(axis=1), dtype=np.int64)

    def _inputs(self, vectors_ND: Floats) -> Tensor:
        return torch.from_numpy(self.scaling.inputs(vectors_ND))


def _plain(encoder: Encoder, name: str, part: str) -> tuple[Floats, Integers]:
    """Vectors [N, D - 1] of a split's plain views, and labels [N]."""
    positions = encoder.positions(name, part)
    vectors = [views.pooled.cpu().numpy() for _, views in encoder.encoded(name, positions)]
    return np.concatenate(vectors), encoder.labels(name, positions)


def _shown(encoder: Encoder, name: str, positions: Integers, seed: int) -> Iterator[tuple[str, Floats]]:
    """Kind (`clean` once, every other one at each severity) and vectors [N, D - 1] of the images at `positions`."""
    parts = [positions[start : start + encoder.batch] for start in range(0, len(positions), encoder.batch)]
    loaded = images_of(encoder.datasets[name], parts, encoder.size, encoder.resize, encoder.workers)
    batches = [batch.numpy() for batch in loaded]

    def vectors(changed: list[npt.NDArray[np.uint8]]) -> Floats:
        return np.concatenate([_encode(encoder, torch.from_numpy(batch)) for batch in changed])

    yield CLEAN, vectors(batches)
    for kind in (*CORRUPTIONS, *SHIFTS):
        for severity in range(1, SEVERITIES + 1):
            both = zip(batches, parts, strict=True)
            yield kind, vectors([corrupt(batch, kind, severity, seed, rows) for batch, rows in both])


@torch.no_grad()
def _encode(encoder: Encoder, images_BCHW: Tensor) -> Floats:
    """Vectors of uint8 images in a pass of the encoder's usual size, filled with copies of the last image."""
    filled = torch.cat([images_BCHW, images_BCHW[-1:].expand(encoder.batch - len(images_BCHW), -1, -1, -1)])
    shown = as_channels(filled, len(encoder.mean)).to(encoder.device)
    views = plain_view(shown, encoder.size, encoder.mean, encoder.std)
    return np.asarray(encoder.network(views).pooled[: len(images_BCHW)].cpu().numpy(), dtype=np.float32)
