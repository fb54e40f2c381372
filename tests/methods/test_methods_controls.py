"""The controls: supervised, random initialisation, principal components; and what every method's YAML must say."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from polygrain.backbones.contract import Backbone, Encoded, from_map
from polygrain.backbones.load import load_backbone
from polygrain.config.signature import constant, values_model
from polygrain.methods.load import load_method
from polygrain.methods.pca import PCA, moments, principal_components, vote_accuracy
from polygrain.methods.random import Random
from polygrain.methods.supervised import Supervised
from polygrain.nn.clock import Clock
from polygrain.nn.optim import OPTIMIZERS, build
from polygrain.nn.schedules import learning_rate
from polygrain.provenance.errors import UserError
from polygrain.views.batch import Batch

CLOCK = Clock(seed=0, step=0, steps=0, steps_per_epoch=5)
PARAMS = Path(__file__).parents[2] / "params"


class Mean(Backbone):
    """Channel means: a backbone whose features are known."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 3

    def forward(self, x: Tensor) -> Encoded:
        return from_map(x)


def labelled(images: int = 7) -> Batch:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, 3, 4, 4, dtype=torch.float64, generator=generator)
    return Batch([x], [], torch.arange(images), torch.arange(images) % 4)


# --- supervised


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_supervised_is_cross_entropy_of_a_linear_map(smoothing: float) -> None:
    torch.manual_seed(0)
    net, given = Supervised(Mean(), classes=4, smoothing=smoothing).double(), labelled()
    losses, monitors = net(given, CLOCK)
    weight, bias = (p.detach().numpy() for p in net.classifier.parameters())
    logits = given.views[0].mean((2, 3)).numpy() @ weight.T + bias
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    labels = given.labels_for_monitoring.numpy()
    target = np.eye(4)[labels] * (1 - smoothing) + smoothing / 4
    assert losses["class"].item() == pytest.approx(-(target * log_p).sum(1).mean(), rel=1e-12)
    assert monitors["accuracy"].item() == pytest.approx((logits.argmax(1) == labels).mean())
    assert not monitors["accuracy"].requires_grad
    assert net.views(CLOCK) == ("global",)
    assert Supervised.uses_labels is True
    assert {group["name"]: len(group["params"]) for group in net.parameter_groups()} == {"decayed": 1, "not_decayed": 1}


def test_supervised_refuses_a_label_beyond_its_classes() -> None:
    with pytest.raises(UserError, match=r"method\.values\.classes is 3 but a label is 3"):
        Supervised(Mean(), classes=3, smoothing=0.0).double()(labelled(), CLOCK)


# --- random


def test_random_is_the_backbone_as_made() -> None:
    torch.manual_seed(0)
    backbone = nn.Conv2d(1, 2, 3)
    net = Random(backbone, calibrated=False)  # type: ignore[arg-type]
    assert list(net.state_dict()) == ["backbone.weight", "backbone.bias"]
    assert torch.equal(net.state_dict()["backbone.weight"], backbone.weight)
    assert net.views(CLOCK) == ()
    assert net.parameter_groups() == []
    with pytest.raises(UserError, match="0 steps"):
        net(labelled(), CLOCK)


class PlainPasses:
    """Plain passes over fixed images, in batches of 8; each pass is counted."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.count = images, 0

    def plain_pass(self, split: str = "pretrain") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        self.count += 1
        for part in self.images.split(8):
            yield part, torch.arange(len(part)), torch.zeros(len(part))


def test_calibrated_batch_norm_has_the_mean_statistics_of_the_batches_and_weights_do_not_move() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
    start = {name: value.clone() for name, value in backbone.state_dict().items()}
    net = Random(backbone.double(), calibrated=True).train()  # type: ignore[arg-type]
    data = PlainPasses(2.0 + 3.0 * torch.randn(24, 1, 8, 8, dtype=torch.float64))
    net.start_epoch(CLOCK, data)  # type: ignore[arg-type]
    assert data.count == 1
    first, second = backbone[1], backbone[4]
    seen = [backbone[0](part) for part in data.images.split(8)]
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0)
    torch.testing.assert_close(first.running_mean, mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(first.running_var, variance, rtol=1e-12, atol=0)
    normed = [nn.functional.batch_norm(x, None, None, training=True).relu() for x in seen]
    deeper = torch.stack([backbone[3](x).mean((0, 2, 3)) for x in normed]).mean(0)
    torch.testing.assert_close(second.running_mean, deeper, rtol=1e-12, atol=0)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, start[name].to(value)) or "running" in name or "tracked" in name


def test_what_is_not_calibrated_sees_no_image() -> None:
    data = PlainPasses(torch.ones(8, 1, 4, 4))
    net = Random(nn.Sequential(nn.BatchNorm2d(1)), calibrated=False)  # type: ignore[arg-type]
    net.start_epoch(CLOCK, data)  # type: ignore[arg-type]
    assert data.count == 0
    assert net.backbone[0].running_mean.item() == 0.0  # type: ignore[index]


# --- pca

SIDE = 4


def images(count: int, seed: int, informative: int = 3) -> tuple[Tensor, Tensor]:
    """Images whose class moves them along `informative` fixed directions; the rest is small noise."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(9))).Q[:informative]
    labels = torch.arange(count) % 5
    centres = torch.randn(5, informative, generator=torch.Generator().manual_seed(5)) * 4
    flat = centres[labels] @ directions + 0.8 * torch.randn(count, 16, generator=generator) + 2.0
    return flat.view(count, 1, SIDE, SIDE), labels


DATA = {"pretrain": images(120, 0), "validation": images(60, 1)}


class Passes:
    def __init__(self, batch: int = 32) -> None:
        self.batch = batch

    def plain_pass(self, split: str = "pretrain") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        x, y = DATA[split]
        for start in range(0, len(x), self.batch):
            part = slice(start, start + self.batch)
            yield x[part], torch.arange(start, start + len(x[part])), y[part]


def pixels(width: int = 12) -> Backbone:
    return load_backbone("pixels", channels=1, image_size=SIDE, width=width)


def fitted(dimensions: list[int], k: int = 5, batch: int = 32) -> PCA:
    net = PCA(pixels(), dimensions=dimensions, k=k)
    net.start_epoch(CLOCK, Passes(batch))
    return net


def test_moments_are_exact() -> None:
    x = DATA["pretrain"][0]
    mean, covariance = moments(lambda: iter(x.split(50)))
    flat = x.flatten(1).double().numpy()
    np.testing.assert_allclose(mean.numpy(), flat.mean(0), rtol=1e-14)
    np.testing.assert_allclose(covariance.numpy(), np.cov(flat.T, bias=True), atol=1e-13)


def test_components_are_eigenvectors_with_a_fixed_sign() -> None:
    covariance = torch.from_numpy(np.cov(DATA["pretrain"][0].flatten(1).double().numpy().T))
    vectors = principal_components(covariance, 6)
    values = np.sort(np.linalg.eigvalsh(covariance.numpy()))[::-1][:6]
    torch.testing.assert_close(covariance @ vectors, vectors * torch.from_numpy(values.copy()), atol=1e-12, rtol=0)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(6).double(), atol=1e-12, rtol=0)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    assert bool((largest > 0).all())


def test_vote_counts_neighbours() -> None:
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [0.2, 1.0]])
    labels = torch.tensor([3, 3, 1, 1, 0])
    queries = torch.tensor([[1.0, 0.05], [0.0, 1.0], [0.25, 1.0]])
    assert vote_accuracy(queries, torch.tensor([3, 1, 0]), bank, labels, 1) == 1.0
    assert vote_accuracy(queries, torch.tensor([3, 1, 1]), bank, labels, 3) == 1.0
    # Two neighbours, one vote each: the smaller label wins.
    assert vote_accuracy(queries[2:], torch.tensor([0]), bank, labels, 2) == 1.0


def test_fit_projects_as_numpy_does_and_keeps_the_width() -> None:
    net = fitted([1, 3, 8])
    chosen = int(net.dimension)
    x = DATA["pretrain"][0].flatten(1).double().numpy()
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    expected = (DATA["validation"][0].flatten(1).double().numpy() - x.mean(0)) @ vectors[:, ::-1][:, :chosen]
    features = net.backbone(DATA["validation"][0]).pooled
    assert features.shape == (60, 12)
    np.testing.assert_allclose(np.abs(features[:, :chosen].numpy()), np.abs(expected), atol=1e-5)
    assert float(features[:, chosen:].abs().max()) == 0.0
    assert values[-1] > values[0]


def test_the_number_is_chosen_by_validation_accuracy() -> None:
    net = fitted([1, 3, 8])
    features, bank = (net_features(fitted([8]), split) for split in ("validation", "pretrain"))
    scores = {
        d: vote_accuracy(features[:, :d], DATA["validation"][1], bank[:, :d], DATA["pretrain"][1], 5) for d in (1, 3, 8)
    }
    assert scores[1] < max(scores.values())
    assert int(net.dimension) == max(scores, key=lambda d: (scores[d], -d))


def net_features(net: PCA, split: str) -> Tensor:
    return net.backbone(DATA[split][0]).pooled


def test_the_choice_asks_validation_images_of_a_bank_of_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def record(queries: Tensor, truth: Tensor, bank: Tensor, labels: Tensor, k: int) -> float:
        asked.append((tuple(queries.shape), len(truth), tuple(bank.shape), len(labels), k))
        return 0.5

    monkeypatch.setattr("polygrain.methods.pca.vote_accuracy", record)
    fitted([8, 2], k=7)
    assert asked == [((60, 2), 60, (120, 2), 120, 7), ((60, 8), 60, (120, 8), 120, 7)]


def test_equal_accuracies_go_to_the_smaller_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polygrain.methods.pca.vote_accuracy", lambda *arguments: 0.5)
    assert int(fitted([8, 2, 4]).dimension) == 2


def test_fitting_happens_once_and_survives_a_checkpoint() -> None:
    net = fitted([3, 8])
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def never(split: str = "pretrain") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        raise AssertionError("the data were read again")

    net.start_epoch(CLOCK, never)
    again = PCA(pixels(), dimensions=[3, 8], k=5)
    again.load_state_dict(before)
    again.start_epoch(CLOCK, never)
    assert all(torch.equal(before[name], value) for name, value in again.state_dict().items())
    assert sorted(before) == ["backbone.components", "backbone.mean", "dimension"]


def test_two_fits_give_the_same_bits() -> None:
    assert all(torch.equal(a, b) for a, b in zip(fitted([8]).buffers(), fitted([8]).buffers(), strict=True))


def test_pca_asks_for_pixels_and_fitting_dimensions() -> None:
    with pytest.raises(UserError, match="backbone 'pixels'"):
        PCA(Mean(), dimensions=[2], k=1)
    for dimensions in ([], [0], [13]):
        with pytest.raises(UserError, match=r"must lie in 1\.\.12"):
            PCA(pixels(), dimensions=dimensions, k=1)
    with pytest.raises(UserError, match="0 steps"):
        PCA(pixels(), dimensions=[2], k=1)(labelled(), CLOCK)
    assert PCA.uses_labels is True
    assert PCA(pixels(), dimensions=[2], k=1).parameter_groups() == []


# --- YAML files


@pytest.mark.parametrize(("name", "units"), [("simclr", 6), ("supervised", 3), ("random", 0), ("pca", 0)])
def test_yaml_fits_the_constructor(name: str, units: int) -> None:
    text = (PARAMS / "method" / f"{name}.yaml").read_text()
    content = yaml.safe_load(text)
    assert text.startswith("#")
    assert sorted(content) == ["encoder_passes", "grains", "mode", "name", "start_passes", "values"]
    assert (content["name"], content["encoder_passes"], content["start_passes"]) == (name, units, 0)
    module = f"polygrain.methods.{name}"
    values_model(module, constant(module, "METHOD")).of(name, content["values"])
    backbone = pixels(16) if name == "pca" else Mean()
    values = {**content["values"], "dimensions": [2, 4]} if name == "pca" else content["values"]
    method = load_method(name, backbone, values)
    assert method.encoder_name == "backbone."
    assert sum(view == "global" for view in method.views(CLOCK)) * 3 == units


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_optimizer_yaml_builds(name: str) -> None:
    content = yaml.safe_load((PARAMS / "optimizer" / f"{name}.yaml").read_text())
    assert sorted(content) == ["clip", "final_weight_decay", "name", "schedule", "values"]
    values_model("polygrain.nn.optim", OPTIMIZERS[content["name"]].__name__).of(name, content["values"])
    group = {"params": [nn.Parameter(torch.ones(2))], "name": "a", "decay": True}
    build(content["name"], [group], **content["values"])
    schedule = dict(content["schedule"])
    warmup = round(schedule.pop("warmup") * 100)
    rates = [learning_rate(**schedule, warmup=warmup, step=t, steps=100) for t in range(100)]
    assert max(rates) == schedule["base"]
    assert rates[-1] < 0.01 * schedule["base"]
