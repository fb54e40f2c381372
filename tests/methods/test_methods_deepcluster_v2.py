"""DeepCluster-v2: whole epochs against a plain rewrite in numpy, gradient, images without a group."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_crops import (
    EPOCH,
    IMAGES,
    Array,
    Tiny,
    arrays,
    batch,
    clock,
    features,
    gradient,
    log_softmax,
    slope,
    two_layers,
    unit,
)
from torch import Tensor

from polygrain.config.project import Project
from polygrain.config.stages import stage_of
from polygrain.methods.deepcluster_v2 import METHOD, DeepClusterV2, classification
from polygrain.nn.batch_norm import synchronise
from polygrain.nn.clock import Clock
from polygrain.nn.random import permutation
from polygrain.provenance.errors import UserError
from polygrain.views.batch import Batch

PROJECT = Project(Path(__file__).resolve().parents[2])
SLOTS = IMAGES * EPOCH
BASE: dict[str, Any] = {
    "images": SLOTS + 2,
    "batch": IMAGES,
    "local_crops": 2,
    "groups": 4,
    "heads": 3,
    "kmeans_iterations": 5,
    "temperature": 0.2,
    "hidden": 7,
    "embedding": 3,
    "decay_all": False,
}


class Data:
    """A process's share of made-up data."""

    def __init__(self, rows: slice = slice(None)) -> None:
        self.rows = rows

    def augmented_pass(self, now: Clock, names: tuple[str, ...]) -> Iterator[Batch]:
        for step in range(now.steps_per_epoch):
            yield batch(now.epoch * now.steps_per_epoch + step, names, self.rows)

    def plain_pass(self, split: str = "pretrain") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        raise AssertionError("it looks at augmented images only")


def method(**values: Any) -> DeepClusterV2:
    torch.manual_seed(0)
    net = synchronise(DeepClusterV2(Tiny(), **{**BASE, **values})).double()
    assert isinstance(net, DeepClusterV2)
    return net


def nudge(net: DeepClusterV2, step: int) -> None:
    """In place of an optimiser: the network of each step is another one."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator))


def loss_of(net: DeepClusterV2, step: int, rows: slice = slice(None)) -> Tensor:
    """The loss of a step, after what the loop does before it."""
    if step % EPOCH == 0:
        net.start_epoch(clock(step), Data(rows))
    losses, _ = net(batch(step, net.views(clock(step)), rows), clock(step))
    assert list(losses) == ["group"]
    return losses["group"]


def embed(p: dict[str, Array], views: list[Tensor]) -> Array:
    return unit(two_layers(p, features(p, views))).reshape(len(views), len(views[0]), -1)


def nearest(rows: Array, centroids: Array) -> list[int]:
    return [int(np.argmax([row @ centroid for centroid in centroids])) for row in rows]


def kmeans(rows: Array, centroids: Array, rounds: int) -> tuple[Array, list[int]]:
    for _ in range(rounds):
        labels = np.array(nearest(rows, centroids))
        members = [rows[labels == k] for k in range(len(centroids))]
        centroids = np.stack([unit(m.mean(0)) if len(m) else centroids[k] for k, m in enumerate(members)])
    return centroids, nearest(rows, centroids)


class Rewrite:
    """The equations, with dictionaries from images to rows and groups."""

    def __init__(self, net: DeepClusterV2) -> None:
        self.net, p = net, arrays(net)
        self.memory: list[dict[int, Array]] = [{}, {}]
        for step in range(EPOCH):
            given = batch(step, ("global", "global"))
            for view in (0, 1):
                self.remember(view, given, embed(p, [given.views[view]])[0])

    def remember(self, view: int, given: Batch, rows: Array) -> None:
        self.memory[view] |= dict(zip(given.indices.tolist(), rows, strict=True))

    def group(self, epoch: int) -> None:
        self.groups, self.group_of = [], []
        for head in range(len(self.net.groups)):
            bank = self.memory[head % 2]
            rows = np.stack(list(bank.values()))
            start = rows[permutation(SLOTS, 3, "groups", epoch, head)[: self.net.groups.shape[1]].numpy()]
            centroids, labels = kmeans(rows, start, self.net.kmeans_iterations)
            self.groups.append(centroids)
            self.group_of.append(dict(zip(bank, labels, strict=True)))
        self.memory = [{}, {}]

    def loss(self, step: int, p: dict[str, Array]) -> float:
        given = batch(step, self.net.views(clock(step)))
        z, means = embed(p, given.views), []
        for groups, group_of in zip(self.groups, self.group_of, strict=True):
            log = log_softmax(z @ groups.T / self.net.temperature)
            known = [(i, group_of[image]) for i, image in enumerate(given.indices.tolist()) if image in group_of]
            means.append(np.mean([-log[s, i, k] for s in range(len(z)) for i, k in known]))
        return float(np.mean(means))

    def step(self, step: int, p: dict[str, Array]) -> None:
        given = batch(step, self.net.views(clock(step)))
        z = embed(p, given.views)
        for view in (0, 1):
            self.remember(view, given, z[view])


@pytest.mark.parametrize("values", [{}, {"local_crops": 0, "heads": 1, "kmeans_iterations": 0}], ids=str)
def test_whole_epochs_against_numpy(values: dict[str, Any]) -> None:
    """From the second epoch on, some images were left out of the one before."""
    net = method(**values)
    rewrite = Rewrite(net)
    unknown = 0
    for step in range(3 * EPOCH):
        if step % EPOCH == 0:
            rewrite.group(step // EPOCH)
        p = arrays(net)
        assert loss_of(net, step).item() == pytest.approx(rewrite.loss(step, p), rel=1e-10)
        rewrite.step(step, p)
        nudge(net, step)
        for head, groups in enumerate(rewrite.groups):
            np.testing.assert_allclose(net.groups[head].numpy(), groups, rtol=1e-9, atol=1e-12)
        unknown += sum(image not in rewrite.group_of[0] for image in batch(step, ()).indices.tolist())
    assert unknown > 0
    for view, bank in enumerate(rewrite.memory):
        assert net.memory_index.tolist() == list(bank)
        np.testing.assert_allclose(net.memory[view].numpy(), np.stack(list(bank.values())), rtol=1e-10)


def test_gradient_against_finite_differences() -> None:
    """Groups have none: their rows came from earlier networks."""
    net = method()
    rewrite = Rewrite(net)
    rewrite.group(0)
    p = arrays(net)
    measured, direction = slope(lambda q: rewrite.loss(0, q), p, list(p))
    loss = loss_of(net, 0)
    assert (gradient(net, loss) @ direction).item() == pytest.approx(measured, rel=1e-6)
    assert not net.groups.requires_grad
    assert not net.memory.requires_grad


def test_images_without_a_group_count_in_no_mean() -> None:
    net = method(local_crops=0)
    loss_of(net, 0)
    given = batch(0, net.views(clock(0)))
    whole, monitors = net(given, clock(0))
    assert monitors["known"].item() == 1.0
    strangers = given.indices.clone()
    strangers[2:] += 1000
    targets = net._targets(strangers)
    assert (targets[:, 2:] == -1).all()
    assert torch.equal(targets[:, :2], net._targets(given.indices)[:, :2])
    _, monitors = net(Batch(given.views, [], strangers, given.labels_for_monitoring), clock(0))
    assert monitors["known"].item() == pytest.approx(2 / IMAGES)
    none = net(Batch(given.views, [], given.indices - 1000, given.labels_for_monitoring), clock(0))[0]["group"]
    assert none.item() == 0.0
    assert whole["group"].item() > 0.0


def test_a_sum_counted_by_hand() -> None:
    """Two crops of two images, two groups along the axes, temperature 0.5; the second image has no group."""
    z = torch.tensor([[[1.0, 0.0], [0.6, 0.8]], [[0.0, 1.0], [1.0, 0.0]]], dtype=torch.float64)
    total, count = classification(z, torch.eye(2, dtype=torch.float64), torch.tensor([0, -1]), 0.5)
    assert total.item() == pytest.approx(np.log(1 + np.exp(-2)) + np.log(1 + np.exp(2)), rel=1e-12)
    assert count.item() == 2


def test_collapse_gives_ln_k() -> None:
    net = method()
    loss_of(net, 0)
    net.groups = net.groups[:, :1].expand(-1, 4, -1).contiguous()
    assert net(batch(0, net.views(clock(0))), clock(0))[0]["group"].item() == pytest.approx(np.log(4), rel=1e-12)


def test_order_and_labels_do_not_matter() -> None:
    net = method()
    loss_of(net, 0)
    names = net.views(clock(1))
    loss = net(batch(1, names), clock(1))[0]["group"]
    shuffled = net(batch(1, names, torch.tensor([4, 2, 0, 5, 1, 3])), clock(1))[0]["group"]
    torch.testing.assert_close(shuffled, loss, rtol=1e-12, atol=0)
    given = batch(1, names)
    other = Batch(given.views, [], given.indices, 2 - given.labels_for_monitoring)
    assert torch.equal(net(other, clock(1))[0]["group"], loss)
    assert METHOD.uses_labels is False


def test_monitors_against_counting() -> None:
    net = method(local_crops=0)
    loss_of(net, 0)
    given = batch(0, net.views(clock(0)))
    p = arrays(net)
    monitors = net(given, clock(0))[1]
    assert not any(value.requires_grad for value in monitors.values())
    near = nearest(embed(p, given.views)[0], net.groups[0].numpy())
    target, labels = net._targets(given.indices)[0].tolist(), given.labels_for_monitoring.tolist()
    assert monitors["agreement"].item() == pytest.approx(np.mean(np.equal(near, target)))
    pairs = [(i, j) for i in range(IMAGES) for j in range(i) if target[i] == target[j]]
    alike = sum(labels[i] == labels[j] for i, j in pairs)
    assert monitors["purity"].item() == pytest.approx(alike / max(len(pairs), 1))


def test_what_is_trained_and_what_is_carried() -> None:
    net = method()
    assert {g["name"]: len(g["params"]) for g in net.parameter_groups()} == {"decayed": 3, "not_decayed": 6}
    assert {g["name"]: len(g["params"]) for g in method(decay_all=True).parameter_groups()} == {"decayed": 9}
    kept = {name.partition(".")[0] for name in net.state_dict()}
    assert kept == {"backbone", "projector", "memory", "memory_index", "groups", "grouped_index", "group_of"}


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=f"groups {SLOTS + 1} must be from 1 to the {SLOTS} images"):
        method(groups=SLOTS + 1)
    with pytest.raises(UserError, match="heads 0 at least 1"):
        method(heads=0)
    with pytest.raises(UserError, match=f"make an epoch of {SLOTS - IMAGES} images, but it has 4 steps of 6"):
        method(images=SLOTS - 1).start_epoch(clock(0), Data())


def test_the_recipe_at_paper_scale_is_the_authors() -> None:
    """scripts/deepclusterv2_800ep_pretrain.sh of their code."""
    config: dict[str, Any] = stage_of(PROJECT, "pretrain", "runs/paper/imagenet-1k/deepcluster-v2/base/seed0").config
    schedule, values = config["optimizer"]["schedule"], config["method"]["values"]
    assert (config["optimizer"]["name"], config["pretrain"]["epochs"]) == ("larc", 800)
    assert config["pretrain"]["batch"] == 4096
    assert (schedule["start"], schedule["base"], schedule["final"]) == (0.3, 4.8, 0.0048)
    assert schedule["warmup"] * 800 == pytest.approx(10)
    assert (values["groups"], values["heads"], values["temperature"], values["local_crops"]) == (3000, 3, 0.1, 6)
    assert (values["kmeans_iterations"], values["hidden"], values["embedding"]) == (10, 2048, 128)
    recipes = config["augmentation"]
    assert (recipes["global"]["scale"], recipes["local"]["scale"]) == ([0.14, 1.0], [0.05, 0.14])
    assert config["method"]["encoder_passes"] == pytest.approx(6 + 18 * (96 / 224) ** 2, abs=0.01)


def run(rows: slice) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Two epochs, the second with images that have no group."""
    net = method()
    losses = []
    for step in range(2 * EPOCH):
        loss = loss_of(net, step, rows)
        losses.append(loss.detach())
        found = gradient(net, loss)
        nudge(net, step)
    return torch.stack(losses), found, dict(net.named_buffers())
