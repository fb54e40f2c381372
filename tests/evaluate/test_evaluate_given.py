"""What a protocol sees of the network and the images, by a plain reading of the packed files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from packing import pack

from polygrain.backbones.load import load_backbone
from polygrain.data.packed import open_packed
from polygrain.evaluate.given import Encoder
from polygrain.provenance.errors import UserError
from polygrain.views.apply import plain_view

BACKBONE = {"name": "resnet", "widths": [8, 16], "strides": [1, 2], "blocks": [1, 1], "stem_stride": 2}
SHOWN = {"size": 16, "resize": None, "batch": 32, "workers": 0, "train": 50, "validation": None, "test": None}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (90, 1, 20, 20))
    splits = {"train": np.arange(60), "validation": np.arange(60, 75), "test": np.arange(75, 90)}
    return pack(tmp_path / "data", images, np.arange(90) % 3, splits, classes=list("abc"))


@pytest.fixture
def encoder(root: Path) -> Encoder:
    torch.manual_seed(0)
    network = load_backbone(**BACKBONE, channels=1).eval().requires_grad_(False)
    data = open_packed(root)
    return Encoder(network, {"toy": data}, (data.mean, data.std), **SHOWN)


def test_positions_end_at_the_limit_and_subsets_are_prefixes(encoder: Encoder) -> None:
    assert encoder.positions("toy", "train").tolist() == list(range(50))
    assert encoder.positions("toy", "train", "all").tolist() == list(range(50))
    # shares of the 50 rows within the limit, not of the 60 of the split
    assert encoder.positions("toy", "train", "10%").tolist() == list(range(6))
    assert encoder.positions("toy", "train", "90%").tolist() == list(range(45))
    assert encoder.classes("toy") == 3
    assert encoder.labels("toy", np.array([4, 2])).tolist() == [1, 2]
    with pytest.raises(UserError, match="toy: no label subset 'some'; write all, or a share"):
        encoder.positions("toy", "train", "some")


def test_images_come_in_the_order_asked_for_as_the_encoder_sees_them(encoder: Encoder, root: Path) -> None:
    asked = np.array([70, 3, 89, *range(40)])
    stored = torch.from_numpy(np.load(root / "images.npy"))
    expected = plain_view(stored[asked], 16, [0.5], [0.3])
    batches = list(encoder.views("toy", asked))
    assert [len(rows) for rows, _ in batches] == [32, 11]
    assert np.concatenate([rows for rows, _ in batches]).tolist() == asked.tolist()
    torch.testing.assert_close(torch.cat([images for _, images in batches]), expected)
    with torch.no_grad():
        whole = encoder.network(expected)
    found = list(encoder.encoded("toy", asked))
    for part in ("tokens", "map", "pooled"):
        got = torch.cat([getattr(batch, part) for _, batch in found])
        assert not got.requires_grad
        torch.testing.assert_close(got, getattr(whole, part), rtol=0, atol=1e-5)
    assert [len(rows) for rows, _ in found] == [len(batch.pooled) for _, batch in found] == [32, 11]


def test_a_finetuned_copy_leaves_the_frozen_network_alone(encoder: Encoder) -> None:
    rows = encoder.positions("toy", "test")
    before = next(encoder.encoded("toy", rows))[1].pooled
    copy = encoder.finetunable()
    assert copy.training
    assert all(weight.requires_grad for weight in copy.parameters())
    optimiser = torch.optim.SGD(copy.parameters(), lr=1.0)
    for _, images in encoder.views("toy", rows):
        copy(images).pooled.sum().backward()
    optimiser.step()
    assert not any(weight.requires_grad for weight in encoder.network.parameters())
    assert torch.equal(next(encoder.encoded("toy", rows))[1].pooled, before)
