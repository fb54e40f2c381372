"""MGC: golden values, steps against a plain rewrite of them, stop-gradients, two processes, its YAML."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
import yaml
from layers import configured, read
from torch import Tensor, nn
from two_processes import WORLD, run_in_two

from polygrain.backbones.contract import Backbone, Encoded, from_map
from polygrain.backbones.droppath import DropPath, set_drop_path_key
from polygrain.backbones.vit import build as build_vit
from polygrain.config.signature import values_model
from polygrain.methods.mgc import METHOD, MGC, mean_over_rows, pair_losses
from polygrain.nn.batch_norm import synchronise
from polygrain.nn.clock import Clock
from polygrain.nn.correspond import Stride, correspond
from polygrain.nn.random import hash64
from polygrain.provenance.errors import UserError
from polygrain.views.batch import Batch, Geometry

PARAMS = Path(__file__).parents[2] / "params"
BATCH, STEPS, SEED, RATE, WIDTH = 6, 5, 3, 0.05, 5
ONE = (1, 1, 1)
BASE: dict[str, Any] = {
    "windows": [1, 2, 4],
    "pairs": [5, 2, 1],
    "row_strides": [(4, 1, 2), ONE, ONE],
    "column_strides": [(2, 1, 2), ONE, ONE],
    "stride_rounding": "exact",
    "selection": "overlap",
    "weighting": "overlap",
    "level_weights": "pairs",
    "temperature": 0.2,
    "momentum": 0.7,
    "momentum_end": 1.0,
    "ema_init": "copy",
    "hidden": 6,
    "embedding": 3,
    "shared_heads": False,
    "predictor": True,
}


def only(*windows: int) -> dict[str, Any]:
    """Base values of these windows alone."""
    kept = [BASE["windows"].index(window) for window in windows]
    return {key: [BASE[key][n] for n in kept] for key in ("windows", "pairs", "row_strides", "column_strides")}


class Tiny(Backbone):
    """2 x 2 px patches through a linear layer and a ring of neighbours; on request batch norm, and drop path."""

    def __init__(self, norm: bool = False, drop: float = 0.0) -> None:
        super().__init__()
        self.width = WIDTH
        self.embed = nn.Linear(4, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH, bias=False)
        self.drop = DropPath(drop, "mix")
        self.norm = nn.BatchNorm2d(WIDTH) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Encoded:
        side = x.shape[-1] // 2
        patches = x[:, 0].unflatten(1, (side, 2)).unflatten(3, (side, 2)).transpose(2, 3).flatten(3).flatten(1, 2)
        tokens = self.embed(patches)
        tokens = tokens + self.drop(torch.tanh(self.mix(tokens.roll(1, dims=1))))
        return from_map(self.norm(tokens.mT.unflatten(2, (side, side))))


def method(norm: bool = False, drop: float = 0.0, **values: Any) -> MGC:
    """In float64, with linear weights large enough for the batch norms' epsilon not to matter."""
    torch.manual_seed(0)
    net = synchronise(MGC(Tiny(norm, drop), **{**BASE, **values})).double()
    assert isinstance(net, MGC)
    for name, parameter in net.named_parameters():
        if "project" in name or "predict" in name:
            parameter.data = parameter.data * (20 if parameter.ndim > 1 else 1)
    return net


def clock(step: int) -> Clock:
    return Clock(seed=SEED, step=step, steps=STEPS, steps_per_epoch=3)


def geometry(step: int, view: int) -> Geometry:
    """Crops of a 28 px source, at times far enough apart for a slot to stay empty."""
    draws = hash64(step, view, torch.arange(BATCH)[:, None], torch.arange(5)) % 10007
    size = 12 + draws[:, :2] % 17
    start = draws[:, 2:4] % (29 - size)
    if step == 2:
        start[0], size[0] = torch.tensor([0, 0]) if view == 0 else torch.tensor([13, 15]), torch.tensor([14, 16])
    return Geometry(torch.cat([start, size], dim=1), draws[:, 4] % 2 == 0, (28, 28))


def batch(step: int, rows: slice | Tensor = slice(None)) -> Batch:
    """Views are noise, not crops of an image: what they show does not matter to the arithmetic."""
    generator = torch.Generator().manual_seed(step)
    views = torch.randn(2, BATCH, 1, 8, 8, dtype=torch.float64, generator=generator)
    places = [geometry(step, view) for view in (0, 1)]
    return Batch(
        views=[view[rows] for view in views],
        geometry=[Geometry(place.box[rows], place.flip[rows], (28, 28)) for place in places],
        indices=torch.arange(BATCH)[rows],
        labels_for_monitoring=(torch.arange(BATCH) % 3 - 1)[rows],
    )


Step = tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor]]


def train(net: MGC, first: int = 0, last: int = STEPS, rows: slice | Tensor = slice(None)) -> list[Step]:
    """The loop's order of things with plain gradient descent; gradients are averaged over processes."""
    history = []
    for step in range(first, last):
        net.before_step(clock(step))
        given = batch(step, rows)
        set_drop_path_key(net, SEED, step, len(given.views[0]))
        terms, monitors = net(given, clock(step))
        net.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        gradients = {}
        for name, parameter in net.named_parameters():
            if parameter.grad is not None:
                if torch.distributed.is_initialized():
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= WORLD
                gradients[name] = parameter.grad.clone()
                parameter.data -= RATE * parameter.grad
        history.append(({name: term.item() for name, term in terms.items()}, gradients, monitors))
    return history


# --- the rewrite: loops over images, pairs and rows; only the pairs themselves come from our code


class Rewrite:
    """Section 6 of the specification from the initial parameters of a method with these values."""

    def __init__(self, norm: bool, **values: Any) -> None:
        self.v, self.norm = {**BASE, **values}, norm
        start = {name: p.detach().clone() for name, p in method(norm, **values).named_parameters()}
        self.q = {name: p.requires_grad_() for name, p in start.items() if not name.startswith("momentum_")}
        self.k = {name.removeprefix("momentum_"): p for name, p in start.items() if name.startswith("momentum_")}
        self.history = list[tuple[dict[str, float], dict[str, Tensor]]]()

    def tokens(self, p: dict[str, Tensor], x: Tensor) -> Tensor:
        """[B, 4, 4, D]."""
        images = []
        for image in x[:, 0]:
            patches = [image[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(4) for i in range(4) for j in range(4)]
            rows = [p["backbone.embed.weight"] @ patch + p["backbone.embed.bias"] for patch in patches]
            images.append([row + torch.tanh(p["backbone.mix.weight"] @ rows[n - 1]) for n, row in enumerate(rows)])
        tokens = torch.stack([torch.stack(rows) for rows in images]).view(len(x), 4, 4, WIDTH)
        if self.norm:
            tokens = standard(tokens.view(-1, WIDTH)).view_as(tokens)
            tokens = tokens * p["backbone.norm.weight"] + p["backbone.norm.bias"]
        return tokens

    def chosen(self, tokens: Tensor, cells: Tensor, window: int) -> Tensor:
        """Rows b K + n: the mean of the tokens inside cell `cells[b, n]`."""
        rows = []
        for image, places in zip(tokens, cells.tolist(), strict=True):
            for place in places:
                i, j = divmod(place, 4 // window)
                inside = [image[i * window + a, j * window + b] for a in range(window) for b in range(window)]
                rows.append(torch.stack(inside).sum(0) / window**2)
        return torch.stack(rows)

    def one_way(self, q: Tensor, z: Tensor, w: list[float]) -> Tensor:
        terms = []
        for r, row in enumerate(q):
            odds = torch.exp((unit(z.detach()) * unit(row)).sum(1) / self.v["temperature"])
            terms.append(-torch.log(odds[r] / odds.sum()))
        if self.v["weighting"] == "none":
            w = [1.0] * len(terms)
        return torch.stack([x * term for x, term in zip(w, terms, strict=True)]).sum() / sum(w)

    def level(self, number: int, given: Batch, online: list[Tensor], targets: list[Tensor]) -> Tensor:
        v, window, places = self.v, self.v["windows"][number], given.geometry
        pairs = correspond(
            (places[0].box, places[1].box),
            (places[0].flip, places[1].flip),
            4 // window,
            v["pairs"][number],
            row_stride=Stride(*v["row_strides"][number]),
            column_stride=Stride(*v["column_strides"][number]),
            rounding="exact",
        )
        name = "shared" if v["shared_heads"] else str(window)
        q = [
            perceptron(self.q, f"projectors.{name}", self.chosen(x, n, window), 3)
            for x, n in zip(online, pairs[:2], strict=True)
        ]
        if v["predictor"]:
            q = [perceptron(self.q, f"predictors.{name}", rows, 2) for rows in q]
        z = [
            perceptron(self.k, f"projectors.{name}", self.chosen(x, n, window), 3)
            for x, n in zip(targets, pairs[:2], strict=True)
        ]
        w = pairs.weight.flatten().tolist()
        return self.one_way(q[0], z[1], w) + self.one_way(q[1], z[0], w)

    def run(self) -> "Rewrite":
        for step in range(STEPS):
            m = (
                self.v["momentum_end"]
                - (self.v["momentum_end"] - self.v["momentum"]) * (math.cos(math.pi * step / STEPS) + 1) / 2
            )
            self.k = {name: m * p + (1 - m) * self.q[name].detach() for name, p in self.k.items()}
            given = batch(step)
            online, targets = ([self.tokens(p, view) for view in given.views] for p in (self.q, self.k))
            counts = self.v["pairs"] if self.v["level_weights"] == "pairs" else [1] * len(self.v["pairs"])
            terms: dict[str, Tensor] = {}
            for number, window in enumerate(self.v["windows"]):
                grain = {1: "patch", 2: "region", 4: "instance"}[window]
                terms[grain] = self.level(number, given, online, targets) * counts[number] / sum(counts)
            total = torch.stack(list(terms.values())).sum()
            gradients = dict(zip(self.q, torch.autograd.grad(total, list(self.q.values())), strict=True))
            self.q = {name: (p - RATE * gradients[name]).detach().requires_grad_() for name, p in self.q.items()}
            self.history.append(({grain: term.item() for grain, term in terms.items()}, gradients))
        return self


def unit(x: Tensor) -> Tensor:
    return x / (x**2).sum(-1, keepdim=True).sqrt()


def standard(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / torch.sqrt(((x - x.mean(0)) ** 2).mean(0) + 1e-5)


def perceptron(p: dict[str, Tensor], name: str, x: Tensor, layers: int) -> Tensor:
    for layer in range(layers - 1):
        x = standard(x @ p[f"{name}.{3 * layer}.weight"].T)
        x = torch.relu(x * p[f"{name}.{3 * layer + 1}.weight"] + p[f"{name}.{3 * layer + 1}.bias"])
    return standard(x @ p[f"{name}.{3 * layers - 3}.weight"].T)


RUNS: dict[str, dict[str, Any]] = {
    "base": {},
    "plain mean": {"weighting": "none"},
    "independent start": {"ema_init": "independent"},
    "shared heads": {"shared_heads": True},
    "no predictor": {"predictor": False},
    "equal levels": {"level_weights": "equal"},
    "twin": {"momentum": 0.0, "momentum_end": 0.0},
    "constant momentum": {"momentum_end": 0.7},
    "patches": only(1),
    "regions": only(2),
    "whole views": only(4),
    "regions first": only(2, 1),
    "stride 1": {"row_strides": [ONE] * 3, "column_strides": [ONE] * 3},
    "one pair": {"pairs": [1, 1, 1]},
    "more slots than pairs": {"pairs": [9, 7, 3]},
    "temperature": {"temperature": 0.5},
}


CASES = [(name, False) for name in RUNS] + [("base", True), ("shared heads", True), ("twin", True)]


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_whole_steps_against_a_rewrite(name: str, norm: bool) -> None:
    """Losses, every gradient and the momentum weights, step by step."""
    net, plain = method(norm, **RUNS[name]), Rewrite(norm, **RUNS[name]).run()
    for (terms, gradients, _), (expected_terms, expected_gradients) in zip(train(net), plain.history, strict=True):
        assert terms == pytest.approx(expected_terms, rel=1e-10)
        assert list(terms) == list(expected_terms)
        assert set(gradients) == set(expected_gradients)
        for parameter, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected_gradients[parameter], rtol=1e-8, atol=1e-9)
    parameters = dict(net.named_parameters())
    for parameter, value in plain.q.items():
        torch.testing.assert_close(parameters[parameter].data, value.data, rtol=1e-8, atol=1e-10)
    for parameter, value in plain.k.items():
        torch.testing.assert_close(parameters[f"momentum_{parameter}"], value, rtol=1e-8, atol=1e-10)


# --- golden values and the arithmetic of the loss


def golden() -> tuple[Tensor, Tensor, Tensor]:
    """The specification's tiny case."""
    z = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return torch.eye(3, dtype=torch.float64), z, torch.tensor([0.4, 0.2, 0.0], dtype=torch.float64)


def test_golden_loss() -> None:
    q, z, w = golden()
    losses = pair_losses(q, z, 0.1)
    torch.testing.assert_close(losses, torch.tensor([0.0181946, 0.0006707, 0.0000908]).double(), rtol=0, atol=1.01e-7)
    assert mean_over_rows(losses, w, "overlap").item() == pytest.approx(0.0123533, abs=1.01e-7)
    assert mean_over_rows(losses, w, "none").item() == pytest.approx(0.0063187, abs=1.01e-7)
    torch.testing.assert_close(pair_losses(3 * q, 0.2 * z, 0.1), losses, rtol=1e-12, atol=0)


def test_rows_of_a_later_process_find_their_targets() -> None:
    q, z, _ = golden()
    torch.testing.assert_close(pair_losses(q[1:], z, 0.1, first=1), pair_losses(q, z, 0.1)[1:], rtol=1e-12, atol=0)


def test_weights_cancel_in_the_plain_mean() -> None:
    """As in the release: a mean times the weights over the sum of the weights. Empty slots count there, only there."""
    losses, weights = torch.rand(12, dtype=torch.float64), torch.rand(12, dtype=torch.float64)
    released = (losses.mean() * weights / weights.sum()).sum()
    assert mean_over_rows(losses, weights, "none").item() == pytest.approx(released.item(), rel=1e-12)
    assert mean_over_rows(losses, weights.square(), "none").item() == losses.mean().item()
    weights[3] = 0.0
    other = losses.clone()
    other[3] += 1.0
    none, overlap = (
        (mean_over_rows(other, weights, by) - mean_over_rows(losses, weights, by)).item() for by in ("none", "overlap")
    )
    assert none == pytest.approx(1 / 12)
    assert overlap == 0.0


@pytest.mark.parametrize("weighting", ["none", "overlap"])
def test_no_pair_at_all_is_not_a_number(weighting: str) -> None:
    losses = torch.ones(4, requires_grad=True)
    assert mean_over_rows(losses, torch.zeros(4), weighting).isnan().item()  # type: ignore[arg-type]
    assert mean_over_rows(losses, torch.tensor([0.0, 0, 0, 1e-7]), weighting).item() == pytest.approx(1.0)  # type: ignore[arg-type]
    net, given = method(weighting=weighting), batch(0)
    boxes = torch.tensor([[0, 0, 9, 9]] * BATCH), torch.tensor([[9, 9, 9, 9]] * BATCH)
    apart = [Geometry(box, place.flip, (28, 28)) for box, place in zip(boxes, given.geometry, strict=True)]
    terms, monitors = net(Batch(given.views, apart, given.indices, given.labels_for_monitoring), clock(0))
    assert all(term.isnan().item() for term in terms.values())
    assert monitors["padded_1"].item() == 1.0
    assert monitors["weight_1"].item() == monitors["repeated_1"].item() == 0.0


@pytest.mark.parametrize("weighting", ["none", "overlap"])
def test_collapsed_rows_give_chance_level(weighting: str) -> None:
    net = method(weighting=weighting)
    for heads in (net.projectors, net.predictors, net.momentum_projectors):
        for parameter in heads.parameters():
            nn.init.zeros_(parameter)
    terms, _ = net(batch(0), clock(0))
    for grain, count in (("patch", 5), ("region", 2), ("instance", 1)):
        assert terms[grain].item() == pytest.approx(count / 8 * 2 * math.log(BATCH * count), rel=1e-12)
    rows = torch.ones(2560, 4)
    assert pair_losses(rows, rows, 0.1).mean().item() == pytest.approx(7.848, abs=1e-3)
    level = 2 * (10 * math.log(2560) * 2 + 2 * math.log(512)) / 22
    assert level == pytest.approx(15.40, abs=5e-3)


def test_two_equal_keys_bound_the_loss_by_ln_2() -> None:
    eye = torch.eye(6, dtype=torch.float64)
    keys = eye[[0, 0, 2, 3, 4, 5]]
    losses = pair_losses(keys, keys, 0.01)
    assert losses[:2].tolist() == pytest.approx([math.log(2)] * 2, rel=1e-12)
    assert losses[2:].max().item() < 1e-12


def test_gradient_reaches_queries_only() -> None:
    q, z = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda rows: pair_losses(rows, z.detach(), 0.3), (q,))
    pair_losses(q, z, 0.3).sum().backward()
    assert z.grad is None
    net = method()
    sum(net(batch(0), clock(0))[0].values()).backward()  # type: ignore[union-attr]
    for name, parameter in net.named_parameters():
        if name.startswith("momentum_"):
            assert parameter.grad is None
            assert not parameter.requires_grad
        else:
            assert parameter.grad is not None, name
            assert int(parameter.grad.count_nonzero()) > 0, name


# --- invariances, switches, state


@pytest.mark.parametrize("selection", ["overlap", "random"])
def test_order_in_the_batch_does_not_matter(selection: str) -> None:
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    (straight,), (shuffled,) = (
        train(method(True, selection=selection), last=1, rows=rows) for rows in (slice(None), order)
    )
    assert shuffled[0] == pytest.approx(straight[0], rel=1e-10)
    for name, gradient in straight[1].items():
        torch.testing.assert_close(shuffled[1][name], gradient, rtol=1e-8, atol=1e-12)


def test_views_change_places_where_every_cell_is_visited() -> None:
    """The loss is symmetric; all pairs are kept, as the choice among ties is not."""
    values = {"row_strides": [ONE] * 3, "column_strides": [ONE] * 3, "pairs": [256, 16, 1]}
    given, net = batch(0), method(**values)
    back = Batch(given.views[::-1], given.geometry[::-1], given.indices, given.labels_for_monitoring)
    there, again = (net(one, clock(0))[0] for one in (given, back))
    assert {name: term.item() for name, term in again.items()} == pytest.approx(
        {name: term.item() for name, term in there.items()}, rel=1e-10
    )


def test_a_mirrored_view_with_mirrored_pixels_changes_nothing() -> None:
    """What the network sees of a flipped crop is its mirror image: a network blind to order gives the same loss."""

    class Blind(Tiny):
        def forward(self, x: Tensor) -> Encoded:
            side = x.shape[-1] // 2
            pooled = nn.functional.avg_pool2d(x, 2).flatten(1)
            return from_map((self.embed.weight[:, 0] * pooled[..., None].tanh()).mT.unflatten(2, (side, side)))

    torch.manual_seed(0)
    net, given = MGC(Blind(), **BASE).double(), batch(1)
    losses = []
    for flips in ((False, False), (True, False), (False, True), (True, True)):
        views = [view.flip(-1) if flip else view for view, flip in zip(given.views, flips, strict=True)]
        places = [
            Geometry(place.box, torch.full((BATCH,), flip), (28, 28))
            for place, flip in zip(given.geometry, flips, strict=True)
        ]
        terms, _ = net(Batch(views, places, given.indices, given.labels_for_monitoring), clock(0))
        losses.append([term.item() for term in terms.values()])
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-10)


def test_random_pairs_depend_on_step_and_image_alone() -> None:
    net = method(selection="random", pairs=[3, 2, 1])
    level, given = net.levels[0], batch(0)
    first, again, later = (net._pairs(level, 4, given, clock(step)) for step in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.cell_1, later.cell_1)
    part = net._pairs(level, 4, batch(0, slice(3, 6)), clock(0))
    assert torch.equal(part.cell_2, first.cell_2[3:])
    largest = method(pairs=[3, 2, 1])._pairs(level, 4, given, clock(0))
    assert first.weight.sum() < largest.weight.sum()
    assert bool((first.weight > 0).all())


def test_release_rounds_strides_in_float32() -> None:
    """An IoU of 440/880 times 6 is 3, or 2 in the released expression: rows 0 and 3, or 0 and 2."""
    given = batch(0)
    boxes = torch.tensor([[0, 0, 20, 44]] * BATCH), torch.tensor([[0, 11, 20, 22]] * BATCH)
    places = [Geometry(box, place.flip, (28, 60)) for box, place in zip(boxes, given.geometry, strict=True)]
    half = Batch(given.views, places, given.indices, given.labels_for_monitoring)
    values = only(1) | {"pairs": [8], "row_strides": [(6, 1, 3)], "column_strides": [ONE]}
    for rounding, second in (("exact", 3), ("float32", 2)):
        net = method(**values, stride_rounding=rounding)
        found = net._pairs(net.levels[0], 4, half, clock(0))
        assert set((found.cell_1 // 4).flatten().tolist()) == {0, second}


def test_momentum_network_starts_as_a_copy_or_anew() -> None:
    torch.manual_seed(0)
    copied, drawn = (MGC(Tiny(), **{**BASE, "hidden": 400, "ema_init": how}) for how in ("copy", "independent"))
    pairs = [("momentum_backbone", "backbone"), ("momentum_projectors", "projectors")]
    for net, equal in ((copied, True), (drawn, False)):
        for momentum, online in pairs:
            targets, sources = (dict(net.get_submodule(part).named_parameters()) for part in (momentum, online))
            assert set(targets) == set(sources)
            for name, target in targets.items():
                assert torch.equal(target, sources[name]) == (equal or target.ndim == 1), name
    weight = drawn.get_parameter("momentum_projectors.2.3.weight")
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert drawn.get_parameter("projectors.2.3.weight").std().item() == pytest.approx(0.02, rel=0.02)


def test_parts_and_what_is_trained() -> None:
    net = method()
    inner = ["Linear", "SynchronisedBatchNorm", "ReLU"]
    for window in ("1", "2", "4"):
        projector, predictor = net.projectors[window], net.predictors[window]
        assert [type(part).__name__ for part in projector] == [*inner, *inner, *inner[:2]]  # type: ignore[arg-type]
        assert [type(part).__name__ for part in predictor] == [*inner, *inner[:2]]  # type: ignore[arg-type]
        for head in (projector, predictor):
            linear = [part for part in head.modules() if isinstance(part, nn.Linear)]
            assert all(part.bias is None for part in linear)
            *_, last = head.children()
            assert last.affine is False
    (group,) = net.parameter_groups()
    assert group["decay"] is True
    names = {name for name, p in net.named_parameters() if any(p is trained for trained in group["params"])}
    assert names == {name for name, _ in net.named_parameters() if not name.startswith("momentum_")}
    assert list(method(shared_heads=True).projectors) == ["shared"]
    assert not list(method(predictor=False).predictors.parameters())
    assert METHOD.uses_labels is False
    assert net.views(clock(0)) == ("anchor", "overlapping")
    assert net.get_submodule(net.encoder_name.rstrip(".")) is net.backbone


def test_statistics_of_batch_norm_are_not_averaged() -> None:
    """The momentum network's own batches make them; drop path is off in it, and on in the online network."""
    net = method(norm=True, drop=0.5)
    before = net.get_buffer("momentum_backbone.norm.running_mean").clone()
    net.before_step(clock(0))
    assert torch.equal(net.get_buffer("momentum_backbone.norm.running_mean"), before)
    set_drop_path_key(net, SEED, 0, len(batch(0).views[0]))
    net(batch(0), clock(0))
    assert net.get_buffer("momentum_backbone.norm.num_batches_tracked").item() == 2
    assert not torch.equal(net.get_buffer("momentum_backbone.norm.running_mean"), before)
    given, plain = batch(0).views[0], method(norm=True, drop=0.0)
    assert torch.equal(net.momentum_backbone(given).tokens, plain.momentum_backbone(given).tokens)
    assert not torch.equal(net.backbone(given).tokens, plain.backbone(given).tokens)


def test_what_is_reported() -> None:
    net = method(pairs=[9, 7, 1], temperature=0.3)
    given = batch(2)
    terms, monitors = net(given, clock(2))
    assert list(terms) == ["patch", "region", "instance"]
    assert all(value.ndim == 0 and not value.requires_grad for value in monitors.values())
    assert {"spread", "rank", "purity"} < set(monitors)
    for level in net.levels:
        found = net._pairs(level, 4 // level.window, given, clock(2))
        kept, again = 0, 0
        for cells, weights in zip(found.cell_1.tolist(), found.weight.tolist(), strict=True):
            used = [cell for cell, weight in zip(cells, weights, strict=True) if weight > 0]
            kept, again = kept + len(used), again + len(used) - len(set(used))
        expected = [1 - kept / found.weight.numel(), found.weight.sum().item() / kept, again / kept]
        names = [f"{name}_{level.window}" for name in ("padded", "weight", "repeated")]
        assert [monitors[name].item() for name in names] == pytest.approx(expected, abs=1e-12)
    assert monitors["padded_1"].item() > 0
    assert monitors["repeated_1"].item() > 0
    rows = net.backbone(given.views[0]).pooled.detach().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert monitors["spread"].item() == pytest.approx(rows.std(axis=0).mean() * np.sqrt(WIDTH))
    values = np.linalg.eigvalsh(np.cov(rows.T, bias=True))
    assert monitors["rank"].item() == pytest.approx(values.sum() ** 2 / (values**2).sum())
    labels, hits = given.labels_for_monitoring.tolist(), []
    for i, row in enumerate(rows):
        j = max((j for j in range(BATCH) if j != i), key=lambda j, row=row: float(row @ rows[j]))
        if labels[i] >= 0 and labels[j] >= 0:
            hits.append(labels[i] == labels[j])
    assert monitors["purity"].item() == pytest.approx(np.mean(hits))


def test_labels_change_no_bit() -> None:
    nets = [method(), method()]
    for net, labels in zip(nets, (torch.arange(BATCH), torch.full((BATCH,), -1)), strict=True):
        given = batch(0)
        terms, _ = net(Batch(given.views, given.geometry, given.indices, labels), clock(0))
        torch.stack(list(terms.values())).sum().backward()
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert (one.grad is None and other.grad is None) or torch.equal(one.grad, other.grad)  # type: ignore[arg-type]


def test_a_transformer_has_windows_of_eight() -> None:
    backbone = build_vit(channels=1, image_size=16, patch=2, width=16, depth=1, heads=2, drop_path=0.0)
    rules = {key: [ONE] * 4 for key in ("row_strides", "column_strides")}
    net = MGC(backbone, **{**BASE, "windows": [1, 2, 4, 8], "pairs": [4, 3, 2, 1], **rules})
    given = batch(0)
    views = [torch.randn(BATCH, 1, 16, 16) for _ in range(2)]
    terms, _ = net(Batch(views, given.geometry, given.indices, given.labels_for_monitoring), clock(0))
    assert list(terms) == ["patch", "region", "instance"]
    torch.stack(list(terms.values())).sum().backward()
    assert not any(part.grad is not None for part in net.momentum_backbone.parameters())


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"windows": [1, 2]}, "windows \\[1, 2\\] must differ"),
        ({"windows": [1, 2, 2]}, "must differ"),
        ({"windows": [], "pairs": [], "row_strides": [], "column_strides": []}, "must differ"),
        ({"pairs": [5, 0, 1]}, "at least 1"),
        ({"row_strides": [(4, 2, 1), ONE, ONE]}, "1 <= low <= high"),
        ({"column_strides": [(4, 0, 1), ONE, ONE]}, "1 <= low <= high"),
    ],
)
def test_values_that_do_not_fit_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        method(**values)


def test_windows_that_do_not_tile_the_map_are_refused() -> None:
    with pytest.raises(UserError, match=r"windows \[1, 2, 3\] do not tile a map of 16 tokens; choose from \[1, 2, 4\]"):
        method(windows=[1, 2, 3])(batch(0), clock(0))
    with pytest.raises(UserError, match="do not tile a map of 16 tokens"):
        method(windows=[1, 2, 8])(batch(0), clock(0))


# --- the files in params


VARIANTS = sorted(path.stem for path in (PARAMS / "variant/mgc").glob("*.yaml"))


@pytest.mark.parametrize("variant", [None, *VARIANTS])
def test_yaml_fits_the_constructor(variant: str | None) -> None:
    found, base = configured("mgc", variant), configured("mgc")
    values_model("polygrain.methods.mgc", "MGC").of("run", found["values"], "method.values")
    MGC(Tiny(), **found["values"])
    assert (found["encoder_passes"], found["start_passes"]) == (8, 0)
    side = 8 if variant == "vit" else 4
    grains = [
        "instance" if window == side else "patch" if window == 1 else "region" for window in found["values"]["windows"]
    ]
    assert found["grains"] == list(dict.fromkeys(grains))
    assert found["mode"] == ("released" if variant == "released" else "described")
    if variant:
        assert found["values"] != base["values"] or read(f"variant/mgc/{variant}").get("augmentation"), (
            "a variant that changes nothing"
        )
        assert (PARAMS / f"variant/mgc/{variant}.yaml").read_text().startswith("# @package _global_\n# MGC")


def test_presets_are_what_the_specification_says() -> None:
    described, released = (configured("mgc", name)["values"] for name in (None, "released"))
    keys = ("weighting", "ema_init", "stride_rounding")
    assert [described[key] for key in keys] == ["overlap", "copy", "exact"]
    assert [released[key] for key in keys] == ["none", "independent", "float32"]
    paper = yaml.safe_load((PARAMS / "recipe/mgc/paper.yaml").read_text())
    assert paper["method"]["values"] == {
        "windows": [1, 2, 7],
        "pairs": [10, 10, 2],
        "row_strides": [[12, 2, 8], [8, 2, 4], [1, 1, 1]],
        "column_strides": [[8, 2, 6], [4, 1, 3], [1, 1, 1]],
        "momentum": 0.996,
        "hidden": 4096,
    }
    assert described["momentum_end"] == 1.0
    assert (described["embedding"], described["temperature"]) == (128, 0.1)
    assert paper["optimizer"]["schedule"]["base"] == pytest.approx(1e-3 * paper["pretrain"]["batch"] / 256)


# --- two processes


SHARED: list[dict[str, Any]] = [{}, {"weighting": "none", "selection": "random"}]


def work(rank: int) -> Any:
    share = BATCH // WORLD
    results = []
    for values in SHARED:
        net = method(norm=True, drop=0.3, **values)
        history = train(net, last=3, rows=slice(rank * share, (rank + 1) * share))
        results.append((history, net.state_dict()))
    return results


def test_two_processes_equal_one(tmp_path: Path) -> None:
    loads = run_in_two(work, tmp_path)
    for number, values in enumerate(SHARED):
        net = method(norm=True, drop=0.3, **values)
        for both in zip(train(net, last=3), *(load[number][0] for load in loads), strict=True):
            (terms, gradients, monitors), *shares = both
            for shared_terms, shared_gradients, shared_monitors in shares:
                assert shared_terms == pytest.approx(terms, rel=1e-10)
                for name, value in gradients.items():
                    torch.testing.assert_close(shared_gradients[name], value, rtol=1e-7, atol=1e-10)
                for name, value in monitors.items():
                    torch.testing.assert_close(shared_monitors[name], value, rtol=1e-8, atol=1e-10)
        for load in loads:
            for name, value in net.state_dict().items():
                torch.testing.assert_close(load[number][1][name], value, rtol=0, atol=1e-10)
