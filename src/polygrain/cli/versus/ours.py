"""Our side of the comparison with lightly. Legend: B images, N features, D width, K groups."""

import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from polygrain.cli.versus.shared import complete, two_views
from polygrain.nn.clock import Clock
from polygrain.nn.groups import assign, moved_groups, spherical_kmeans
from polygrain.nn.phases import Stopwatch
from polygrain.nn.random import permutation
from polygrain.train.data import PretrainingData
from polygrain.train.run import Training
from polygrain.train.state import Identity

ENDLESS = 10**9
KMEANS_ROUNDS = 10


class Step:
    """Training steps of the run, taken by the training loop itself: logging, monitors and the check of the loss too."""

    def __init__(self, job: dict[str, Any]) -> None:
        data = Path(job["data"])
        config = {**job["config"], "steps": ENDLESS}
        unused = data / "no-state"
        self.training = Training(config, data, unused, Identity("", "", "", ""), resume=False)

    def prepare(self, threads: int, workers: int) -> None:
        """Set the number of torch threads; pixels in memory need no loader workers."""
        torch.set_num_threads(threads)

    def run(self, steps: int) -> dict[str, float]:
        """Seconds per phase of `steps` steps: views, forward, backward, optimiser, rest."""
        self.training.watch.seconds.clear()
        start = time.perf_counter()
        for _ in range(steps):
            self.training.take_step()
        return complete(self.training.watch, time.perf_counter() - start)

    def close(self) -> None:
        """Nothing was started."""


class Views:
    """Two views of each image of a batch, as the training loop asks for them."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.seed: int = job["config"]["seed"]
        self.data = PretrainingData(Path(job["data"]), job["config"])
        self.step = 0

    def prepare(self, threads: int, workers: int) -> None:
        """Set the number of torch threads; views are made in this process."""
        torch.set_num_threads(threads)

    def run(self, steps: int) -> dict[str, float]:
        """Seconds for the views of `steps` batches."""
        start = time.perf_counter()
        for _ in range(steps):
            self.data.batch(Clock(self.seed, self.step, ENDLESS, self.data.steps_per_epoch), ("global", "global"))
            self.step += 1
        return {"views": time.perf_counter() - start}

    def close(self) -> None:
        """Nothing was started."""


class Groups:
    """SMoG's work besides its networks: groups of unit length, moved by unit vectors, found again by k-means."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.online_ND, self.target_ND = two_views(job)
        self.seed: int = job["config"]["seed"]
        self.batch: int = job["config"]["pretrain"]["batch"]
        self.bank_ND = normalize(self.online_ND, dim=1)
        self.groups_KD = self._start(0)
        torch.manual_seed(self.seed)
        self.gradient_KD = torch.randn_like(self.groups_KD)
        self.step, self.resets = 0, 0

    def prepare(self, threads: int, workers: int) -> None:
        """Set the number of torch threads."""
        torch.set_num_threads(threads)

    def run(self, steps: int) -> dict[str, float]:
        """Seconds per phase of `steps` steps, and of one reset after them."""
        watch = Stopwatch(torch.device("cpu"))
        for _ in range(steps):
            self._take_step(watch)
        if self.job["groups"]["reset"]:
            with watch.phase("reset"):
                self.resets += 1
                self.groups_KD = spherical_kmeans(self.bank_ND, self._start(self.resets), KMEANS_ROUNDS)
        return dict(watch.seconds)

    def _take_step(self, watch: Stopwatch) -> None:
        first = self.step * self.batch % (len(self.online_ND) - self.batch + 1)
        rows = slice(first, first + self.batch)
        online_BD = self.online_ND[rows].clone().requires_grad_()
        target_BD = self.target_ND[rows]
        with watch.phase("assignment"):
            assign(normalize(target_BD, dim=1), self.groups_KD)
        with watch.phase("group update"):
            unit_BD = normalize(online_BD, dim=1)
            moved_KD = moved_groups(self.groups_KD, unit_BD, assign(unit_BD, self.groups_KD), momentum=0.99)
        with watch.phase("its gradient"):
            torch.autograd.backward(moved_KD, self.gradient_KD)
        with watch.phase("memory"):
            self.groups_KD = moved_KD.detach()
            self.bank_ND[rows] = unit_BD.detach()
        self.step += 1

    def _start(self, reset: int) -> torch.Tensor:
        return self.bank_ND[permutation(len(self.bank_ND), self.seed, "groups", reset)[: self.job["groups"]["count"]]]

    def close(self) -> None:
        """Nothing was started."""


WORKS = {"step": Step, "views": Views, "groups": Groups}
