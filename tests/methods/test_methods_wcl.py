"""WCL as a module: against an oracle in loops, what moves and what does not, every switch, and two processes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
import yaml
from torch import Tensor, nn
from two_processes import WORLD, run_in_two

from polygrain.backbones.contract import Backbone, Encoded, from_map
from polygrain.backbones.load import load_backbone
from polygrain.config.signature import values_model
from polygrain.methods.wcl import METHOD, WCL
from polygrain.nn.batch_norm import synchronise
from polygrain.nn.clock import Clock
from polygrain.nn.graph import KMEANS_ROUNDS
from polygrain.provenance.errors import UserError
from polygrain.views.batch import Batch

PARAMS = Path(__file__).parents[2] / "params"
CLOCK = Clock(seed=0, step=0, steps=10, steps_per_epoch=5)
IMAGES, CROPS = 12, 3
BASE: dict[str, Any] = {
    "grains": ["instance", "weak-class"],
    "hidden": 7,
    "embedding": 4,
    "shared_head": False,
    "temperature": 0.3,
    "weak_temperature": 0.3,
    "instance_weight": 1.0,
    "weak_weight": 1.0,
    "nce_block": None,
    "keys_grad": False,
    "label_source": "swapped",
    "label_generator": "nearest",
    "label_k": None,
    "weak_phase": 0.3,
    "local_crops": 0,
    "local_neighbours": 2,
    "decay_shortcut_norms": False,
}
# One cell per switch and level that changes the loss or its gradient. Each differs from base in what it names.
CELLS: dict[str, dict[str, Any]] = {
    "base": {},
    "nce only": {"grains": ["instance"]},
    "swap only": {"grains": ["weak-class"]},
    "shared head": {"shared_head": True},
    "shared head, swap only": {"shared_head": True, "grains": ["weak-class"]},
    "weights": {"instance_weight": 0.5, "weak_weight": 2.0},
    "temperature": {"temperature": 0.1},
    "weak temperature": {"weak_temperature": 0.1},
    "own": {"label_source": "own"},
    "intersection": {"label_source": "intersection"},
    "instance head": {"label_source": "instance_head"},
    "instance head, swap only": {"label_source": "instance_head", "grains": ["weak-class"]},
    "joint": {"label_source": "joint"},
    "mutual": {"label_generator": "mutual"},
    "knn": {"label_generator": "knn", "label_k": 2},
    "direct": {"label_generator": "direct", "label_k": 3},
    "direct, joint": {"label_generator": "direct", "label_k": 3, "label_source": "joint"},
    "kmeans": {"label_generator": "kmeans", "label_k": 4},
    "classes": {"label_generator": "classes"},
    "keys grad": {"keys_grad": True},
    "block": {"nce_block": 5},
    "multi-crop": {"local_crops": CROPS},
    "multi-crop, plain": {"local_crops": CROPS, "local_neighbours": 0},
    "multi-crop, 5 neighbours": {"local_crops": CROPS, "local_neighbours": 5},
    "multi-crop, nce only": {"local_crops": CROPS, "grains": ["instance"]},
    "multi-crop, two temperatures": {"local_crops": 1, "temperature": 0.2, "weak_temperature": 0.5},
    "multi-crop, shared and weighted": {
        "local_crops": 1,
        "shared_head": True,
        "instance_weight": 0.5,
        "weak_weight": 2.0,
    },
}


class Tiny(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.width = 5
        self.convolution = nn.Conv2d(1, 5, 3, stride=2)
        self.norm = nn.BatchNorm2d(5)
        self.calls: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Encoded:
        self.calls.append(tuple(x.shape))
        return from_map(torch.relu(self.norm(self.convolution(x))))


def method(**changes: Any) -> WCL:
    torch.manual_seed(0)
    net = synchronise(WCL(Tiny(), **(BASE | changes))).double()
    assert isinstance(net, WCL)
    return net


def batch(images: int = IMAGES, crops: int = 0, rows: slice | Tensor = slice(None)) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, images, 1, 8, 8, dtype=torch.float64, generator=generator)
    small = torch.randn(crops, images, 1, 5, 5, dtype=torch.float64, generator=generator)
    labels, indices = torch.arange(images) % 3, torch.arange(images)
    return Batch([view[rows] for view in (*x, *small)], [], indices[rows], labels[rows])


def gradient_of(net: WCL, given: Batch) -> tuple[dict[str, Tensor], Tensor]:
    losses, _ = net(given, CLOCK)
    net.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
    return {name: value.detach() for name, value in losses.items()}, torch.cat([g.flatten() for g in gradient])


# --- the oracle: from pooled features on, in numpy and loops


def head(net: WCL, name: str, h: np.ndarray) -> np.ndarray:
    """Two times linear, batch norm over the rows given, ReLU; then linear; then unit length."""
    part = {key: value.detach().numpy() for key, value in net.heads[name].named_parameters()}
    for linear, norm in ((0, 1), (3, 4)):
        h = h @ part[f"{linear}.weight"].T + part[f"{linear}.bias"]
        h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5) * part[f"{norm}.weight"] + part[f"{norm}.bias"]
        h = np.maximum(h, 0)
    z = h @ part["6.weight"].T + part["6.bias"]
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def embed(net: WCL, given: Batch) -> dict[str, list[np.ndarray]]:
    """Rows of the two views and, if there are small crops, theirs as [V, B, p], for each head."""
    with torch.no_grad():
        h = [net.backbone(view).pooled.numpy() for view in given.views[:2]]
        if given.views[2:]:
            h.append(net.backbone(torch.cat(given.views[2:])).pooled.numpy())
    rows = {name: [head(net, name, x) for x in h] for name in net.heads}
    for found in rows.values():
        if len(found) == 3:
            found[2] = found[2].reshape(-1, len(given.indices), found[2].shape[1])
    return rows


def nearest(rows: np.ndarray, i: int, k: int) -> list[int]:
    others = [j for j in range(len(rows)) if j != i]
    return sorted(others, key=lambda j: -float(rows[i] @ rows[j]))[:k]


def groups(nodes: int, edges: list[tuple[int, int]]) -> np.ndarray:
    label = np.arange(nodes)
    for _ in range(nodes):
        for i, j in edges:
            label[i] = label[j] = min(label[i], label[j])
    return label


def by_kmeans(rows: np.ndarray, k: int) -> np.ndarray:
    centroids = rows[:k].copy()
    for _ in range(KMEANS_ROUNDS):
        label = (rows @ centroids.T).argmax(1)
        for c in range(k):
            if (label == c).any():
                mean = rows[label == c].mean(0)
                centroids[c] = mean / np.linalg.norm(mean)
    return (rows @ centroids.T).argmax(1)


def positives_of(rows: np.ndarray, generator: str, k: int | None) -> np.ndarray:
    nodes = len(rows)
    near = [nearest(rows, i, k if generator in ("knn", "direct") else 1) for i in range(nodes)]
    if generator == "direct":
        return np.array([[j in near[i] for j in range(nodes)] for i in range(nodes)])
    if generator == "kmeans":
        label = by_kmeans(rows, int(k or 0))
    else:
        edges = [(i, j) for i in range(nodes) for j in near[i] if generator != "mutual" or i in near[j]]
        label = groups(nodes, edges)
    return np.array([[label[i] == label[j] and i != j for j in range(nodes)] for i in range(nodes)])


def weak_positives(net: WCL, rows: dict[str, list[np.ndarray]], labels: np.ndarray) -> list[np.ndarray]:
    if net.label_generator == "classes":
        return [(labels[:, None] == labels) & ~np.eye(len(labels), dtype=bool)] * 2
    u = rows["instance" if net.label_source == "instance_head" else net.weak_head]
    if net.label_source == "joint":
        images = len(labels)
        both = positives_of(np.concatenate(u[:2]), net.label_generator, net.label_k)
        found = [both[:images, :images], both[images:, images:]]
    else:
        found = [positives_of(x, net.label_generator, net.label_k) for x in u[:2]]
    if net.label_source == "intersection":
        return [found[0] & found[1]] * 2
    return found if net.label_source == "own" else found[::-1]


def supervised(u: np.ndarray, keys: np.ndarray, positive: np.ndarray, t: float, own: bool) -> float:
    terms = []
    for i in range(len(u)):
        share = {a: np.exp(u[i] @ keys[a] / t) for a in range(len(keys)) if not (own and a == i)}
        total, wanted = sum(share.values()), [j for j in share if positive[i, j]]
        if wanted:
            terms.append(-sum(np.log(share[j] / total) for j in wanted) / len(wanted))
    return float(np.mean(terms)) if terms else 0.0


def instance_loss(z: np.ndarray, frozen: np.ndarray, t: float, block: int | None) -> float:
    total, images = 0.0, len(z) // 2
    for i in range(len(z)):
        share = {}
        for j in range(len(z)):
            foreign = block is not None and (i % images) // block != (j % images) // block
            if j != i:
                share[j] = np.exp(z[i] @ (frozen if foreign else z)[j] / t)
        total -= np.log(share[(i + images) % len(z)] / sum(share.values())) / len(z)
    return float(total)


def local_losses(net: WCL, rows: dict[str, list[np.ndarray]], frozen: dict[str, list[np.ndarray]]) -> Iterator[Any]:
    for grain, name, weight, t, k in (
        ("instance", "instance", net.instance_weight, net.temperature, 0),
        ("weak-class", net.weak_head, net.weak_weight, net.weak_temperature, net.local_neighbours),
    ):
        if grain not in net.grains:
            continue
        values = []
        for crop, start in zip(rows[name][2], frozen[name][2], strict=True):
            for bank in frozen[name][:2]:
                positive = np.eye(len(crop), dtype=bool)
                for i in range(len(crop)):
                    positive[i, np.argsort(-(bank @ start[i]))[:k]] = True
                values.append(supervised(crop, bank, positive, t, own=False))
        yield grain, weight * float(np.mean(values))


def oracle(net: WCL, given: Batch, frozen: dict[str, list[np.ndarray]] | None = None) -> dict[str, float]:
    """Terms by name. `frozen` are the rows that count where no gradient flows; the present ones if not given."""
    rows = embed(net, given)
    frozen = frozen or rows
    losses = {}
    if "instance" in net.grains:
        z, still = (np.concatenate(x["instance"][:2]) for x in (rows, frozen))
        losses["instance"] = net.instance_weight * instance_loss(z, still, net.temperature, net.nce_block)
    if "weak-class" in net.grains:
        u, keys = rows[net.weak_head], (rows if net.keys_grad else frozen)[net.weak_head]
        positive = weak_positives(net, frozen, given.labels_for_monitoring.numpy())
        terms = [supervised(u[v], keys[v], positive[v], net.weak_temperature, own=True) for v in (0, 1)]
        losses["weak-class"] = net.weak_weight * (terms[0] + terms[1]) / 2
    if net.local_crops:
        for grain, value in local_losses(net, rows, frozen):
            losses[grain] += value
    return losses


@pytest.mark.parametrize("cell", CELLS)
def test_values_against_the_oracle(cell: str) -> None:
    net = method(**CELLS[cell])
    given = batch(crops=net.local_crops)
    found, expected = gradient_of(net, given)[0], oracle(net, given)
    assert list(found) == list(expected) == net.grains
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-11), name


@pytest.mark.parametrize("cell", ["base", "keys grad", "block", "shared head", "direct", "multi-crop", "weights"])
def test_gradient_against_finite_differences_with_frozen_keys(cell: str) -> None:
    net = method(**CELLS[cell])
    given = batch(crops=net.local_crops)
    _, gradient = gradient_of(net, given)
    frozen = embed(net, given)
    start = nn.utils.parameters_to_vector(net.parameters()).detach()
    for seed in (2, 3):
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(gradient.shape, dtype=torch.float64, generator=generator)
        values = []
        for sign in (1, -1):
            nn.utils.vector_to_parameters(start + sign * 1e-6 * direction, net.parameters())
            values.append(sum(oracle(net, given, frozen).values()))
        assert (values[0] - values[1]) / 2e-6 == pytest.approx((gradient @ direction).item(), rel=1e-5)


def test_every_cell_differs_from_base_and_every_switch_has_one() -> None:
    given = batch(crops=CROPS)
    loss, gradient = gradient_of(method(), given)
    seen = {"hidden", "embedding", "weak_phase", "decay_shortcut_norms"}  # own tests below
    for name, changes in CELLS.items():
        seen |= set(changes)
        other_loss, other_gradient = gradient_of(method(**changes), given)
        differs = list(loss) != list(other_loss) or len(gradient) != len(other_gradient)
        assert differs or (gradient - other_gradient).abs().max() > 1e-4 or name == "base", name
    assert seen == set(BASE)


def test_stop_gradient_leaves_the_value_and_moves_the_gradient() -> None:
    for cell in ("keys grad", "block"):
        (loss, gradient), (other_loss, other) = (gradient_of(method(**CELLS[c]), batch()) for c in ("base", cell))
        assert loss == other_loss
        assert (gradient - other).abs().max() > 0.01 * gradient.abs().max()


def test_no_gradient_through_labels_bank_or_graph_head() -> None:
    net = method(**CELLS["instance head, swap only"])
    gradient_of(net, batch())
    assert all(p.grad is None for p in net.heads["instance"].parameters())
    net, small = method(local_crops=CROPS), list(batch(crops=CROPS).views[2:])
    banks = {name: (torch.randn(2, IMAGES, 4, dtype=torch.float64, requires_grad=True)) for name in net.heads}
    torch.stack(
        list(net._local_terms(small, {name: (bank[0], bank[1]) for name, bank in banks.items()}).values())
    ).sum().backward()
    assert all(bank.grad is None for bank in banks.values())
    assert all(p.grad is not None for p in net.heads["weak"].parameters())


def test_what_the_grains_do_not_need_is_not_built() -> None:
    assert set(method().heads) == {"instance", "weak"}
    assert set(method(grains=["instance"]).heads) == {"instance"}
    assert set(method(grains=["instance"], label_source="instance_head").heads) == {"instance"}
    assert set(method(grains=["weak-class"]).heads) == {"weak"}
    assert set(method(shared_head=True).heads) == {"instance"}
    assert set(method(**CELLS["instance head, swap only"]).heads) == {"instance", "weak"}
    assert set(method(grains=["weak-class"], label_generator="classes").heads) == {"weak"}
    for changes in ({"grains": []}, {"instance_weight": 0.0}, {"weak_weight": 0.0}):
        with pytest.raises(UserError, match="name at least one grain, and leave one out by grains"):
            method(**changes)


def test_the_trained_head_is_watched_under_the_plain_names() -> None:
    """A run is judged by `spread` and `rank`: those of phi, where g is absent or only makes the graph."""
    given = batch()
    for cell, name in (("base", "instance"), ("swap only", "weak"), ("instance head, swap only", "weak")):
        net = method(**CELLS[cell])
        u = embed(net, given)[name][0]
        expected = u.std(axis=0).mean() * np.sqrt(u.shape[1])
        assert net(given, CLOCK)[1]["spread"].item() == pytest.approx(expected, rel=1e-12), cell


def test_heads_are_three_linear_layers_with_biases_and_two_norms() -> None:
    shapes = {name: tuple(p.shape) for name, p in method().heads["weak"].named_parameters()}
    assert shapes == {
        "0.weight": (7, 5),
        "0.bias": (7,),
        "1.weight": (7,),
        "1.bias": (7,),
        "3.weight": (7, 7),
        "3.bias": (7,),
        "4.weight": (7,),
        "4.bias": (7,),
        "6.weight": (4, 7),
        "6.bias": (4,),
    }
    assert tuple(method(hidden=9, embedding=3).heads["instance"][6].weight.shape) == (3, 9)  # type: ignore[index]


def test_the_weak_phase_ends_with_the_warm_up() -> None:
    def names(step: int, steps: int, **changes: Any) -> tuple[str, ...]:
        return method(**changes).views(Clock(seed=0, step=step, steps=steps, steps_per_epoch=5))

    assert [names(step, 10)[0] for step in range(5)] == ["weak"] * 3 + ["global"] * 2
    assert [names(step, 37, weak_phase=0.1)[0] for step in range(6)] == ["weak"] * 4 + ["global"] * 2
    assert names(0, 10, weak_phase=0.0) == ("global", "global")
    assert names(9, 10, weak_phase=1.0) == ("weak", "weak")
    assert names(0, 10, local_crops=2) == ("weak", "weak", "local", "local")
    assert names(3, 10, local_crops=2) == ("global", "global", "local", "local")


def test_views_pass_one_after_the_other_and_buffers_move_in_that_order() -> None:
    net, given = method(local_crops=CROPS), batch(crops=CROPS)
    passes = [given.views[0], given.views[1], torch.cat(given.views[2:])]
    with torch.no_grad():
        mean, expected, h = torch.zeros(5).double(), torch.zeros(7).double(), []
        for x in passes:
            before = net.backbone.convolution(x)
            mean = 0.9 * mean + 0.1 * before.mean((0, 2, 3))
            h.append(torch.nn.functional.batch_norm(before, None, None, training=True).relu().mean((2, 3)))
        for x in (h[0], h[1], h[2]):
            expected = 0.9 * expected + 0.1 * net.heads["weak"][0](x).mean(0)  # type: ignore[index]
    net(given, CLOCK)
    assert [shape[0] for shape in net.backbone.calls] == [IMAGES, IMAGES, CROPS * IMAGES]
    torch.testing.assert_close(net.backbone.norm.running_mean, mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(net.heads["weak"][1].running_mean, expected, rtol=1e-12, atol=1e-14)  # type: ignore[index]
    counts = {int(value) for name, value in net.named_buffers() if name.endswith("num_batches_tracked")}
    assert counts == {3}


def test_a_shared_head_sees_each_view_once() -> None:
    net = method(shared_head=True)
    net(batch(), CLOCK)
    assert {int(v) for name, v in net.named_buffers() if name.endswith("num_batches_tracked")} == {2}


@pytest.mark.parametrize("cell", ["base", "knn", "own", "intersection", "keys grad", "joint", "multi-crop"])
def test_order_and_views_do_not_matter(cell: str) -> None:
    crops = CELLS[cell].get("local_crops", 0)
    given, order = batch(crops=crops), torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0))
    loss, gradient = gradient_of(method(**CELLS[cell]), given)
    swapped = [given.views[1], given.views[0], *given.views[2:]]
    turned = Batch(swapped, [], given.indices, given.labels_for_monitoring)
    for other in (batch(crops=crops, rows=order), turned):
        other_loss, other_gradient = gradient_of(method(**CELLS[cell]), other)
        for name, value in loss.items():
            torch.testing.assert_close(other_loss[name], value, rtol=1e-11, atol=0)
        torch.testing.assert_close(other_gradient, gradient, rtol=0, atol=1e-11)


def test_small_crops_are_exchangeable() -> None:
    given = batch(crops=CROPS)
    loss, _ = gradient_of(method(local_crops=CROPS), given)
    views = [*given.views[:2], *given.views[:1:-1]]
    other, _ = gradient_of(method(local_crops=CROPS), Batch(views, [], given.indices, given.labels_for_monitoring))
    for name, value in loss.items():
        torch.testing.assert_close(other[name], value, rtol=1e-12, atol=0)


def test_collapse_gives_the_analytic_values() -> None:
    net = method(local_crops=CROPS)
    for part in net.heads.values():
        nn.init.zeros_(part[6].weight)  # type: ignore[index]
    losses, monitors = net(batch(crops=CROPS), CLOCK)
    assert losses["instance"].item() == pytest.approx(np.log(2 * IMAGES - 1) + np.log(IMAGES), rel=1e-12)
    assert losses["weak-class"].item() == pytest.approx(np.log(IMAGES - 1) + np.log(IMAGES), rel=1e-12)
    assert monitors["local_instance"].item() == pytest.approx(np.log(IMAGES), rel=1e-12)
    assert monitors["local_weak-class"].item() == pytest.approx(np.log(IMAGES), rel=1e-12)
    assert monitors["spread"].item() == pytest.approx(0.0, abs=1e-12)
    assert monitors["component_max"].item() == IMAGES


def test_two_images_are_degenerate() -> None:
    net = method(grains=["weak-class"])
    losses, gradient = gradient_of(net, batch(2))
    assert losses["weak-class"].item() == pytest.approx(0.0, abs=1e-13)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def test_labels_and_indices_change_no_bit_unless_asked_for() -> None:
    given = batch()
    other = Batch(given.views, [], given.indices.flip(0), torch.arange(IMAGES) // 4)
    for cell, same in (("base", True), ("kmeans", True), ("classes", False)):
        net = method(**CELLS[cell])
        assert net.uses_labels is not same
        (loss, gradient), (other_loss, other_gradient) = (gradient_of(method(**CELLS[cell]), x) for x in (given, other))
        assert (loss == other_loss) is same
        assert torch.equal(gradient, other_gradient) is same
    renamed = Batch(given.views, [], given.indices, 7 - 2 * given.labels_for_monitoring)
    losses = [gradient_of(method(label_generator="classes"), x)[0] for x in (given, renamed)]
    assert losses[0] == losses[1]
    assert METHOD.uses_labels is False
    assert method(label_generator="classes", grains=["instance"]).uses_labels is False


def test_a_step_draws_no_random_number() -> None:
    for cell in ("kmeans", "multi-crop"):
        net = method(**CELLS[cell])
        state = torch.get_rng_state()
        net(batch(crops=net.local_crops), CLOCK)
        assert torch.equal(torch.get_rng_state(), state)


def test_monitors_against_counting() -> None:
    net, given = method(), batch()
    monitors = net(given, CLOCK)[1]
    assert not any(value.requires_grad for value in monitors.values())
    rows, labels = embed(net, given), given.labels_for_monitoring.numpy()
    found = weak_positives(net, rows, labels)
    sizes = [1 + positive.sum(1) for positive in found]
    same = labels[:, None] == labels
    assert monitors["component_mean"].item() == pytest.approx(np.mean([len(s) / (1 / s).sum() for s in sizes]))
    assert monitors["component_max"].item() == max(s.max() for s in sizes)
    assert monitors["purity"].item() == pytest.approx(np.mean([(p & same).sum() / p.sum() for p in found]))
    assert monitors["hit"].item() == pytest.approx(np.mean([(p & same).any(1).mean() for p in found]))
    assert set(monitors) >= {"alignment", "spread", "rank", "weak_alignment", "weak_spread", "weak_rank"}
    distance = ((rows["weak"][0] - rows["weak"][1]) ** 2).sum(1).mean()
    assert monitors["weak_alignment"].item() == pytest.approx(distance, rel=1e-12)
    unlabelled = Batch(given.views, [], given.indices, torch.full((IMAGES,), -1))
    assert method()(unlabelled, CLOCK)[1]["purity"].item() == 0.0
    assert "purity" not in method(grains=["instance"])(given, CLOCK)[1]


def test_what_cannot_be_is_refused() -> None:
    for generator, k in (("nearest", 3), ("mutual", 1), ("classes", 2)):
        with pytest.raises(UserError, match=f"label_k is {k}; label_generator {generator} needs null"):
            method(label_generator=generator, label_k=k)
    for generator in ("knn", "direct", "kmeans"):
        with pytest.raises(UserError, match=f"label_k is None; label_generator {generator} needs a number"):
            method(label_generator=generator)
    with pytest.raises(UserError, match="label_k is 12 but a batch has 12 images"):
        method(label_generator="kmeans", label_k=12)(batch(), CLOCK)
    with pytest.raises(UserError, match="local_neighbours is 40 but a batch has 12 images"):
        method(local_crops=1, local_neighbours=40)(batch(crops=1), CLOCK)
    method(local_neighbours=40)(batch(), CLOCK)  # without small crops it means nothing
    given = batch()
    given.labels_for_monitoring[3] = -1
    with pytest.raises(UserError, match="an image has no label"):
        method(label_generator="classes")(given, CLOCK)


class Wrapped(Backbone):
    """torchvision's ResNet-18: another network whose shortcuts are called downsample."""

    def __init__(self) -> None:
        import torchvision  # slow, and the second process below has no use for it

        super().__init__()
        self.network, self.width = torchvision.models.resnet18(weights=None), 512
        self.network.fc = nn.Identity()


RESNET = {"widths": (4, 8, 8), "strides": (1, 2, 1), "blocks": (1, 2, 1), "stem_stride": 1}


@pytest.mark.parametrize("kind", ["resnet", "torchvision"])
def test_the_release_decays_the_norms_of_shortcuts(kind: str) -> None:
    backbone: nn.Module = Wrapped() if kind == "torchvision" else load_backbone("resnet", channels=1, **RESNET)
    formula, released = (WCL(backbone, **(BASE | {"decay_shortcut_norms": on})) for on in (False, True))  # type: ignore[arg-type]
    wanted = {
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.BatchNorm2d) and (".downsample." in name or ".shortcut." in name)
    }
    assert len(wanted) == {"resnet": 1, "torchvision": 3}[kind]
    decayed = []
    for net in (formula, released):
        names = {parameter: name for name, parameter in net.named_parameters()}
        groups = {group["name"]: group for group in net.parameter_groups()}
        assert (groups["decayed"]["decay"], groups["not_decayed"]["decay"]) == (True, False)
        members = [names[p] for group in groups.values() for p in group["params"]]
        assert sorted(members) == sorted(names.values())
        decayed.append({names[p] for p in groups["decayed"]["params"]})
    assert decayed[1] - decayed[0] == {f"backbone.{name}.weight" for name in wanted}
    assert decayed[0] < decayed[1]
    assert all(name.endswith("weight") for name in decayed[1])


def test_what_is_trained_and_what_is_carried() -> None:
    net = method()
    groups = net.parameter_groups()
    assert {group["name"]: len(group["params"]) for group in groups} == {"decayed": 7, "not_decayed": 17}
    assert all(name.startswith(("backbone.", "heads.")) for name in net.state_dict())
    assert net.encoder_name == "backbone."


def test_it_learns_to_tell_images_apart() -> None:
    net, given = method(), batch(24)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    history = []
    for _ in range(40):
        losses = net(given, CLOCK)[0]
        history.append(losses["instance"].item())
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    assert history[-1] < history[0] - 0.2


SHARED_CELLS = ("base", "keys grad", "block", "joint", "kmeans", "classes", "multi-crop")


def work(rank: int) -> Any:
    share = IMAGES // WORLD
    found = {}
    for cell in SHARED_CELLS:
        net = method(**CELLS[cell])
        given = batch(crops=net.local_crops, rows=slice(rank * share, (rank + 1) * share))
        losses, gradient = gradient_of(net, given)
        torch.distributed.all_reduce(gradient)
        found[cell] = (losses, gradient / WORLD, dict(net.named_buffers()))
    return found


def test_two_processes_equal_one(tmp_path: Path) -> None:
    found = run_in_two(work, tmp_path)
    for cell in SHARED_CELLS:
        net = method(**CELLS[cell])
        losses, gradient = gradient_of(net, batch(crops=net.local_crops))
        for shared_losses, shared_gradient, buffers in (ranks[cell] for ranks in found):
            for name, value in losses.items():
                torch.testing.assert_close(shared_losses[name], value, rtol=1e-10, atol=0)
            torch.testing.assert_close(shared_gradient, gradient, rtol=0, atol=1e-10)
            for name, value in net.named_buffers():
                torch.testing.assert_close(buffers[name], value, rtol=1e-10, atol=1e-12)


# --- params


SIGNATURE = values_model("polygrain.methods.wcl", "WCL")


def read(path: str) -> dict[str, Any]:
    loaded = yaml.safe_load((PARAMS / path).read_text())
    assert isinstance(loaded, dict)
    return loaded


def whole(mode: str) -> dict[str, Any]:
    given = read("method/wcl.yaml")["values"]
    preset = read(f"mode/wcl/{mode}.yaml")["method"]
    assert preset["mode"] == mode
    assert not set(given) & set(preset["values"])
    assert given["weak_phase"] == "${optimizer.schedule.warmup}"
    return {**given, **preset["values"], "weak_phase": 0.1}


def test_modes_hold_the_switches_of_the_release() -> None:
    described, released = whole("described"), whole("released")
    for values in (described, released):
        SIGNATURE.of("wcl", values)
    assert {key for key in described if described[key] != released[key]} == {"nce_block", "decay_shortcut_norms"}
    assert (released["nce_block"], released["local_crops"]) == (128, 0)
    assert read("mode/wcl/described.yaml").keys() == read("mode/wcl/released.yaml").keys()


@pytest.mark.parametrize("variant", sorted(path.stem for path in (PARAMS / "variant/wcl").glob("*.yaml")))
def test_variants_fit_the_constructor_and_change_something(variant: str) -> None:
    given, base = read(f"variant/wcl/{variant}.yaml"), whole("described")
    if variant == "released":
        assert given == {"defaults": [{"override /mode": "wcl/released"}]}
        return
    chosen = given.get("method", {})
    values = base | chosen.get("values", {})
    SIGNATURE.of(variant, values)
    assert values != base or "pretrain" in given
    # a small crop has half the side, so a quarter of the units of a full-size view, forward and backward
    assert chosen.get("encoder_passes", 6) == 6 + 3 * values["local_crops"] / 4
    WCL(load_backbone("resnet", channels=1, **RESNET), **(values | {"hidden": 8, "embedding": 4}))  # type: ignore[arg-type]
