"""MNCL: golden values, whole runs against a plain rewrite of them, queue, statistics, two processes."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
import yaml
from layers import configured
from torch import Tensor, nn
from torch.nn.functional import normalize
from two_processes import WORLD, run_in_two

from polygrain.backbones.contract import Backbone, Encoded
from polygrain.config.signature import values_model
from polygrain.methods.mncl import METHOD, MNCL
from polygrain.nn.batch_norm import synchronise
from polygrain.nn.clip import clip_global
from polygrain.nn.clock import Clock
from polygrain.nn.contrastive import nt_xent, one_way
from polygrain.nn.monitors import effective_rank, spread
from polygrain.nn.optim import build as build_optimizer
from polygrain.nn.optim import set_learning_rate
from polygrain.nn.parts import set_means, tiles
from polygrain.nn.random import hash64
from polygrain.nn.schedules import learning_rate
from polygrain.provenance.errors import UserError
from polygrain.views.batch import Batch

PARAMS = Path(__file__).parents[2] / "params"
BATCH, STEPS, SIDE, RATE, DECAY, CLIP = 6, 8, 8, 0.1, 1e-2, 1.0
BASE: dict[str, Any] = {
    "images": 40,
    "batch": BATCH,
    "grains": ["region", "instance"],
    "local_gradient": "predictor",
    "hidden": 9,
    "embedding": 4,
    "predictor_hidden": 7,
    "region_weight": 1.0,
    "instance_weight": 6.0,
    "region_temperature": 0.5,
    "instance_temperature": 0.7,
    "splits": 2,
    "combined": 2,
    "parts": "tiles",
    "combine": "before",
    "local_norm": "shared",
    "neighbour": True,
    "queue": 16,
    "queue_wrap": "ring",
    "search": "written",
    "head_norm_scale": "one",
    "ema_init": "copy",
    "momentum": 0.9,
    "third_view": "own",
    "predictor_constant": True,
    "decay_all": True,
}
RELEASED: dict[str, Any] = {
    "local_gradient": "none",
    "queue_wrap": "cut",
    "search": "all",
    "head_norm_scale": "uniform",
    "ema_init": "independent",
}
FAST_MOCO: dict[str, Any] = {"grains": ["region"], "local_gradient": "tiles"}


class Tiny(Backbone):
    """Linear in four block means, batch norm and a bent line, so that any even side fits."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 5
        self.main = nn.Linear(4, 5, bias=False)
        self.statistics = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Encoded:
        means = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        pooled = nn.functional.leaky_relu(self.statistics(self.main(means)), 0.3)
        return Encoded(pooled[:, None], pooled[:, :, None, None], pooled)


def method(**values: Any) -> MNCL:
    torch.manual_seed(0)
    return synchronise(MNCL(Tiny(), **{**BASE, **values})).double()  # type: ignore[return-value]


def clock(step: int) -> Clock:
    return Clock(seed=3, step=step, steps=STEPS, steps_per_epoch=4)


def crop(step: int, position: int, name: str) -> Tensor:
    """The view at one position of a step's views, a function of the counters alone; all images of the batch."""
    generator = torch.Generator().manual_seed(int(hash64(step, position, name) % 2**31))
    side = SIDE // 2 if name == "local" else SIDE
    return torch.randn(BATCH, 1, side, side, dtype=torch.float64, generator=generator)


def labels_of(step: int) -> Tensor:
    return (torch.arange(BATCH) + step) % 3 - (torch.arange(BATCH) == 4).long() * 3


def given(net: MNCL, step: int, rows: slice | Tensor = slice(None)) -> Batch:
    views = [crop(step, position, name)[rows] for position, name in enumerate(net.views(clock(step)))]
    indices = torch.arange(BATCH) + BATCH * (step % 4)
    return Batch(views, [], indices[rows], labels_of(step)[rows])


def sgd(net: MNCL) -> torch.optim.Optimizer:
    return build_optimizer("sgd", net.parameter_groups(), weight_decay=DECAY, momentum=0.9, nesterov=False)


def train(
    net: MNCL,
    first: int = 0,
    last: int = STEPS,
    rows: slice = slice(None),
    optimizer: torch.optim.Optimizer | None = None,
) -> tuple[list[dict[str, float]], list[float]]:
    """The loop's order of things with the paper's optimiser; gradients are averaged over processes.

    Returns the terms, and the gradient's norm before the clip, of every step.
    """
    optimizer, losses, norms = optimizer or sgd(net), [], []
    for step in range(first, last):
        now = clock(step)
        net.before_step(now)
        terms, _ = net(given(net, step, rows), now)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        if torch.distributed.is_initialized():
            for parameter in net.parameters():
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= WORLD
        rate = learning_rate("cosine_to_final", base=RATE, final=0.0, start=RATE, warmup=0, step=step, steps=now.steps)
        set_learning_rate(optimizer, base=RATE, scheduled=rate)
        norms.append(clip_global(net.parameters(), CLIP).item())
        optimizer.step()
        net.after_step(now)
        losses.append({name: value.item() for name, value in terms.items()})
    return losses, norms


# --- the rewrite: sections 4 to 6 of the specification, one expression per formula, no code of ours


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def cross_entropy(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    odds = torch.exp(unit(a) @ unit(b).T / temperature)
    return -torch.log(torch.diagonal(odds) / odds.sum(1)).mean()


def simclr(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    rows, total, count = unit(torch.cat([x, y])), torch.zeros((), dtype=torch.float64), len(x)
    for i in range(2 * count):
        odds = [torch.exp(rows[i] @ rows[k] / temperature) for k in range(2 * count) if k != i]
        total = total - torch.log(torch.exp(rows[i] @ rows[(i + count) % (2 * count)] / temperature) / sum(odds))
    return total / (2 * count)


class Rewrite:
    """A run from the initial state of a method with these values."""

    def __init__(self, **values: Any) -> None:
        self.v, start = {**BASE, **values}, method(**values)
        named = {name: p.detach().clone() for name, p in start.named_parameters()}
        self.q = {n: p.requires_grad_() for n, p in named.items() if not n.startswith("momentum_")}
        self.k = {n.removeprefix("momentum_"): p for n, p in named.items() if n.startswith("momentum_")}
        names = [n for n, _ in start.named_buffers() if n.endswith(("running_mean", "running_var"))]
        self.stats = {n: start.get_buffer(n).clone() for n in names if not n.startswith("part_")}
        self.part_stats = {n: s.clone() for n, s in self.stats.items() if not n.startswith(("momentum", "predictor"))}
        self.velocity = dict.fromkeys(self.q, torch.zeros((), dtype=torch.float64))
        self.queue, self.pointer, self.filled = torch.zeros(0, dtype=torch.float64), 0, set[int]()
        if hasattr(start, "queue"):
            self.queue = start.queue.rows.clone()
        self.losses, self.norms = list[dict[str, float]](), list[float]()

    def run(self) -> "Rewrite":
        for step in range(STEPS):
            self.step(step)
        return self

    def bn(self, p: dict[str, Tensor], name: str, x: Tensor, stats: dict[str, Tensor] | None, prefix: str) -> Tensor:
        mean, count = x.mean(0), len(x)
        variance = ((x - mean) ** 2).mean(0)
        if stats is not None:
            for key, value in (("running_mean", mean), ("running_var", variance * count / (count - 1))):
                full = f"{prefix}{name}.{key}"
                stats[full] = 0.9 * stats[full] + 0.1 * value.detach()
        return (x - mean) / torch.sqrt(variance + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]

    def f(self, p: dict[str, Tensor], x: Tensor, stats: dict[str, Tensor] | None, prefix: str = "") -> Tensor:
        half = x.shape[-1] // 2
        means = [x[:, 0, a : a + half, b : b + half].mean((1, 2)) for a in (0, half) for b in (0, half)]
        normed = torch.stack(means, 1) @ p["backbone.main.weight"].T
        normed = self.bn(p, "backbone.statistics", normed, stats, prefix)
        return torch.where(normed > 0, normed, 0.3 * normed)

    def g(self, p: dict[str, Tensor], x: Tensor, stats: dict[str, Tensor] | None, prefix: str = "") -> Tensor:
        for linear, norm, last in ((0, 1, False), (3, 4, False), (6, 7, True)):
            x = x @ p[f"projector.{linear}.weight"].T + p[f"projector.{linear}.bias"]
            x = self.bn(p, f"projector.{norm}", x, stats, prefix)
            x = x if last else torch.relu(x)
        return x

    def h(self, x: Tensor) -> Tensor:
        x = x @ self.q["predictor.0.weight"].T + self.q["predictor.0.bias"]
        x = torch.relu(self.bn(self.q, "predictor.1", x, self.stats, ""))
        return x @ self.q["predictor.3.weight"].T + self.q["predictor.3.bias"]

    def sets(self, parts: list[Tensor]) -> list[Tensor]:
        """c of one view: parts in one pass, then all sets in one pass."""
        v = self.v
        stats = {"shared": self.stats, "no_track": None, "separate": self.part_stats}[v["local_norm"]]
        features = self.f(self.q, torch.cat(parts), stats).split(BATCH)
        chosen = list(itertools.combinations(range(len(parts)), v["combined"]))
        if v["combine"] == "after":
            projected = self.g(self.q, torch.cat(features), stats).split(BATCH)
            return [sum(projected[s] for s in c) / len(c) for c in chosen]  # type: ignore[misc]
        means = [sum(features[s] for s in c) / len(c) for c in chosen]
        return list(self.g(self.q, torch.cat(means), stats).split(BATCH))  # type: ignore[arg-type]

    def neighbours(self, e: Tensor) -> Tensor:
        places = sorted(self.filled) if self.v["search"] == "written" else range(len(self.queue))
        if not self.v["neighbour"] or not places:
            return e
        bank = unit(self.queue)
        best = [max(places, key=lambda q: float(unit(row) @ bank[q])) for row in e]
        return self.queue[best]

    def push(self, rows: Tensor) -> None:
        if not self.v["neighbour"]:
            return
        for row in rows:
            self.queue[self.pointer] = row
            self.filled.add(self.pointer)
            self.pointer += 1
            if self.pointer == len(self.queue):
                self.pointer = 0
                if self.v["queue_wrap"] == "cut":
                    break

    def step(self, step: int) -> None:
        v = self.v
        third = {"own": 3, "first": 1, "second": 2}[v["third_view"]]
        roles = ({1, 2} if "region" in v["grains"] else set()) | ({1, third} if "instance" in v["grains"] else set())
        view = {role: crop(step, place, "global") for place, role in enumerate(sorted(roles))}
        self.k = {n: v["momentum"] * p + (1 - v["momentum"]) * self.q[n].detach() for n, p in self.k.items()}
        parts: dict[int, list[Tensor]] = {}
        inner = SIDE // v["splits"]
        for a in (1, 2) if "region" in v["grains"] else ():
            corners = itertools.product(range(0, SIDE, inner), repeat=2)
            parts[a] = [view[a][:, :, y : y + inner, x : x + inner] for x, y in corners]
            if v["parts"] == "crops":
                start = len(view) + (a - 1) * v["splits"] ** 2
                parts[a] = [crop(step, start + place, "local") for place in range(v["splits"] ** 2)]
        terms = self.fast_moco(view, parts) if v["local_gradient"] == "tiles" else self.mncl(view, parts, third)
        self.descend(step, terms)

    def fast_moco(self, view: dict[int, Tensor], parts: dict[int, list[Tensor]]) -> dict[str, Tensor]:
        p = {}
        for a in (1, 2):
            c = self.sets(parts[a])
            p[a] = self.h(torch.cat(c)).split(BATCH)
        z = {
            a: self.g(self.k, self.f(self.k, view[a], self.stats, "momentum_"), self.stats, "momentum_") for a in (1, 2)
        }
        t = self.v["region_temperature"]
        pairs = [cross_entropy(p[a][j], z[3 - a], t) for a in (1, 2) for j in range(len(p[1]))]
        return {"region": self.v["region_weight"] * sum(pairs) / len(pairs)}

    def mncl(self, view: dict[int, Tensor], parts: dict[int, list[Tensor]], third: int) -> dict[str, Tensor]:
        v, terms = self.v, {}
        p = {a: self.h(self.g(self.q, self.f(self.q, x, self.stats), self.stats)) for a, x in view.items()}
        if "region" in v["grains"]:
            c = {a: [x.detach() for x in self.sets(parts[a])] for a in (1, 2)}
            t, live = v["region_temperature"], v["local_gradient"] == "predictor"
            p_1, p_2 = (p[a] if live else p[a].detach() for a in (1, 2))
            pairs = [cross_entropy(p_2, x, t) for x in c[1]] + [cross_entropy(p_1, x, t) for x in c[2]]
            terms["region"] = v["region_weight"] * sum(pairs) / len(pairs)
        if "instance" in v["grains"]:
            e = {}
            for a in sorted({1, third}):
                e[a] = self.g(self.k, self.f(self.k, view[a], self.stats, "momentum_"), self.stats, "momentum_")
            k = {a: self.neighbours(x) for a, x in e.items()}
            self.push(e[third])
            t = v["instance_temperature"]
            terms["instance"] = v["instance_weight"] * (simclr(k[third], p[1], t) + simclr(k[1], p[third], t)) / 2
        return terms

    def descend(self, step: int, terms: dict[str, Tensor]) -> None:
        v = self.v
        self.losses.append({name: value.item() for name, value in terms.items()})
        found = torch.autograd.grad(sum(terms.values()), list(self.q.values()), allow_unused=True)  # type: ignore[arg-type]
        gradients = {n: g for n, g in zip(self.q, found, strict=True) if g is not None}
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        self.norms.append(norm)
        t = step + 1
        cosine = RATE if t <= 2 else RATE / 2 * (1 + math.cos(math.pi * (t - 2) / (STEPS - 2)))
        with torch.no_grad():
            for name, g in gradients.items():
                w = self.q[name]
                decayed = v["decay_all"] or (w.ndim > 1 and not name.endswith("bias"))
                g = g * min(1.0, CLIP / (norm + 1e-6)) + (DECAY * w if decayed else 0)
                self.velocity[name] = 0.9 * self.velocity[name] + g
                constant = v["predictor_constant"] and name.startswith("predictor")
                self.q[name] = (w - (RATE if constant else cosine) * self.velocity[name]).requires_grad_()


RUNS: dict[str, dict[str, Any]] = {
    "described": {},
    "released": RELEASED,
    "fastmoco": FAST_MOCO,
    "fastmoco, other sets": {**FAST_MOCO, "combined": 3, "combine": "after", "region_weight": 2.0},
    "fastmoco, crops": {**FAST_MOCO, "parts": "crops"},
    "no gradient": {"local_gradient": "none"},
    "global only": {"grains": ["instance"]},
    "local only": {"grains": ["region"]},
    "cut": {"queue_wrap": "cut"},
    "search all": {"search": "all"},
    "uniform scales": {"head_norm_scale": "uniform"},
    "independent start": {"ema_init": "independent"},
    "no neighbour": {"neighbour": False},
    "short queue": {"queue": 8},
    "share": {"queue": 0.5},
    "tiles": {"combined": 1},
    "triples": {"combined": 3},
    "all tiles": {"combined": 4},
    "sixteen tiles": {"splits": 4},
    "crops": {"parts": "crops"},
    "average after": {"combine": "after"},
    "no track": {"local_norm": "no_track"},
    "third is first": {"third_view": "first"},
    "third is second": {"third_view": "second"},
    "weights": {"region_weight": 0.3, "instance_weight": 0.1},
    "temperatures": {"region_temperature": 1.0, "instance_temperature": 1.0},
    "shared weights": {"momentum": 0.0},
    "predictor on the schedule": {"predictor_constant": False},
    "decay": {"decay_all": False},
}


@pytest.mark.parametrize("name", [*RUNS, "separate", "released, separate"])
def test_whole_steps_against_a_rewrite(name: str) -> None:
    """Losses, gradient norms, weights of both networks, running statistics and queue after every step was taken."""
    own = {"separate": {"local_norm": "separate"}, "released, separate": {**RELEASED, "local_norm": "separate"}}
    values = {**RUNS, **own}[name]
    net, expected = method(**values), Rewrite(**values).run()
    losses, norms = train(net)
    for found, wanted in zip(losses, expected.losses, strict=True):
        assert found == pytest.approx(wanted, rel=1e-11)
    assert norms == pytest.approx(expected.norms, rel=1e-10)
    for prefix, part in (("", expected.q), ("momentum_", expected.k)):
        for key, value in part.items():
            torch.testing.assert_close(net.get_parameter(prefix + key).data, value.detach(), rtol=0, atol=1e-11)
    for key, value in expected.stats.items():
        torch.testing.assert_close(net.get_buffer(key), value, rtol=0, atol=1e-12)
    if "separate" in name:
        norms_in_order = ("backbone.statistics", "projector.1", "projector.4", "projector.7")
        for place, norm in enumerate(norms_in_order):
            for key in ("running_mean", "running_var"):
                found_stats = net.get_buffer(f"part_statistics.{place}.{key}")
                torch.testing.assert_close(found_stats, expected.part_stats[f"{norm}.{key}"], rtol=0, atol=1e-12)
    if hasattr(net, "queue"):
        torch.testing.assert_close(net.queue.rows, expected.queue, rtol=0, atol=1e-12)
        assert int(net.queue.pointer) == expected.pointer
        assert set(net.queue.written.nonzero()[:, 0].tolist()) == expected.filled
    if name in ("described", "weights"):
        assert (min(norms) > CLIP) == (name == "described")


def test_every_switch_makes_a_difference() -> None:
    ends: dict[str, Tensor] = {}
    for name, values in RUNS.items():
        net = method(**values)
        train(net)
        end = torch.cat([net.backbone.main.weight.flatten(), net.backbone.statistics.running_mean])  # type: ignore[union-attr,arg-type]
        for other, seen in ends.items():
            assert not torch.allclose(end, seen, rtol=0, atol=1e-9), f"{name} ends like {other}"
        ends[name] = end.detach()


# --- golden values of section 5.3


def test_golden_values() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    assert one_way(eye[None], eye[None], 1.0).item() == pytest.approx(0.74367, abs=5e-6)
    assert nt_xent(eye, eye, 1.0).item() == pytest.approx(1.16542, abs=5e-6)
    p = torch.eye(2, dtype=torch.float64)
    target = torch.tensor([[0.8, 0.6], [0.0, 1.0]], dtype=torch.float64)
    assert nt_xent(target, p, 1.0).item() == pytest.approx(0.75877, abs=5e-6)


def test_aligned_and_chance_levels() -> None:
    eye = torch.eye(256, dtype=torch.float64)
    local, whole = one_way(eye[None], eye[None].expand(6, -1, -1), 1.0).item(), nt_xent(eye, eye, 1.0).item()
    assert local == pytest.approx(4.552, abs=5e-4)
    assert whole == pytest.approx(5.240, abs=5e-4)
    assert local + 6 * whole == pytest.approx(35.99, abs=5e-3)
    rows = torch.randn(2, 256, 4096, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert one_way(rows[:1], rows[1:], 1.0).item() == pytest.approx(math.log(256), abs=2e-3)
    assert nt_xent(rows[0], rows[1], 1.0).item() == pytest.approx(math.log(511), abs=2e-3)


@pytest.mark.parametrize("mode", [{}, RELEASED, FAST_MOCO], ids=["described", "released", "fastmoco"])
def test_collapsed_embeddings_give_the_chance_level(mode: dict[str, Any]) -> None:
    """Of a batch of 256 at temperature 1 that is 42.96, and no image is told from another."""
    values = {"images": 600, "batch": 256, "queue": 300, "region_temperature": 1.0, "instance_temperature": 1.0}
    net = method(**{**mode, **values, "search": "written"})
    nn.init.zeros_(net.backbone.main.weight)  # type: ignore[arg-type,union-attr]
    nn.init.ones_(net.backbone.statistics.bias)  # type: ignore[arg-type,union-attr]
    for last in (net.projector[7], net.predictor[3]):
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.ones_(last.bias)  # type: ignore[arg-type]
    ema_last = net.momentum_projector[7]  # type: ignore[index]
    nn.init.zeros_(ema_last.weight)
    nn.init.ones_(ema_last.bias)
    views = [torch.randn(256, 1, SIDE, SIDE, dtype=torch.float64) for _ in net.views(clock(0))]
    terms, monitors = net(Batch(views, [], torch.arange(256), torch.arange(256) % 4), clock(0))
    assert terms["region"].item() == pytest.approx(5.545177, abs=1e-6)
    if "instance" in net.grains:
        assert terms["instance"].item() == pytest.approx(6 * math.log(511), rel=1e-12)
        assert sum(term.item() for term in terms.values()) == pytest.approx(42.96, abs=5e-3)
        assert monitors["instance_top1"].item() == pytest.approx(1 / 256)
    assert monitors["region_top1"].item() == pytest.approx(1 / 256)
    assert [monitors[name].item() for name in ("spread", "rank")] == pytest.approx([0.0, 0.0], abs=1e-12)


# --- parts


def test_tiles_are_cut_column_by_column() -> None:
    view = torch.arange(2 * 3 * 6 * 6, dtype=torch.float64).view(2, 3, 6, 6)
    found = tiles(view, 2)
    assert found.shape == (8, 3, 3, 3)
    top, bottom = slice(0, 3), slice(3, 6)
    corners = [(top, top), (bottom, top), (top, bottom), (bottom, bottom)]  # rows, columns
    assert torch.equal(found, torch.cat([view[:, :, y, x] for y, x in corners]))
    assert torch.equal(tiles(view, 3)[2:4], view[:, :, 2:4, 0:2])
    assert torch.equal(tiles(view, 1), view)
    with pytest.raises(UserError, match="splits 3 does not divide a view's side of 32 px"):
        tiles(torch.zeros(1, 1, 32, 32), 3)


@pytest.mark.parametrize(("size", "count"), [(1, 4), (2, 6), (3, 4), (4, 1)])
def test_sets_of_parts(size: int, count: int) -> None:
    part = torch.randn(4, 3, 2, dtype=torch.float64)
    found = set_means(part, size)
    assert found.shape == (count, 3, 2)
    expected = [sum(part[s] for s in chosen) / size for chosen in itertools.combinations(range(4), size)]
    torch.testing.assert_close(found, torch.stack(expected))  # type: ignore[arg-type]


def test_parts_are_averaged_before_the_projector() -> None:
    seen: dict[str, list[tuple[int, ...]]] = {"before": [], "after": []}
    for combine, shapes in seen.items():
        net = method(combine=combine)
        net.projector.register_forward_hook(lambda _, inputs, __, s=shapes: s.append(tuple(inputs[0].shape)))  # type: ignore[misc]
        net(given(net, 0), clock(0))
    assert seen["before"] == [(BATCH, 5)] * 3 + [(6 * BATCH, 5)] * 2
    assert seen["after"] == [(BATCH, 5)] * 3 + [(4 * BATCH, 5)] * 2


def test_targets_are_of_the_other_view() -> None:
    """With an identity for a network: p_2 meets the parts of view 1, p_1 those of view 2, and view 3 neither."""
    net = method(grains=["region"], region_temperature=0.1)
    views = [view.requires_grad_() for view in given(net, 0).views]
    pairs: list[tuple[Tensor, Tensor]] = []
    net._region = lambda found: (pairs.extend(found), (torch.zeros(()), torch.zeros(())))[1]  # type: ignore[assignment,method-assign,func-returns-value]
    net(Batch(views, [], torch.arange(BATCH), torch.arange(BATCH)), clock(0))
    for (p, c), (own, other) in zip(pairs, ((1, 0), (0, 1)), strict=True):
        reached = torch.autograd.grad(p.square().sum(), views, allow_unused=True)
        assert reached[own] is not None
        assert reached[other] is None
        assert not c.requires_grad
        with torch.no_grad():
            expected = net._combine(net._encode(tiles(views[other], 2)))
        torch.testing.assert_close(c, expected)


# --- gradients


def gradients(net: MNCL, *terms: str) -> dict[str, Tensor]:
    losses, _ = net(given(net, 0), clock(0))
    chosen = torch.stack([losses[name] for name in terms or losses]).sum()
    named = {name: p for name, p in net.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(chosen, list(named.values()), allow_unused=True)
    return {name: torch.zeros(()) if g is None else g for name, g in zip(named, found, strict=True)}


def test_released_gradient_is_a_times_that_of_the_global_loss() -> None:
    net = method(**RELEASED)
    terms, _ = net(given(net, 0), clock(0))
    assert not terms["region"].requires_grad
    assert terms["region"].item() > 0
    total = gradients(method(**RELEASED))
    alone = method(**{**RELEASED, "instance_weight": 1.0})
    for name, g in gradients(alone, "instance").items():
        torch.testing.assert_close(total[name], 6 * g, rtol=0, atol=2e-14)


def test_view_2_of_the_release_moves_statistics_and_nothing_else() -> None:
    net = method(**RELEASED)
    batch = given(net, 0)
    views, live = [view.requires_grad_() for view in batch.views], list[bool]()
    net.backbone.register_forward_hook(lambda _, inputs, output: live.append(output.pooled.requires_grad))
    terms, _ = net(batch, clock(0))
    reached = torch.autograd.grad(torch.stack(list(terms.values())).sum(), views, allow_unused=True)
    assert [g is not None for g in reached] == [True, False, True]
    assert live == [True, False, True, False, False]  # v1, v2, v3, parts: what costs a backward pass
    assert int(net.backbone.statistics.num_batches_tracked) == 5  # type: ignore[union-attr,arg-type]
    assert int(net.predictor[1].num_batches_tracked) == 3  # type: ignore[arg-type]


def test_described_local_term_trains_predictor_and_views_but_not_through_the_parts() -> None:
    net = method()
    found = gradients(net, "region")
    for name in ("predictor.0.weight", "predictor.3.weight", "projector.0.weight", "backbone.main.weight"):
        assert found[name].norm() > 1e-3, name
    batch = given(net, 0)
    views = [view.requires_grad_() for view in batch.views]
    p_views = [torch.zeros_like(view) for view in views]
    terms, _ = net(batch, clock(0))
    reached = torch.autograd.grad(terms["region"], views, allow_unused=True, retain_graph=True)
    assert [g is not None for g in reached] == [True, True, False]
    assert not any(g is not None and torch.equal(g, zero) for g, zero in zip(reached, p_views, strict=True))
    reached = torch.autograd.grad(terms["instance"], views, allow_unused=True)
    assert [g is not None for g in reached] == [True, False, True]


@pytest.mark.parametrize("values", [{}, FAST_MOCO], ids=["described", "fastmoco"])
def test_gradient_against_finite_differences(values: dict[str, Any]) -> None:
    """Of the loss with its targets held fixed, in Fast-MoCo those of the moving average."""
    net = method(**values)
    train(net, last=2)
    held: list[Tensor] = []
    plain_region, plain_look_up = net._region, net._look_up

    def region(pairs: Any) -> Any:
        held.extend(key for _, key in pairs) if not held else None
        return plain_region([(anchor, key) for (anchor, _), key in zip(pairs, held, strict=True)])

    places: list[Tensor] = []

    def look_up(e: Tensor, index: Tensor) -> Any:
        if len(places) < 2:
            places.append(plain_look_up(e, index)[0])
        else:
            places.append(places[len(places) % 2])
        return places[-1], index >= 0

    net._region, net._look_up = region, look_up  # type: ignore[method-assign]

    def value() -> Tensor:
        return torch.stack(list(net(given(net, 2), clock(2))[0].values())).sum()

    trained = [p for p in net.parameters() if p.requires_grad]
    found = torch.autograd.grad(value(), trained)
    directions = [torch.randn_like(p) for p in trained]
    values_at = []
    for sign in (1e-6, -2e-6):
        for p, d in zip(trained, directions, strict=True):
            p.data += sign * d
        values_at.append(value().item())
    expected = sum((g * d).sum().item() for g, d in zip(found, directions, strict=True))
    assert (values_at[0] - values_at[1]) / 2e-6 == pytest.approx(expected, rel=1e-6)


# --- queue and moving average


def test_neighbours_are_looked_up_before_this_steps_rows_are_pushed() -> None:
    net = method(search="all", queue=20)
    noise = net.queue.rows.clone()
    torch.testing.assert_close(noise.norm(dim=1), torch.ones(20, dtype=torch.float64), rtol=0, atol=1e-7)
    batch = given(net, 0)
    looked: list[Tensor] = []
    plain = net._look_up

    def look_up(e: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        found = plain(e, index)
        looked.extend([e, found[0]])
        return found

    net._look_up = look_up  # type: ignore[method-assign]
    _, monitors = net(batch, clock(0))
    e_1, k_1, e_3, k_3 = looked
    for e, k in ((e_1, k_1), (e_3, k_3)):
        best = (normalize(e, dim=1) @ normalize(noise, dim=1).T).argmax(1)
        assert torch.equal(k, noise[best])
    assert monitors["neighbour_self"].item() == 0
    assert torch.equal(net.queue.rows, noise)  # forward writes nothing
    net.after_step(clock(0))
    assert torch.equal(net.queue.rows[:BATCH], e_3)  # as they come, and e_3 alone
    assert torch.equal(net.queue.rows[BATCH:], noise[BATCH:])
    assert net.queue_indices.rows[:BATCH, 0].tolist() == batch.indices.tolist()
    assert not torch.allclose(e_3.norm(dim=1), torch.ones(BATCH, dtype=torch.float64))
    net._look_up = plain  # type: ignore[method-assign]
    _, monitors = net(batch, clock(1))  # the same images again: batch statistics, so the same embeddings
    assert monitors["neighbour_self"].item() == 1


def test_an_empty_queue_gives_the_embedding_itself() -> None:
    first, itself = method(), method(neighbour=False)
    losses = [net(given(net, 0), clock(0))[0]["instance"].item() for net in (first, itself)]
    assert losses[0] == losses[1]
    noisy = method(search="all")
    assert noisy(given(noisy, 0), clock(0))[0]["instance"].item() != losses[0]


def test_pushes_at_the_end_of_the_queue() -> None:
    pointers = {}
    for wrap in ("ring", "cut"):
        net = method(queue=20, queue_wrap=wrap)
        pointers[wrap] = []
        for step in range(5):
            pointers[wrap].append(int(net.queue.pointer))
            net(given(net, step), clock(step))
            net.after_step(clock(step))
    assert pointers == {"ring": [0, 6, 12, 18, 4], "cut": [0, 6, 12, 18, 0]}


def test_length_of_stored_rows_does_not_matter() -> None:
    losses = []
    for factor in (1.0, 7.0):
        net = method(search="all")
        net.queue.rows *= factor
        losses.append(net(given(net, 0), clock(0))[0]["instance"].item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)


def test_moving_average_of_parameters_alone() -> None:
    net = method(momentum=0.75)
    with torch.no_grad():
        for p in net.momentum_backbone.parameters():
            p.zero_()
        for p in net.momentum_projector.parameters():
            p.zero_()
    net.backbone.statistics.running_mean.fill_(5.0)  # type: ignore[union-attr,operator]
    net.before_step(clock(0))
    for name, p in net.named_parameters():
        if name.startswith("momentum_"):
            torch.testing.assert_close(p.data, net.get_parameter(name.removeprefix("momentum_")).data / 4)
    assert not net.momentum_backbone.statistics.running_mean.any()  # type: ignore[union-attr,operator]
    assert not any(p.requires_grad for n, p in net.named_parameters() if n.startswith("momentum_"))
    assert not hasattr(net, "momentum_predictor")


def test_start_of_the_moving_average_and_of_the_heads() -> None:
    torch.manual_seed(0)
    wide = {**BASE, "hidden": 64, "embedding": 64, "predictor_hidden": 64, "head_norm_scale": "uniform"}
    for init in ("copy", "independent"):
        net = MNCL(Tiny(), **{**wide, "ema_init": init})
        for name, p in net.named_parameters():
            if name.startswith("momentum_"):
                online = net.get_parameter(name.removeprefix("momentum_"))
                constant = bool((online == online.flatten()[0]).all())
                assert torch.equal(p, online) == (constant or init == "copy"), name
                assert torch.equal(p.flatten().sort().values, online.flatten().sort().values)
                assert p.data_ptr() != online.data_ptr()
        scales = torch.cat([net.projector[1].weight, net.projector[7].weight, net.predictor[1].weight])  # type: ignore[list-item]
        assert 0 < scales.min() < 0.1 < 0.9 < scales.max() < 1
        assert torch.equal(net.backbone.statistics.weight, torch.ones(5))  # type: ignore[union-attr]
    plain = method()
    assert all((plain.projector[i].weight == 1).all() for i in (1, 4, 7))  # type: ignore[union-attr]


def test_heads() -> None:
    net = method()
    inner = ["Linear", "SynchronisedBatchNorm", "ReLU"]
    assert [type(layer).__name__ for layer in net.projector] == [*inner, *inner, *inner[:2]]
    assert [type(layer).__name__ for layer in net.predictor] == [*inner, "Linear"]
    assert net.projector[7].affine
    widths = [layer.weight.shape for layer in (*net.projector, *net.predictor) if isinstance(layer, nn.Linear)]
    assert widths == [(9, 5), (9, 9), (4, 9), (7, 4), (4, 7)]
    torch.manual_seed(0)
    paper = {**BASE, "hidden": 2048, "embedding": 2048, "predictor_hidden": 512, "neighbour": False}
    tiny = Tiny()
    tiny.width = 512
    full = MNCL(tiny, **{**paper, "grains": ["region"]})
    counts = [sum(p.numel() for p in part.parameters()) for part in (full.projector, full.predictor)]
    assert [round(count / 1e6, 2) for count in counts] == [9.46, 2.1]


# --- batch norm


class Sized(Tiny):
    """Shows batch norm zeros for whole views and ones for smaller ones."""

    def forward(self, x: Tensor) -> Encoded:
        size = torch.full((len(x), 5), float(x.shape[-1] < SIDE), dtype=x.dtype) + 1e-3 * torch.randn(len(x), 5)
        pooled = self.statistics(size)
        return Encoded(pooled[:, None], pooled[:, :, None, None], pooled)


@pytest.mark.parametrize(("norm", "share"), [("shared", 0.46), ("no_track", 0.0), ("separate", 0.0)])
def test_share_of_parts_in_the_running_statistics(norm: str, share: float) -> None:
    """Passes one after the other, v1, v2, v3 and the parts: of what a step brings into them, 46 % are of parts."""
    torch.manual_seed(0)
    net = MNCL(Sized(), **{**BASE, "local_norm": norm}).double()
    net(given(net, 0), clock(0))
    found = net.backbone.statistics.running_mean / (1 - 0.9 ** (5 if norm == "shared" else 3))  # type: ignore[union-attr,operator]
    assert found.mean().item() == pytest.approx(share, abs=5e-3)
    counts = {n: int(b) for n, b in net.named_buffers() if n.endswith("num_batches_tracked")}
    views = 5 if norm == "shared" else 3
    assert {counts[f"{name}.num_batches_tracked"] for name in ("backbone.statistics", "projector.7")} == {views}
    assert counts["momentum_projector.7.num_batches_tracked"] == 2
    if norm == "separate":
        own = net.get_buffer("part_statistics.0.running_mean")
        assert own.mean().item() == pytest.approx(0.19, abs=5e-3)
        assert counts["part_statistics.0.num_batches_tracked"] == 2


def test_order_of_passes() -> None:
    """Which network sees which view, and whether in parts: a view and its tiles have the same sum."""
    net = method()
    batch, seen = given(net, 0), list[tuple[str, int, int]]()
    sums = torch.stack([view.sum() for view in batch.views])

    def note(name: str, x: Tensor) -> None:
        seen.append((name, len(x) // BATCH, 1 + int((sums - x.sum()).abs().argmin())))

    net.backbone.register_forward_pre_hook(lambda _, inputs: note("trained", inputs[0]))
    net.momentum_backbone.register_forward_pre_hook(lambda _, inputs: note("average", inputs[0]))
    net(batch, clock(0))
    whole = [("trained", 1, 1), ("trained", 1, 2), ("trained", 1, 3)]
    assert seen == [*whole, ("trained", 4, 1), ("trained", 4, 2), ("average", 1, 1), ("average", 1, 3)]


# --- what is asked for and reported


def test_views() -> None:
    asked = {
        "three": method(),
        "two": method(third_view="first"),
        "crossed": method(third_view="second"),
        "global only": method(grains=["instance"]),
        "one": method(grains=["instance"], third_view="first"),
        "local only": method(grains=["region"]),
        "fastmoco": method(**FAST_MOCO),
        "crops": method(parts="crops"),
        "no crops": method(parts="crops", grains=["instance"]),
    }
    counts = {name: net.views(clock(0)) for name, net in asked.items()}
    wanted = {"three": 3, "two": 2, "crossed": 2, "global only": 2, "one": 1, "local only": 2, "fastmoco": 2}
    assert {name: counts[name] for name in wanted} == {name: ("global",) * n for name, n in wanted.items()}
    assert counts["crops"] == ("global",) * 3 + ("local",) * 8
    assert counts["no crops"] == ("global",) * 2
    assert not hasattr(asked["local only"], "momentum_backbone")
    assert not hasattr(asked["local only"], "queue")
    assert not hasattr(asked["fastmoco"], "queue")
    assert not hasattr(method(neighbour=False), "queue")


def test_what_is_reported() -> None:
    net = method(queue=40)
    train(net, last=5)  # over the end of the first epoch
    batch = given(net, 5)
    terms, monitors = net(batch, clock(5))
    assert list(terms) == ["region", "instance"]
    assert not any(value.requires_grad for value in monitors.values())
    assert all(value.ndim == 0 for value in monitors.values())
    with torch.no_grad():
        pooled = net.backbone(batch.views[0]).pooled
        p = {a: net.predictor(net.projector(net.backbone(batch.views[a - 1]).pooled)) for a in (1, 2, 3)}
        e = {a: net._embed(batch.views[a - 1]) for a in (1, 3)}
        c = {a: net._combine(net._encode(tiles(batch.views[a - 1], 2))) for a in (1, 2)}
    torch.testing.assert_close(monitors["spread"], spread(pooled))
    torch.testing.assert_close(monitors["rank"], effective_rank(pooled))
    labels, indices = batch.labels_for_monitoring.tolist(), batch.indices.tolist()
    known = [i for i in range(BATCH) if labels[i] >= 0]
    agree = []
    for i in known:
        others = [j for j in known if j != i]
        nearest = max(others, key=lambda j, i=i: float(unit(e[1][i]) @ unit(e[3][j])))  # type: ignore[misc]
        agree.append(labels[nearest] == labels[i])
    assert monitors["neighbour_agreement"].item() == pytest.approx(np.mean(agree))
    alone = Batch([batch.views[0]] * 3, [], batch.indices, torch.arange(BATCH))
    assert net(alone, clock(5))[1]["neighbour_agreement"].item() == 0  # an image is no neighbour of its own
    place = (unit(e[3]) @ unit(net.queue.rows[net.queue.written]).T).argmax(1)
    own = [int(net.queue_indices.rows[q, 0]) == i for q, i in zip(place.tolist(), indices, strict=True)]
    assert monitors["neighbour_self"].item() == pytest.approx(np.mean(own))

    def top1(a: Tensor, b: Tensor) -> float:
        return float(((unit(a) @ unit(b).T).argmax(1) == torch.arange(BATCH)).double().mean())

    region = [top1(p[2], key) for key in c[1]] + [top1(p[1], key) for key in c[2]]
    assert monitors["region_top1"].item() == pytest.approx(np.mean(region))
    assert METHOD.uses_labels is False


def test_instance_top1() -> None:
    net = method(neighbour=False)
    batch = given(net, 0)
    net._embed = lambda view: view.flatten(1)[:, :4]  # type: ignore[method-assign]
    net.projector = net.predictor = nn.Identity()  # type: ignore[assignment]
    net.backbone.forward = lambda x: Encoded(*[x[: len(x) // BATCH * BATCH].flatten(1)[:, :4]] * 3)  # type: ignore[assignment]
    one = batch.views[0]
    assert net(Batch([one] * 3, [], batch.indices, batch.labels_for_monitoring), clock(0))[1]["instance_top1"] == 1.0
    turned = Batch([one, one, one.roll(1, 0)], [], batch.indices, batch.labels_for_monitoring)
    assert net(turned, clock(0))[1]["instance_top1"] == 0.0


def test_labels_change_no_bit_of_the_state() -> None:
    states = []
    for offset in (0, 5):
        net = method()
        for step in range(4):
            batch = given(net, step)
            net.before_step(clock(step))
            renamed = Batch(batch.views, [], batch.indices, batch.labels_for_monitoring + offset)
            torch.stack(list(net(renamed, clock(step))[0].values())).sum().backward()
            net.after_step(clock(step))
        states.append([*net.state_dict().values(), *(p.grad for p in net.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    batch = given(net, 0)
    unlabelled = Batch(batch.views, [], batch.indices, torch.full((BATCH,), -1))
    assert net(unlabelled, clock(0))[1]["neighbour_agreement"].item() == 0


@pytest.mark.parametrize("values", [{}, RELEASED, FAST_MOCO], ids=["described", "released", "fastmoco"])
def test_order_in_the_batch_does_not_matter(values: dict[str, Any]) -> None:
    order, results = torch.tensor([4, 2, 0, 5, 1, 3]), []
    for rows in (slice(None), order):
        net = method(**values)
        train(net, last=2)
        terms, monitors = net(given(net, 2, rows), clock(2))
        net.after_step(clock(2))
        queue = net.queue.rows[12:16] if hasattr(net, "queue") else torch.zeros(4)
        results.append(([t.item() for t in terms.values()], {k: float(m) for k, m in monitors.items()}, queue))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-12)
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-9, abs=1e-12)
    if "grains" not in values:  # the first four of the batch went in before the end of the queue
        assert not torch.allclose(results[1][2], results[0][2])


# --- groups, refusals


def test_parameters_to_train() -> None:
    net = method(decay_all=False)
    names = {id(p): name for name, p in net.named_parameters()}
    groups = {group["name"]: group for group in net.parameter_groups()}
    found = {name: {names[id(p)] for p in group["params"]} for name, group in groups.items()}
    assert set().union(*found.values()) == {n for n in names.values() if not n.startswith("momentum_")}
    assert sum(map(len, found.values())) == len(set().union(*found.values()))
    for name, group in groups.items():
        assert group["lr_constant"] == name.startswith("predictor")
        assert group["decay"] == (not name.endswith("not_decayed"))
        assert all(n.startswith("predictor") == name.startswith("predictor") for n in found[name])
        assert all((net.get_parameter(n).ndim > 1) == group["decay"] for n in found[name])
    everything = method().parameter_groups()
    assert [(group["decay"], group["lr_constant"]) for group in everything] == [(True, False), (True, True)]
    assert sum(len(group["params"]) for group in everything) == sum(map(len, found.values()))
    assert not any(group["lr_constant"] for group in method(predictor_constant=False).parameter_groups())


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"grains": []}, r"grains is \[\]; name region, instance or both"),
        ({"grains": ["region", "region"]}, "once each"),
        ({"local_gradient": "tiles"}, "Fast-MoCo"),
        ({**FAST_MOCO, "local_norm": "no_track"}, "Fast-MoCo"),
        ({"grains": ["region"], "local_gradient": "none"}, "trains nothing"),
        ({"combined": 5}, r"combined is 5; with splits 2 it must be in 1\.\.4"),
        ({"combined": 0}, r"must be in 1\.\.4"),
        ({"splits": 0}, r"must be in 1\.\.0"),
        ({"queue": 41}, r"queue: 41 rows, must be from 6 \(batch\) to 40 \(images\)"),
        ({"queue": 5}, "queue: 5 rows"),
    ],
)
def test_values_that_do_not_fit_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        method(**values)


def test_length_of_the_queue() -> None:
    rows = {share: len(method(queue=share).queue.rows) for share in (0.5, 0.01, 30)}
    assert rows == {0.5: 20, 0.01: BATCH, 30: 30}


# --- the files in params


def units(v: dict[str, Any]) -> int:
    """Passes per image: with gradient 3, without 1; the parts of a view have its area."""
    if v["local_gradient"] == "tiles":
        return 2 * 3 + 2
    third = {"own": 3, "first": 1, "second": 2}[v["third_view"]]
    instance = {1, third} if "instance" in v["grains"] else set()
    region = {1, 2} if "region" in v["grains"] else set()
    trained = instance | (region if v["local_gradient"] == "predictor" else set())
    return 3 * len(trained) + len(region - trained) + len(region) + len(instance)


VARIANTS = sorted(path.stem for path in (PARAMS / "variant/mncl").glob("*.yaml"))


@pytest.mark.parametrize("variant", [None, *VARIANTS])
def test_yaml_fits_the_constructor_and_its_cost_is_right(variant: str | None) -> None:
    found, base = configured("mncl", variant), configured("mncl")
    values_model("polygrain.methods.mncl", "MNCL").of("run", found["values"], "method.values")
    v = found["values"]
    net = MNCL(Tiny(), **v)
    assert found["encoder_passes"] == units(v)
    assert found["start_passes"] == 0
    preset = {key: v[key] for key in RELEASED}
    assert (found["mode"] == "released") == (preset == RELEASED)
    if hasattr(net, "queue"):
        rows = len(net.queue.rows)
        assert rows % 128 == 0
        assert rows <= 4000
        assert variant is None or not variant.startswith("queue-") or variant == f"queue-{rows}"
    if variant:
        assert v != base["values"], "a variant that changes nothing"
        assert (PARAMS / f"variant/mncl/{variant}.yaml").read_text().startswith("# @package _global_\n# MNCL")


def test_modes_are_the_switches_of_the_ledger() -> None:
    lines = yaml.safe_load((PARAMS / "ledger/mncl.yaml").read_text())["lines"]
    for mode in ("described", "released"):
        preset = yaml.safe_load((PARAMS / f"mode/mncl/{mode}.yaml").read_text())["method"]
        told = {x["switch"].removeprefix("method.values."): x[mode]["value"] for x in lines if x["kind"] == "deviation"}
        assert (preset["mode"], preset["values"]) == (mode, told)
    assert told == RELEASED
    base = configured("mncl")["values"]
    for line in lines:
        if line["kind"] == "reconstructed":
            assert base[line["switch"].removeprefix("method.values.")] == line["ours"]["value"], line["id"]


# --- two processes


SHARED: list[dict[str, Any]] = [
    {**RELEASED, "local_norm": "no_track"},
    {"local_norm": "separate", "third_view": "second", "combine": "after"},
    FAST_MOCO,
]


def ends(net: MNCL, rows: slice) -> Any:
    losses, norms = train(net, last=3, rows=rows)  # the third step's rows do not fit the end of the queue
    net.before_step(clock(3))
    terms, monitors = net(given(net, 3, rows), clock(3))
    torch.stack(list(terms.values())).sum().backward()
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return losses, norms, net.state_dict(), monitors, found


def work(rank: int) -> Any:
    share = BATCH // WORLD
    results = []
    for values in SHARED:
        losses, norms, state, monitors, found = ends(method(**values), slice(rank * share, (rank + 1) * share))
        for gradient in found.values():
            torch.distributed.all_reduce(gradient)
            gradient /= WORLD
        results.append((losses, norms, state, monitors, found))
    return results


def test_two_processes_equal_one(tmp_path: Path) -> None:
    loads = run_in_two(work, tmp_path)
    for place, values in enumerate(SHARED):
        losses, norms, state, monitors, found = ends(method(**values), slice(None))
        for shared in (load[place] for load in loads):
            for one, two in zip(losses, shared[0], strict=True):
                assert two == pytest.approx(one, rel=1e-10)
            assert shared[1] == pytest.approx(norms, rel=1e-9)
            for name, value in state.items():
                torch.testing.assert_close(shared[2][name], value, rtol=0, atol=1e-10)
            for name, value in monitors.items():
                torch.testing.assert_close(shared[3][name], value, rtol=1e-8, atol=1e-10)
            for name, value in found.items():
                torch.testing.assert_close(shared[4][name], value, rtol=0, atol=1e-10)
        for name in ("backbone.main.weight", *(n for n in state if n.startswith("queue"))):
            assert torch.equal(loads[0][place][2][name], loads[1][place][2][name])
