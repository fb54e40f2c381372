"""SMoG: golden values, whole runs against a plain rewrite of them, old and new groups, two processes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
import yaml
from layers import configured
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize
from two_processes import WORLD, run_in_two

from polygrain.backbones.contract import Backbone, Encoded
from polygrain.backbones.droppath import DropPath, set_drop_path_key
from polygrain.config.signature import values_model
from polygrain.methods.smog import METHOD, Embedded, SMoG
from polygrain.nn.batch_norm import synchronise
from polygrain.nn.clock import Clock
from polygrain.nn.groups import assign, group_loss, moved_groups
from polygrain.nn.optim import build as build_optimizer
from polygrain.nn.random import hash64, permutation
from polygrain.provenance.errors import UserError
from polygrain.views.batch import Batch

PARAMS = Path(__file__).parents[2] / "params"
BATCH, EPOCH, SEED, RATE = 6, 4, 3, 0.1
BASE: dict[str, Any] = {
    "images": BATCH * EPOCH + 1,
    "batch": BATCH,
    "groups": 4,
    "heads": 1,
    "temperature": 0.2,
    "momentum": 0.9,
    "group_grad": True,
    "beta_start": 1.0,
    "beta_end": 0.5,
    "reset": "both",
    "reset_epochs": 1.0,
    "kmeans_iterations": 10,
    "hidden": 5,
    "embedding": 3,
    "activation": "relu",
    "predictor": True,
    "truncated_init": False,
    "group_features": "online",
    "logit_groups": "new",
    "large": 2,
    "targets": 2,
    "small": 0,
    "asymmetric": True,
    "joint_norm": True,
    "clean": False,
    "micro_batches": 1,
    "micro_as_batches": False,
    "statistics_passes": False,
    "decay_all": False,
}


class Tiny(Backbone):
    """Linear in four block means, so that any size fits; on request with batch norm, or with drop path."""

    def __init__(self, norm: bool = False, drop: float = 0.0) -> None:
        super().__init__()
        self.width = 4
        self.main = nn.Linear(4, 4)
        self.branch = nn.Linear(4, 4, bias=False)
        self.drop = DropPath(drop, "branch")
        self.norm = nn.BatchNorm1d(4) if norm else nn.Identity()
        self.relative_positions = nn.Parameter(torch.zeros(1, 4))

    def raw(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.main(x) + self.drop(self.branch(x)) + self.relative_positions

    def forward(self, x: Tensor) -> Encoded:
        pooled = self.norm(self.raw(x))
        return Encoded(pooled[:, None], pooled[:, :, None, None], pooled)

    def encode_crops(self, crops: Any, *, joint_norm: bool = False) -> list[Encoded]:
        if not joint_norm:
            return super().encode_crops(crops)
        pooled = self.norm(torch.cat([self.raw(crop) for crop in crops])).split([len(crop) for crop in crops])
        return [Encoded(x[:, None], x[:, :, None, None], x) for x in pooled]


def method(norm: bool = False, drop: float = 0.0, **values: Any) -> SMoG:
    torch.manual_seed(0)
    return synchronise(SMoG(Tiny(norm, drop), **{**BASE, **values})).double()  # type: ignore[return-value]


def started(**values: Any) -> SMoG:
    """A method whose memory is filled and whose first groups are found: ready for the forward pass of step 0."""
    net = method(**values)
    net.start_epoch(clock(0), Data())
    net.before_step(clock(0))
    return net


def clock(step: int, steps: int = 2 * EPOCH) -> Clock:
    return Clock(seed=SEED, step=step, steps=steps, steps_per_epoch=EPOCH)


def crop(step: int, position: int, name: str) -> Tensor:
    """The crop at one position of a step's views, a function of the counters alone; all images of the batch."""
    generator = torch.Generator().manual_seed(int(hash64(step, position, name) % 2**31))
    side = 4 if name.startswith("local") else 8
    return torch.randn(BATCH, 1, side, side, dtype=torch.float64, generator=generator)


class Data:
    """A process's share of made-up data."""

    def __init__(self, rows: slice | Tensor = slice(None)) -> None:
        self.rows = rows

    def batch(self, step: int, names: tuple[str, ...]) -> Batch:
        views = [crop(step, position, name)[self.rows] for position, name in enumerate(names)]
        return Batch(views, [], torch.arange(BATCH)[self.rows], (torch.arange(BATCH) % 3 - 1)[self.rows])

    def augmented_pass(self, now: Clock, names: tuple[str, ...]) -> Iterator[Batch]:
        for step in range(now.steps_per_epoch):
            yield self.batch(now.epoch * now.steps_per_epoch + step, names)

    def plain_pass(self, split: str = "pretrain") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        raise AssertionError("SMoG looks at augmented images only")


def train(net: SMoG, first: int = 0, last: int = 2 * EPOCH, data: Data | None = None) -> list[float]:
    """The loop's order of things with plain gradient descent; gradients are averaged over processes."""
    data, losses = data or Data(), []
    for step in range(first, last):
        now = clock(step)
        if now.step_in_epoch == 0:
            net.start_epoch(now, data)
        net.before_step(now)
        given = data.batch(step, net.views(now))
        set_drop_path_key(net, SEED, step, len(given.views[0]))
        terms, _ = net(given, now)
        net.zero_grad()
        terms["group"].backward()
        for parameter in net.parameters():
            if parameter.grad is not None:
                if torch.distributed.is_initialized():
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= WORLD
                parameter.data -= RATE * parameter.grad
        net.after_step(now)
        losses.append(terms["group"].item())
    return losses


# --- the rewrite: one tensor expression per formula, loops over everything else, no code of ours but the permutation


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def nearest(row: Tensor, groups: Tensor) -> int:
    return int(np.argmax([float((row.detach() * group).sum()) for group in groups]))


def perceptron(p: dict[str, Tensor], name: str, x: Tensor, act: Callable[[Tensor], Tensor], last_norm: bool) -> Tensor:
    def standard(x: Tensor) -> Tensor:
        return (x - x.mean(0)) / torch.sqrt(((x - x.mean(0)) ** 2).mean(0) + 1e-5)

    x = x @ p[f"{name}.0.weight"].T + p[f"{name}.0.bias"]
    x = act(standard(x) * p[f"{name}.1.weight"] + p[f"{name}.1.bias"])
    x = x @ p[f"{name}.3.weight"].T + p[f"{name}.3.bias"]
    return standard(x) if last_norm else x


def rewritten_kmeans(rows: Tensor, centroids: Tensor, iterations: int) -> Tensor:
    for _ in range(iterations):
        labels = [nearest(row, centroids) for row in rows]
        means = []
        for c in range(len(centroids)):
            members = [row for row, label in zip(rows, labels, strict=True) if label == c]
            means.append(unit(torch.stack(members).mean(0)) if members else centroids[c])
        centroids = torch.stack(means)
    return centroids


class Rewrite:
    """Section 5 of the specification from the initial parameters of a method with these values."""

    def __init__(self, **values: Any) -> None:
        self.v = {**BASE, **values}
        start = {n: p.detach().clone() for n, p in method(**values).named_parameters() if not n.startswith("momentum")}
        self.q = {name: p.requires_grad_() for name, p in start.items()}
        self.k = {name: p.detach().clone() for name, p in start.items() if not name.startswith("predictor")}
        self.banks, self.losses, self.groups = min(self.v["large"], 2), list[float](), list[Tensor]()
        self.memory = torch.zeros(self.banks, BATCH * EPOCH, self.v["embedding"], dtype=torch.float64)
        with torch.no_grad():
            size = BATCH // (self.v["micro_batches"] if self.v["micro_as_batches"] else 1)
            for step in range(EPOCH):
                for j in range(self.banks):
                    x = crop(step, j, "global_a" if self.v["asymmetric"] else "global")
                    for a in range(0, BATCH, size):
                        rows = unit(self.project(self.q, [x[a : a + size]])[0])
                        self.memory[j, step * BATCH + a : step * BATCH + a + size] = rows

    def run(self, steps: int) -> "Rewrite":
        for step in range(steps):
            self.renew(step)
            m = self.v["momentum"]
            self.k = {name: m * p + (1 - m) * self.q[name].detach() for name, p in self.k.items()}
            self.step(step, self.v["beta_start"] - (step + 1) * (self.v["beta_start"] - self.v["beta_end"]) / steps)
        return self

    def renew(self, step: int) -> None:
        v = self.v
        if step % round(v["reset_epochs"] * EPOCH):
            return
        if step == 0 or v["reset"] in ("both", "groups"):
            self.groups = []
            for h in range(v["heads"]):
                bank = self.memory[h % self.banks].clone()
                start = bank[permutation(len(bank), SEED, "groups", step, h)[: v["groups"]]]
                self.groups.append(rewritten_kmeans(bank, start, v["kmeans_iterations"]))
        if v["reset"] in ("both", "momentum"):
            self.k = {name: self.q[name].detach().clone() for name in self.k}

    def project(self, p: dict[str, Tensor], crops: list[Tensor]) -> list[Tensor]:
        """Raw projections, one tensor per set of rows that shares its batch norm."""
        weight = p["backbone.main.weight"] + p["backbone.branch.weight"]
        sets: dict[int, list[Tensor]] = {}
        for x in crops:
            half = x.shape[-1] // 2
            means = [x[:, 0, a : a + half, b : b + half].mean((1, 2)) for a in (0, half) for b in (0, half)]
            feature = torch.stack(means, 1) @ weight.T + p["backbone.main.bias"] + p["backbone.relative_positions"]
            sets.setdefault(0 if self.v["joint_norm"] else half, []).append(feature)
        act = torch.relu if self.v["activation"] == "relu" else gelu
        return [perceptron(p, "projector", torch.cat(rows), act, True) for rows in sets.values()]

    def crops(self, step: int, micro: int) -> tuple[list[Tensor], list[Tensor]]:
        v = self.v
        turn = step % EPOCH * (v["micro_batches"] if v["micro_as_batches"] else 1)
        mine, other = ("_a", "_b") if turn % 2 == 0 else ("_b", "_a")
        if not v["asymmetric"]:
            mine = other = ""
        names = ["global" + mine] * v["large"] + ["local" + mine] * v["small"]
        all_q = [crop(step, i, name) for i, name in enumerate(names)]
        more = ["global" + other] * v["targets"]
        mixed = v["joint_norm"] or v["statistics_passes"]
        if mixed and v["asymmetric"]:
            more += ["local" + other] * v["small"]
        all_k = [crop(step, len(names) + i, name) for i, name in enumerate(more)]
        if v["micro_as_batches"] and micro % 2 and v["asymmetric"]:
            return all_k, all_q
        return all_q, all_k + (all_q[v["large"] :] if mixed and not v["asymmetric"] else [])

    def embed(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Unit rows o, e, t [crop, image, D] of one micro-batch."""
        all_q, all_k = self.crops(step, rows.start // (rows.stop - rows.start))
        e = self.project(self.q, [x[rows] for x in all_q])
        o = [perceptron(self.q, "predictor", x, torch.relu, False) for x in e] if self.v["predictor"] else e
        t = self.project(self.k, [x[rows] for x in all_k])
        shape = (-1, rows.stop - rows.start, self.v["embedding"])
        return {key: unit(torch.cat(x)).view(shape) for key, x in (("predictor", o), ("online", e), ("momentum", t))}

    def moved(self, h: int, parts: list[dict[str, Tensor]], beta: float) -> Tensor:
        v, members, result = self.v, [], []
        place = h % (min(v["targets"], 2) if v["group_features"] == "momentum" else self.banks)
        for part in parts:
            live = v["group_grad"] and part is parts[-1]
            members += [x if live else x.detach() for x in part[v["group_features"]][place]]
        labels = [nearest(x, self.groups[h]) for x in members]
        for c in range(v["groups"]):
            mine = [x for x, label in zip(members, labels, strict=True) if label == c]
            mean = torch.stack(mine).mean(0) if mine else self.groups[h][c]
            result.append(unit(beta * self.groups[h][c] + (1 - beta) * mean))
        return torch.stack(result)

    def terms(self, h: int, part: dict[str, Tensor], bank: Tensor) -> list[Tensor]:
        found = []
        for s in range(self.v["targets"]):
            for i, t in enumerate(part["momentum"][s]):
                target = nearest(t, self.groups[h])
                for outputs in part["predictor"]:
                    odds = torch.exp(bank @ outputs[i] / self.v["temperature"])
                    found.append(-torch.log(odds[target] / odds.sum()))
        return found

    def step(self, step: int, beta: float) -> None:
        v, size = self.v, BATCH // self.v["micro_batches"]
        parts = [self.embed(step, slice(a, a + size)) for a in range(0, BATCH, size)]
        new = [self.moved(h, parts, beta) for h in range(v["heads"])]
        terms = []
        for h in range(v["heads"]):
            for part in parts:
                newest = v["logit_groups"] == "new" and part is parts[-1]
                terms += self.terms(h, part, new[h] if newest else self.groups[h])
        loss = sum(terms) / torch.tensor(float(len(terms)), dtype=torch.float64)
        gradients = torch.autograd.grad(loss, list(self.q.values()))
        pairs = zip(self.q.items(), gradients, strict=True)
        self.q = {name: (p - RATE * g).detach().requires_grad_() for (name, p), g in pairs}
        self.groups = [bank.detach() for bank in new]
        for j in range(self.banks):
            begin = (step % EPOCH) * BATCH
            self.memory[j, begin : begin + BATCH] = torch.cat([part["online"][j] for part in parts]).detach()
        self.losses.append(loss.item())


RUNS: dict[str, dict[str, Any]] = {
    "base": {},
    "released": {"group_grad": False},
    "three heads": {"heads": 3},
    "small crops": {"small": 2},
    "small crops, own norms": {"small": 2, "joint_norm": False},
    "small crops, one recipe": {"small": 1, "asymmetric": False},
    "one recipe": {"asymmetric": False},
    "two views": {"large": 1, "targets": 1},
    "three of each": {"large": 3, "targets": 3, "heads": 3, "group_features": "momentum"},
    "no predictor": {"predictor": False},
    "moved by t": {"group_features": "momentum"},
    "moved by o": {"group_features": "predictor"},
    "old groups": {"logit_groups": "old"},
    "constant beta": {"beta_start": 0.5},
    "asynchronous": {"beta_end": 1.0},
    "groups reset": {"reset": "groups"},
    "momentum reset": {"reset": "momentum"},
    "no reset": {"reset": "none"},
    "reset twice an epoch": {"reset_epochs": 0.5},
    "reset in mid-epoch": {"reset_epochs": 1.25},
    "shared weights": {"momentum": 0.0},
    "one k-means round": {"kmeans_iterations": 1},
    "every image a group": {"groups": BATCH * EPOCH},
    "micro-batches": {"micro_batches": 2},
    "micro-batches in turn": {"micro_batches": 3, "micro_as_batches": True, "small": 1},
    "micro-batches in turn, one recipe": {"micro_batches": 2, "micro_as_batches": True, "asymmetric": False},
    "all passes": {"small": 1, "joint_norm": False, "statistics_passes": True},
    "all passes, one recipe": {"small": 1, "joint_norm": False, "statistics_passes": True, "asymmetric": False},
    "gelu": {"activation": "gelu"},
    "temperature": {"temperature": 0.4},
}


def state(net: SMoG) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize("name", RUNS)
def test_two_epochs_against_a_rewrite(name: str) -> None:
    net = method(**RUNS[name])
    losses = train(net)
    expected = Rewrite(**RUNS[name]).run(2 * EPOCH)
    assert losses == pytest.approx(expected.losses, rel=1e-10)
    for prefix, part in (("", expected.q), ("momentum_", expected.k)):
        for key, value in part.items():
            torch.testing.assert_close(net.get_parameter(prefix + key).data, value.detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(net.groups, torch.stack(expected.groups), rtol=0, atol=1e-10)
    torch.testing.assert_close(net.memory, expected.memory, rtol=0, atol=1e-10)


def test_every_switch_makes_a_difference() -> None:
    ends = {}
    for name, values in RUNS.items():
        net = method(**values)
        train(net)
        weight = net.get_parameter("backbone.main.weight")
        for other, seen in ends.items():
            assert not torch.allclose(weight, seen, rtol=0, atol=1e-9), f"{name} ends like {other}"
        ends[name] = weight.detach()


def angles(*degrees: float) -> Tensor:
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def golden(beta: float, **values: Any) -> tuple[SMoG, Tensor, Tensor]:
    """The specification's example fed to the method behind its networks: method, loss, angles of e."""
    net = method(groups=3, embedding=2, temperature=0.5, beta_start=beta, beta_end=beta, large=1, targets=1, **values)
    e_B = torch.tensor([10.0, 20.0, 100.0, 350.0], dtype=torch.float64).deg2rad().requires_grad_()
    online = torch.stack([e_B.cos(), e_B.sin()], dim=1)[None]
    net._embed = lambda views: Embedded(angles(5, 15, 95, 0)[None], online, angles(350, 30, 120, 5)[None])  # type: ignore[method-assign]
    net.groups = angles(0, 90, 180)[None]
    terms, _ = net(Batch([torch.zeros(4, 1)] * 2, [], torch.arange(4), torch.zeros(4, dtype=torch.int64)), clock(0))
    return net, terms["group"], e_B


@pytest.mark.parametrize(
    ("beta", "new", "gradient", "directions"),
    [(0.99, 0.196623, 3.58e-5, (0.065341, 90.099508, 180)), (0.5, 0.180024, 5.280e-3, (3.312481, 95, 180))],
)
def test_golden_values(beta: float, new: float, gradient: float, directions: tuple[float, ...]) -> None:
    net, loss, e_B = golden(beta)
    assert loss.item() == pytest.approx(new, abs=5e-7)
    loss.backward()
    assert e_B.grad is not None
    assert e_B.grad[1].item() == pytest.approx(gradient, rel=2e-3)
    assert torch.equal(net.groups[0], angles(0, 90, 180))  # nothing is written before the step is done
    net.memory = torch.zeros(1, 4, 2, dtype=torch.float64)
    net.batch = 4
    net.after_step(clock(0))
    found = torch.atan2(net.groups[0, :, 1], net.groups[0, :, 0]).rad2deg()
    assert found.tolist() == pytest.approx(directions, abs=5e-7)
    torch.testing.assert_close(net.memory[0], angles(10, 20, 100, 350))
    assert not net.groups.requires_grad
    assert golden(beta, logit_groups="old")[1].item() == pytest.approx(0.197008, abs=5e-7)
    _, blocked, e_B = golden(beta, group_grad=False)
    assert blocked.item() == loss.item()
    assert not blocked.requires_grad


@pytest.mark.parametrize(("beta", "ratio"), [(0.99, 0.005), (0.95, 0.03), (0.9, 0.06), (0.5, 0.36)])
def test_size_of_the_gradient_through_the_groups(beta: float, ratio: float) -> None:
    generator = torch.Generator().manual_seed(0)
    draw = [normalize(torch.randn(n, 8, dtype=torch.float64, generator=generator), dim=1) for n in (16, 64, 64, 64)]
    groups, e, o, t = draw[0], draw[1].requires_grad_(), draw[2].requires_grad_(), draw[3]
    loss = group_loss(o[None], moved_groups(groups, e, assign(e, groups), beta), assign(t, groups)[None], 0.1)
    through, direct = torch.autograd.grad(loss, (e, o))
    assert (through.norm() / direct.norm()).item() == pytest.approx(ratio, rel=0.3)


@pytest.mark.parametrize("group_grad", [True, False])
def test_gradient_against_finite_differences(group_grad: bool) -> None:
    """Off, the numbers that the loss is compared with are those of a bank that the step does not move by parameters."""
    net = started(group_grad=group_grad, beta_start=0.5, heads=2, small=1)
    given = Data().batch(0, net.views(clock(0)))
    loss = net(given, clock(0))[0]["group"]
    assert net._moved is not None
    fixed_HKD = net._moved[0]
    trained = [p for p in net.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, trained)
    directions = [torch.randn_like(p) for p in trained]

    def value() -> float:
        if group_grad:
            return net(given, clock(0))[0]["group"].item()
        part = net._embed(given.views)
        targets = [assign(part.momentum.flatten(0, 1), old).view(2, -1) for old in net.groups]
        terms = [group_loss(part.predictor, bank, c, 0.2) for bank, c in zip(fixed_HKD, targets, strict=True)]
        return torch.stack(terms).mean().item()

    values = []
    for sign in (1e-6, -2e-6):
        for p, d in zip(trained, directions, strict=True):
            p.data += sign * d
        values.append(value())
    expected = sum((g * d).sum().item() for g, d in zip(gradients, directions, strict=True))
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(expected, rel=1e-6)


def test_beta_falls_before_it_is_used() -> None:
    """With one member e at 90 degrees from its group the step turns the group by atan((1 - beta) / beta)."""
    for step, beta in ((0, 1 - 0.5 / 8), (3, 0.75), (7, 0.5)):
        net = method(groups=1, embedding=2, large=1, targets=1)
        net._embed = lambda views: Embedded(angles(90)[None], angles(90)[None], angles(90)[None])  # type: ignore[method-assign]
        net.groups = angles(0)[None]
        net(Batch([torch.zeros(1, 1)], [], torch.zeros(1), torch.zeros(1)), clock(step))
        assert net._moved is not None
        x, y = net._moved[0][0, 0].tolist()
        assert y / x == pytest.approx((1 - beta) / beta, rel=1e-12)


def test_views_alternate_and_only_what_is_used_is_drawn() -> None:
    net = method(small=1)
    even, odd = ("global_a",) * 2 + ("local_a",), ("global_b",) * 2 + ("local_b",)
    assert [net.views(clock(step)) for step in (0, 1, EPOCH)] == [even + odd, odd + even, even + odd]
    odd_epoch = Clock(seed=0, step=3, steps=9, steps_per_epoch=3)
    assert method(large=1, targets=1).views(odd_epoch) == ("global_a", "global_b")
    assert method(small=1, joint_norm=False).views(clock(0)) == (*even, "global_b", "global_b")
    assert method(small=1, asymmetric=False).views(clock(1)) == ("global", "global", "local", "global", "global")


def test_statistics_after_the_fill() -> None:
    """Every large crop alone, in order, through the whole online network; the momentum network has seen nothing."""
    net = method(norm=True, small=2)
    before = state(net)
    net.start_epoch(clock(0), Data())
    mean, var = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    for step in range(EPOCH):
        for position in range(2):
            with torch.no_grad():
                x = net.backbone.raw(crop(step, position, "global_a"))  # type: ignore[attr-defined]
            mean, var = 0.9 * mean + 0.1 * x.mean(0), 0.9 * var + 0.1 * x.var(0)
    after = net.state_dict()
    torch.testing.assert_close(after["backbone.norm.running_mean"], mean, rtol=0, atol=1e-14)
    torch.testing.assert_close(after["backbone.norm.running_var"], var, rtol=0, atol=1e-14)
    counts = {name: int(value) for name, value in after.items() if name.endswith("num_batches_tracked")}
    assert counts == {name: 0 if name.startswith("momentum") else 2 * EPOCH for name in counts}
    assert {"predictor.1.num_batches_tracked", "momentum_backbone.norm.num_batches_tracked"} <= counts.keys()
    trained = dict(net.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in [*trained, "groups"])
    torch.testing.assert_close(net.memory.norm(dim=2), torch.ones(2, BATCH * EPOCH, dtype=torch.float64))
    net.start_epoch(clock(EPOCH), Data())  # later epochs fill nothing
    assert all(torch.equal(value, after[name]) for name, value in state(net).items())


def test_statistics_of_a_step() -> None:
    """Both networks normalise with their own batch, large and small crops jointly; the average leaves them alone."""
    net = started(norm=True, small=1)
    online = net.get_buffer("backbone.norm.running_mean").clone()
    assert torch.equal(net.get_buffer("momentum_backbone.norm.running_mean"), torch.zeros(4, dtype=torch.float64))
    given = Data().batch(0, net.views(clock(0)))
    net(given, clock(0))
    with torch.no_grad():
        for prefix, views, start in (("", given.views[:3], online), ("momentum_", given.views[3:], 0 * online)):
            mean = torch.cat([net.backbone.raw(view) for view in views]).mean(0)  # type: ignore[attr-defined]
            found = net.get_buffer(f"{prefix}backbone.norm.running_mean")
            torch.testing.assert_close(found, 0.9 * start + 0.1 * mean, rtol=0, atol=1e-14)


def test_copies_share_no_storage() -> None:
    net = started(momentum=0.0)
    storages = [tensor.untyped_storage().data_ptr() for tensor in net.state_dict().values()]
    assert len(set(storages)) == len(storages)
    names = [name for name, _ in net.named_parameters() if name.startswith("momentum_")]
    assert all(torch.equal(net.get_parameter(n), net.get_parameter(n.removeprefix("momentum_"))) for n in names)
    given, groups, memory = Data().batch(0, net.views(clock(0))), net.groups.clone(), net.memory.clone()
    loss = net(given, clock(0))[0]["group"]
    assert torch.equal(net.groups, groups)
    assert torch.equal(net.memory, memory)
    net.after_step(clock(0))
    loss.backward()  # nothing that backward needs was written to
    assert not torch.equal(net.groups, groups)
    changed = (net.memory != memory).any(dim=2).any(dim=0)
    assert changed.tolist() == [True] * BATCH + [False] * BATCH * (EPOCH - 1)
    kept = net.groups.clone()
    net.memory.zero_()
    assert torch.equal(net.groups, kept)


def test_names_of_groups_do_not_matter() -> None:
    order = torch.tensor([2, 0, 3, 1])
    results = []
    for relabel in (False, True):
        net = started(heads=2)
        if relabel:
            net.groups = net.groups[:, order]
        loss = net(Data().batch(0, net.views(clock(0))), clock(0))[0]["group"]
        loss.backward()
        net.after_step(clock(0))
        assert net.backbone.main.weight.grad is not None  # type: ignore[union-attr]
        results.append((loss.item(), net.groups, net.backbone.main.weight.grad))  # type: ignore[union-attr]
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-12)
    torch.testing.assert_close(results[1][1], results[0][1][:, order], rtol=0, atol=1e-13)
    torch.testing.assert_close(results[1][2], results[0][2], rtol=0, atol=1e-13)


def test_order_in_the_batch_does_not_matter() -> None:
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    nets, losses = [], []
    for data in (Data(), Data(order)):
        nets.append(method(heads=2, small=1))
        net = nets[-1]
        net.start_epoch(clock(0), Data())
        net.before_step(clock(0))
        loss = net(data.batch(0, net.views(clock(0))), clock(0))[0]["group"]
        net.after_step(clock(0))
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    torch.testing.assert_close(nets[1].groups, nets[0].groups, rtol=0, atol=1e-13)
    torch.testing.assert_close(nets[1].memory[:, :BATCH], nets[0].memory[:, order], rtol=0, atol=1e-13)


def test_collapsed_embeddings_give_ln_k() -> None:
    net = method(group_grad=False)
    for parameter in net.projector[3].parameters():  # type: ignore[index]
        nn.init.zeros_(parameter)
    net.start_epoch(clock(0), Data())
    net.before_step(clock(0))
    terms, monitors = net(Data().batch(0, net.views(clock(0))), clock(0))
    assert terms["group"].item() == pytest.approx(np.log(4), rel=1e-12)
    assert [monitors[name].item() for name in ("spread", "rank")] == [0.0, 0.0]
    assert monitors["occupancy"].item() == pytest.approx(1 / 4)
    assert monitors["empty"].item() == 3 / 4


def test_what_is_reported() -> None:
    net = started(heads=2)
    given = Data().batch(0, net.views(clock(0)))
    part = net._embed(given.views)
    a, c = (assign(x[0], net.groups[0]) for x in (part.online, part.momentum))
    terms, monitors = net(given, clock(0))
    assert list(terms) == ["group"]
    assert not any(value.requires_grad for value in monitors.values())
    assert all(value.ndim == 0 for value in monitors.values())
    assert monitors["empty"].item() == pytest.approx(1 - len(set(a.tolist())) / 4)
    assert monitors["agreement"].item() == pytest.approx((a == c).double().mean().item())
    labels = given.labels_for_monitoring.tolist()
    pairs = [(i, j) for i in range(BATCH) for j in range(i) if labels[i] >= 0 and labels[j] >= 0 and c[i] == c[j]]
    assert monitors["purity"].item() == pytest.approx(np.mean([labels[i] == labels[j] for i, j in pairs] or [0]))
    old = net.groups[0].clone()
    net.after_step(clock(0))
    assert monitors["displacement"].item() == pytest.approx((net.groups[0] - old).norm(dim=1).mean().item())
    assert METHOD.uses_labels is False


def test_labels_and_indices_change_no_bit() -> None:
    data = Data()
    data.batch = lambda step, names: Batch(  # type: ignore[method-assign]
        Data().batch(step, names).views, [], torch.arange(BATCH) + 7, torch.full((BATCH,), -1)
    )
    nets = [method(), method()]
    losses = [train(nets[0]), train(nets[1], data=data)]
    assert losses[0] == losses[1]
    assert all(torch.equal(a, b) for a, b in zip(state(nets[0]).values(), state(nets[1]).values(), strict=True))


def test_drop_path_is_off_in_the_fill_in_the_momentum_network_and_for_clean_embeddings() -> None:
    """Equal networks with and without drop path: what must not be dropped is equal, and the rest is not."""
    results = {}
    for drop, clean in ((0.5, True), (0.5, False), (0.0, False)):
        net = started(drop=drop, clean=clean, group_grad=False, small=1, joint_norm=False)
        filled = net.memory.clone()
        given = Data().batch(0, net.views(clock(0)))
        set_drop_path_key(net, SEED, 0, len(given.views[0]))
        part = net._embed(given.views)
        set_drop_path_key(net, SEED, 0, len(given.views[0]))
        net(given, clock(0))
        net.after_step(clock(0))
        assert net.backbone.drop.training  # type: ignore[union-attr]
        results[drop, clean] = filled, part.momentum, net.memory, net.groups, part.predictor
    dropped, cleaned, plain = (results[key] for key in ((0.5, False), (0.5, True), (0.0, False)))
    for one in (dropped, cleaned):
        assert torch.equal(one[0], plain[0])
        assert torch.equal(one[1], plain[1])
        assert not torch.equal(one[4], plain[4])
    torch.testing.assert_close(cleaned[2], plain[2], rtol=0, atol=1e-14)
    torch.testing.assert_close(cleaned[3], plain[3], rtol=0, atol=1e-14)
    assert torch.equal(cleaned[4], dropped[4])
    for item in (2, 3):
        assert not torch.allclose(dropped[item], plain[item])


def batches(part: nn.Module) -> int:
    return int(part.get_buffer("num_batches_tracked"))


@pytest.mark.parametrize("passes", [False, True])
def test_passes_for_running_statistics_change_nothing_else(passes: bool) -> None:
    """As released: small crops of the momentum network, and clean rows through the predictor, count there alone."""
    values = {"small": 1, "joint_norm": False, "clean": True, "group_grad": False, "norm": True}
    plain, net = started(**values), started(**values, statistics_passes=passes)
    before = batches(net.predictor[1]), batches(net.momentum_projector[1]), batches(net.momentum_backbone.norm)
    views = Data().batch(0, net.views(clock(0))).views
    found, wanted = net._embed(views), plain._embed(views[:5])
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
    after = batches(net.predictor[1]), batches(net.momentum_projector[1]), batches(net.momentum_backbone.norm)
    # large and small rows and, if asked, large rows again; large rows and, if asked, small ones, heads and backbone
    assert [b - a for a, b in zip(before, after, strict=True)] == ([3, 2, 2] if passes else [2, 1, 1])


def test_parameters_to_train() -> None:
    net = method()
    names = {id(p): name for name, p in net.named_parameters()}
    found = {group["name"]: {names[id(p)] for p in group["params"]} for group in net.parameter_groups()}
    online = {name for name in names.values() if not name.startswith("momentum_")}
    assert found["decayed"] | found["not_decayed"] == online
    assert found["decayed"] == {name for name in online if net.get_parameter(name).ndim > 1} - {
        "backbone.relative_positions"
    }
    assert [group["decay"] for group in net.parameter_groups()] == [True, False]
    (group,) = method(decay_all=True).parameter_groups()
    assert group["decay"] is True
    assert len(group["params"]) == len(online)
    assert not any(p.requires_grad for p in net.momentum_backbone.parameters())


def test_larc_moves_norms_and_biases_too() -> None:
    chosen = yaml.safe_load((PARAMS / "optimizer/larc.yaml").read_text())
    net = method(decay_all=True)
    optimizer = build_optimizer(chosen["name"], net.parameter_groups(), **chosen["values"])
    net.start_epoch(clock(0), Data())
    net.before_step(clock(0))
    net(Data().batch(0, net.views(clock(0))), clock(0))[0]["group"].backward()
    optimizer.param_groups[0]["lr"] = chosen["schedule"]["base"]
    gain = net.get_parameter("projector.1.weight")
    w, g = gain.detach().clone(), gain.grad
    assert g is not None
    d, trust = 1e-6, 0.001
    step = (g + d * w) * trust * w.norm() / (g.norm() + d * w.norm() + 1e-8)
    optimizer.step()
    torch.testing.assert_close(gain.data, w - chosen["schedule"]["base"] * step, rtol=1e-9, atol=0)


def test_initialisation_of_the_heads() -> None:
    torch.manual_seed(0)
    net = SMoG(Tiny(), **{**BASE, "truncated_init": True, "hidden": 2000})
    for weight in (net.projector[0].weight, net.projector[3].weight, net.predictor[3].weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert all(int(p.count_nonzero()) == 0 for n, p in net.named_parameters() if n.endswith((".0.bias", ".3.bias")))
    assert SMoG(Tiny(), **{**BASE, "hidden": 2000}).predictor[0].weight.std().item() > 0.1
    inner = ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert [type(layer).__name__ for layer in net.projector] == [*inner, "BatchNorm1d"]
    assert net.projector[4].affine is False
    assert [type(layer).__name__ for layer in net.predictor] == inner


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"groups": BATCH * EPOCH + 1}, "groups 25 exceeds the 24 images"),
        ({"micro_batches": 4}, "must divide the batch 6"),
        ({"micro_batches": 2, "micro_as_batches": True, "targets": 1}, "has 2 and 0, the momentum network 1 and 0"),
        (
            {"micro_batches": 2, "micro_as_batches": True, "small": 1, "joint_norm": False},
            "has 2 and 1, the momentum network 2 and 0",
        ),
        ({"heads": 0}, "at least 1"),
        ({"clean": True}, "set clean or group_grad to false"),
    ],
)
def test_values_that_do_not_fit_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        method(**values)


def test_without_a_number_every_image_of_an_epoch_is_a_group() -> None:
    net = started(groups=None)
    assert net.groups.shape == (1, BATCH * EPOCH, BASE["embedding"])
    found = net.groups[0] @ net.memory[0].T
    torch.testing.assert_close(found.max(dim=0).values, torch.ones(BATCH * EPOCH, dtype=torch.float64))


def test_an_epoch_of_another_length_is_refused() -> None:
    with pytest.raises(UserError, match="an epoch of 24 images, but it has 5 steps of 6"):
        method().start_epoch(Clock(0, 0, 10, 5), Data())


# --- the files in params


VARIANTS = sorted(path.stem for path in (PARAMS / "variant/smog").glob("*.yaml"))


@pytest.mark.parametrize("variant", [None, *VARIANTS])
def test_yaml_fits_the_constructor_and_its_cost_is_right(variant: str | None) -> None:
    found, base = configured("smog", variant), configured("smog")
    values_model("polygrain.methods.smog", "SMoG").of("run", found["values"], "method.values")
    SMoG(Tiny(), **found["values"])
    v = found["values"]
    small = v["small"] * ((96 / 224) ** 2 if variant == "swin" else 1 / 4)
    mixed = v["joint_norm"] or v["statistics_passes"]
    units = 3 * (v["large"] + small) + v["targets"] + mixed * small + v["clean"] * v["large"]
    assert found["encoder_passes"] == pytest.approx(units, abs=0.01)
    assert found["start_passes"] == min(v["large"], 2)
    assert found["mode"] == ("described" if v["group_grad"] else "released")
    if variant:
        assert v != base["values"], "a variant that changes nothing"
        assert (PARAMS / f"variant/smog/{variant}.yaml").read_text().startswith("# @package _global_\n# SMoG")


def test_scaled_values_follow_the_rules() -> None:
    v = configured("smog")["values"]
    steps = 12000 // 128
    updates = steps * (1 - (1 - 1 / v["groups"]) ** 128)
    paper = 312 * (1 - (1 - 1 / 3000) ** 4096)
    assert v["beta_end"] == pytest.approx(0.99 ** (paper / updates), abs=5e-4)
    assert 50 <= 12000 / v["groups"] <= 400
    larc = yaml.safe_load((PARAMS / "optimizer/larc.yaml").read_text())
    assert larc["schedule"]["base"] == pytest.approx(4.8 * 128 / 4096)
    assert larc["schedule"]["final"] == pytest.approx(larc["schedule"]["base"] / 1000)


# --- two processes


SHARED: dict[str, Any] = {"heads": 2, "small": 1, "beta_start": 0.7, "reset_epochs": 0.5}


def work(rank: int) -> Any:
    net, share = method(norm=True, **SHARED), BATCH // WORLD
    data = Data(slice(rank * share, (rank + 1) * share))
    losses = train(net, last=EPOCH, data=data)
    now = clock(EPOCH)
    net.before_step(now)
    _, monitors = net(data.batch(EPOCH, net.views(now)), now)
    return losses, net.state_dict(), monitors


def test_two_processes_equal_one(tmp_path: Path) -> None:
    net = method(norm=True, **SHARED)
    losses = train(net, last=EPOCH)
    now = clock(EPOCH)
    net.before_step(now)
    _, monitors = net(Data().batch(EPOCH, net.views(now)), now)
    loads = run_in_two(work, tmp_path)
    for shared_losses, shared_state, shared_monitors in loads:
        assert shared_losses == pytest.approx(losses, rel=1e-10)
        for name, value in net.state_dict().items():
            torch.testing.assert_close(shared_state[name], value, rtol=0, atol=1e-10)
        for name, value in monitors.items():
            torch.testing.assert_close(shared_monitors[name], value, rtol=1e-8, atol=1e-10)
    for name in ("groups", "memory", "backbone.main.weight"):
        assert torch.equal(loads[0][1][name], loads[1][1][name])
