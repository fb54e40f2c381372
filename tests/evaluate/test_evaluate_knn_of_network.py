"""Nearest neighbours by another network of the checkpoint: the features are those of that network, and no other's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_evaluate_features import RESNET, config, prefixed, write_checkpoint, write_packed

from polygrain.backbones.load import load_backbone
from polygrain.evaluate import knn
from polygrain.evaluate.features import extract
from polygrain.evaluate.given import Encoder, encoder_of
from polygrain.evaluate.knn_of_network import evaluate
from polygrain.evaluate.store import Features
from polygrain.provenance.errors import UserError

VALUES: dict[str, Any] = {
    "spaces": ["raw", "whitened"], "k": [3, 9], "temperature": 0.05, "shrinkage": 0.001, "byte_budget": 1 << 20,
}  # fmt: skip
STUDENT, TEACHER = "student.backbone.", "teacher.backbone."


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"grey": write_packed(tmp_path_factory.mktemp("data") / "grey", channels=1, size=16, seed=1)}


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """A student, its teacher, and parts of a method that are no network of this backbone."""
    found = {"teacher.head.weight": torch.zeros(3), "queue.rows": torch.zeros(2, 2)}
    for seed, prefix in enumerate((STUDENT, TEACHER)):
        torch.manual_seed(seed)
        found |= prefixed(load_backbone(**RESNET, channels=1), prefix)
    return found


def opened(checkpoint: Path, data: dict[str, Path]) -> Encoder:
    return encoder_of({**config(), "datasets": ["grey"]}, checkpoint, data)


def test_the_student_has_the_numbers_that_its_own_features_have(data, tensors, tmp_path: Path) -> None:
    scores = {}
    for prefix in (STUDENT, TEACHER):
        checkpoint = write_checkpoint(tmp_path / f"{prefix}safetensors", tensors, encoder=prefix)
        extract({**config(), "datasets": ["grey"]}, checkpoint, data, tmp_path / "features")
        scores[prefix] = knn.evaluate(Features.load(tmp_path / "features"), **VALUES)
    encoder = opened(tmp_path / f"{TEACHER}safetensors", data)
    for prefix, expected in scores.items():
        found = evaluate(encoder, prefix=prefix, **VALUES)
        assert (found.values, found.selected) == (expected.values, expected.selected)
        for key in ("grey", "grey/whitened"):
            np.testing.assert_array_equal(found.examples[key].predicted, expected.examples[key].predicted)
    predicted = [scores[prefix].examples["grey"].predicted for prefix in (STUDENT, TEACHER)]
    assert not np.array_equal(*predicted)  # or the case would not tell them apart


def test_a_prefix_without_a_network_names_those_that_there_are(data, tensors, tmp_path: Path) -> None:
    encoder = opened(write_checkpoint(tmp_path / "c.safetensors", tensors, encoder=TEACHER), data)
    with pytest.raises(
        UserError, match=r"c\.safetensors: no network 'momentum\.'; it has student\.backbone\., teacher\.backbone\.$"
    ):
        evaluate(encoder, prefix="momentum.", **VALUES)
    with pytest.raises(UserError, match=r"c\.safetensors: does not fit backbone resnet"):
        evaluate(encoder, prefix="teacher.", **VALUES)


def test_an_encoder_of_no_checkpoint_has_no_other_network(data, tensors, tmp_path: Path) -> None:
    encoder = opened(write_checkpoint(tmp_path / "c.safetensors", tensors, encoder=TEACHER), data)
    bare = Encoder(encoder.network, encoder.datasets, (encoder.mean, encoder.std), **config()["features"])
    with pytest.raises(UserError, match=r"no other network 'student\.backbone\.'"):
        evaluate(bare, prefix=STUDENT, **VALUES)
