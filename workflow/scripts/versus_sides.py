"""The two sides of the comparison with lightly: ours, and lightly's as its documentation and example scripts do it.

python workflow/scripts/versus_sides.py    one process of the comparison: a job on standard input, figures as JSON

A part sets its work up and does a step each time that it is asked for the next. lightly and scikit-learn are imported
by name, because they are installed only for this. Legend: B images, N features, D width, K groups.
"""

import json
import os
import resource
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from importlib import import_module
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_meter import training
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset

from polygrain.backbones.load import load_backbone
from polygrain.data.packed import Packed
from polygrain.nn.clock import Clock
from polygrain.nn.groups import assign, moved_groups, spherical_kmeans
from polygrain.nn.heads import Head
from polygrain.nn.optim import build as build_optimizer
from polygrain.nn.optim import set_learning_rate, split_by_decay
from polygrain.nn.phases import Stopwatch
from polygrain.nn.random import permutation
from polygrain.provenance.errors import UserError
from polygrain.provenance.pins import pin_torch
from polygrain.train.data import PretrainingData
from polygrain.views.recipe import Jitter, Recipe

ENDLESS = 10**9
WARM_UP, TRY, TRIES = 4, 8, 2  # steps before each measurement, steps of a try, how often every setting is tried
Job = dict[str, Any]
"""`side`, `part`, `config` of the training, folder of its `data`, `groups`: count, width, bank."""


def our_step(job: Job, watch: Stopwatch, workers: int) -> Iterator[None]:
    """Part a: the training loop itself takes the step: logging, monitors and the check of the loss too."""
    run = training({**job["config"], "steps": ENDLESS}, Path(job["data"]))
    run.watch = watch
    while True:
        with watch.phase("rest"):  # what is between the loop's phases
            run.take_step()
        yield


def their_model(config: Mapping[str, Any]) -> nn.ModuleDict:
    """Our backbone and lightly's projection head with the layers of our head: no norm behind the last one."""
    values, backbone = config["method"]["values"], load_backbone(**config["backbone"], channels=1)
    assert values["layers"] == 2, "the comparison knows a head of 2 layers"
    first = (backbone.width, values["hidden"], nn.BatchNorm1d(values["hidden"]), nn.ReLU())
    heads = import_module("lightly.models.modules.heads")
    head = heads.ProjectionHead([first, (values["hidden"], values["embedding"], None, None)])
    return nn.ModuleDict({"backbone": backbone, "head": head}).to(memory_format=torch.channels_last).train()


def their_step(job: Job, watch: Stopwatch, workers: int) -> Iterator[None]:
    """Part a: SimCLR as in lightly's script: its data set and transform under torch's loader, its head, its loss.

    Backbone, parameter groups and the fused optimiser are those of our run; both views go through the network at once.
    """
    config, chosen = job["config"], job["config"]["optimizer"]
    torch.manual_seed(config["seed"])
    model = their_model(config)
    criterion = import_module("lightly.loss").NTXentLoss(temperature=config["method"]["values"]["temperature"])
    optimizer = build_optimizer(chosen["name"], split_by_decay(model), **chosen["values"])
    set_learning_rate(optimizer, base=chosen["schedule"]["base"], scheduled=chosen["schedule"]["base"])
    data = import_module("lightly.data").LightlyDataset.from_torch_dataset(images := _InMemory(job), images.transform)
    loading: dict[str, Any] = {"shuffle": True, "drop_last": True, "persistent_workers": workers > 0}
    loader = DataLoader(data, batch_size=config["pretrain"]["batch"], num_workers=workers, **loading)
    batches = (batch for _ in count() for batch in loader)
    while True:
        with watch.phase("rest"):
            with watch.phase("waiting for data"):
                views, _, _ = next(batches)
            with watch.phase("forward"):
                loss = criterion(*model["head"](model["backbone"](torch.cat(views)).pooled).chunk(2))
            with watch.phase("backward"):
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
            with watch.phase("optimiser"):
                optimizer.step()
        yield


def our_views(job: Job, watch: Stopwatch, workers: int) -> Iterator[list[Tensor]]:
    """Part b: two views of each image of a batch, as the training loop asks for them."""
    data = PretrainingData(Path(job["data"]), job["config"])
    for step in count():
        with watch.phase("views"):
            clock = Clock(job["config"]["seed"], step, ENDLESS, data.steps_per_epoch)
            views = data.batch(clock, ("global", "global")).views
        yield views


def their_views(job: Job, watch: Stopwatch, workers: int) -> Iterator[Sequence[Tensor]]:
    """Part b: two views of each image of a batch: lightly's transform image by image, then stacked."""
    data = _InMemory(job)
    for rows in _batches(job, len(data)):
        with watch.phase("views"):
            pairs = [data.transform(image) for image in data.images[rows]]
            views = [torch.stack(view) for view in zip(*pairs, strict=True)]
        yield views


def _batches(job: Job, size: int) -> Iterator[slice]:
    """Consecutive batches of `size` things, again and again."""
    batch = job["config"]["pretrain"]["batch"]
    return (slice(first, first + batch) for _ in count() for first in range(0, size - batch + 1, batch))


class _InMemory(Dataset[Any]):
    """The pre-training subset as PIL images, transformed when one is asked for."""

    def __init__(self, job: Job) -> None:
        data = PretrainingData(Path(job["data"]), job["config"])
        assert isinstance(data.data, Packed), "the run that is compared is on a data set of pixels"
        self.images = [Image.fromarray(np.array(data.data.images[each, 0])) for each in data.positions.tolist()]
        self.labels: list[int] = data.labels.tolist()
        self.transform = transform_of(Recipe.from_mapping(job["config"]["augmentation"]["global"]), data.mean, data.std)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.images[index]), self.labels[index]


def transform_of(recipe: Recipe, mean: list[float], std: list[float]) -> Any:
    """Configure lightly's SimCLR transform to the law of `recipe`, for grey images.

    Raises UserError for a recipe with an operation or a range that its parameters cannot say.
    """
    jitter = recipe.jitter or Jitter(0.0)
    # its crop always has torchvision's default ratios and goes up to the whole image
    fixed = (recipe.scale[1], *(round(end, 6) for end in recipe.ratio))
    if recipe.blur or recipe.solarise or fixed != (1.0, 0.75, 1.333333):
        raise UserError("recipe 'global' is not one that lightly's SimCLR transform can make; compare another run")
    crop = {"input_size": recipe.size, "min_scale": recipe.scale[0], "hf_prob": recipe.flip}
    colour = {"cj_prob": jitter.probability, "cj_strength": 1.0, "cj_bright": jitter.brightness}
    colour |= {"cj_contrast": jitter.contrast, "cj_sat": jitter.saturation, "cj_hue": jitter.hue}
    others = {"random_gray_scale": recipe.grey, "gaussian_blur": 0.0, "normalize": {"mean": mean, "std": std}}
    return import_module("lightly.transforms").SimCLRTransform(**crop, **colour, **others)


@torch.no_grad()
def two_views(job: Job) -> list[Tensor]:
    """Projections [bank, width] of two views of the same images by a random network with SMoG's head.

    Equal for equal jobs, so that both sides work on the same numbers.
    """
    config, size, width = job["config"], job["groups"]["bank"], job["groups"]["width"]
    torch.manual_seed(config["seed"])
    backbone = load_backbone(**config["backbone"], channels=1)
    head = Head(backbone.width, 512, width, layers=2, final_norm="batch")
    batches = islice(our_views(job, Stopwatch(torch.device("cpu")), 0), -(-size // config["pretrain"]["batch"]))
    pairs = [head(backbone(torch.cat(views)).pooled).chunk(2) for views in batches]
    return [torch.cat(views)[:size].clone() for views in zip(*pairs, strict=True)]


class _OurGroups:
    """SMoG's groups of unit length, moved by unit vectors, found again by 10 rounds of spherical k-means.

    It writes the batch's rows of its memory only.
    """

    def __init__(self, job: Job, online_ND: Tensor) -> None:
        self.count, self.seed, self.resets = job["groups"]["count"], job["config"]["seed"], 0
        self.bank_ND = normalize(online_ND, dim=1)
        self.groups_KD = self._start()

    def _start(self) -> Tensor:
        return self.bank_ND[permutation(len(self.bank_ND), self.seed, "groups", self.resets)[: self.count]]

    def assign(self, features_BD: Tensor) -> Any:
        return assign(normalize(features_BD, dim=1), self.groups_KD)

    def moved(self, features_BD: Tensor) -> Any:
        self.unit_BD = normalize(features_BD, dim=1)
        return moved_groups(self.groups_KD, self.unit_BD, assign(self.unit_BD, self.groups_KD), momentum=0.99)

    def remember(self, rows: slice, features_BD: Tensor, moved_KD: Tensor) -> None:
        self.groups_KD, self.bank_ND[rows] = moved_KD.detach(), self.unit_BD.detach()

    def reset(self) -> None:
        self.resets += 1
        self.groups_KD = spherical_kmeans(self.bank_ND, self._start(), 10)


class _TheirGroups:
    """As in lightly's example: its prototypes, a memory bank copied at every step, scikit-learn's k-means."""

    def __init__(self, job: Job, online_ND: Tensor) -> None:
        np.random.seed(job["config"]["seed"])  # scikit-learn draws the start of its k-means from here
        start_KD, modules = _OurGroups(job, online_ND).groups_KD, import_module("lightly.models.modules")
        self.smog = modules.SMoGPrototypes(group_features=start_KD, beta=0.99)
        self.memory = modules.memory_bank.MemoryBankModule(size=tuple(online_ND.shape))
        self.memory.bank.copy_(online_ND)
        self.assign, self.moved = self.smog.assign_groups, self.smog.get_updated_group_features
        self.k_means = import_module("sklearn.cluster").KMeans(len(start_KD))

    def remember(self, rows: slice, features_BD: Tensor, moved_KD: Tensor) -> None:
        self.smog.set_group_features(moved_KD)
        self.memory(features_BD, update=True)

    def reset(self) -> None:
        centres_KD = torch.from_numpy(self.k_means.fit(self.memory.bank.numpy()).cluster_centers_).float()
        self.smog.set_group_features(normalize(centres_KD, dim=1))


def groups(job: Job, watch: Stopwatch, workers: int) -> Generator[None, bool, None]:
    """Part c: SMoG besides its networks, on the same features for both sides. Sent True, it resets its groups."""
    online_ND, target_ND = two_views(job)
    smog = _OurGroups(job, online_ND) if job["side"] == "polygrain" else _TheirGroups(job, online_ND)
    torch.manual_seed(job["config"]["seed"])
    gradient_KD = torch.randn(job["groups"]["count"], job["groups"]["width"])
    for rows in _batches(job, len(online_ND)):
        online_BD = online_ND[rows].clone().requires_grad_()
        with watch.phase("assignment"):
            smog.assign(target_ND[rows])
        with watch.phase("group update"):
            moved_KD = smog.moved(online_BD)
        with watch.phase("its gradient"):
            torch.autograd.backward(moved_KD, gradient_KD)
        with watch.phase("memory"):
            smog.remember(rows, online_BD, moved_KD)
        if (yield):
            with watch.phase("reset"):
                smog.reset()
            yield


PARTS: dict[tuple[str, str], Callable[[Job, Stopwatch, int], Any]] = {
    ("polygrain", "step"): our_step,
    ("polygrain", "views"): our_views,
    ("polygrain", "groups"): groups,
    ("lightly", "step"): their_step,
    ("lightly", "views"): their_views,
    ("lightly", "groups"): groups,
}


def measured(job: Job) -> dict[str, Any]:
    """Seconds by phase and peak memory of one round; with several settings (threads, workers) the best of them."""
    best, watch = dict.fromkeys(map(tuple, job["settings"]), float("inf")), Stopwatch(torch.device("cpu"))
    for threads, workers in [*best] * (TRIES if len(best) > 1 else 1):  # in turns, as a machine's speed drifts
        torch.set_num_threads(threads)
        work = PARTS[job["side"], job["part"]](job, watch, workers)
        for step in range(WARM_UP + (TRY if len(best) > 1 else job["steps"])):
            if step == WARM_UP:
                watch.seconds.clear()
            next(work)
        if job["part"] == "groups":
            work.send(True)
        work.close()  # and with it the loader's workers, so that their memory can be read
        best[threads, workers] = min(best[threads, workers], sum(watch.seconds.values()))
    memory = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"best": min(best, key=lambda each: best[each]), "phases": watch.seconds, "memory": memory}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    os.sched_setaffinity(0, asked["cores"])
    pin_torch()
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not get between
    json.dump(measured(asked), answers)
