"""lightly's side of the comparison, put together as its documentation and its example scripts do it.

lightly is imported by name, because it is installed only for this. Legend: B images, N features, D width, K groups.
"""

import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset

from polygrain.backbones.load import load_backbone
from polygrain.cli.versus.shared import complete, two_views
from polygrain.data.packed import Packed
from polygrain.nn.optim import build as build_optimizer
from polygrain.nn.optim import set_learning_rate, split_by_decay
from polygrain.nn.phases import Stopwatch
from polygrain.provenance.errors import UserError
from polygrain.train.data import PretrainingData
from polygrain.views.recipe import Jitter, Recipe


class InMemory(Dataset[Any]):
    """The pre-training subset as PIL images, transformed when one is asked for."""

    def __init__(self, job: dict[str, Any]) -> None:
        data = PretrainingData(Path(job["data"]), job["config"])
        assert isinstance(data.data, Packed), "the run that is compared is on a data set of pixels"
        pixels = data.data.images
        self.images = [Image.fromarray(np.array(pixels[position, 0])) for position in data.positions.tolist()]
        self.labels: list[int] = data.labels.tolist()
        self.mean, self.std = data.mean, data.std
        self.transform: Any = None

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
        raise UserError(
            "versus: recipe 'global' is not one that lightly's SimCLR transform can make; compare another run"
        )
    return import_module("lightly.transforms").SimCLRTransform(
        input_size=recipe.size,
        min_scale=recipe.scale[0],
        hf_prob=recipe.flip,
        cj_prob=jitter.probability,
        cj_strength=1.0,
        cj_bright=jitter.brightness,
        cj_contrast=jitter.contrast,
        cj_sat=jitter.saturation,
        cj_hue=jitter.hue,
        random_gray_scale=recipe.grey,
        gaussian_blur=0.0,
        normalize={"mean": mean, "std": std},
    )


def _dataset(job: dict[str, Any]) -> Any:
    images = InMemory(job)
    transform = transform_of(Recipe.from_mapping(job["config"]["augmentation"]["global"]), images.mean, images.std)
    return import_module("lightly.data").LightlyDataset.from_torch_dataset(images, transform=transform)


class Model(nn.Module):
    """Our backbone under lightly's projection head, with the layers of our head: no norm behind the last one."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        values = config["method"]["values"]
        if values["layers"] != 2:
            raise UserError("versus: the comparison knows a head of 2 layers; set method.values.layers: 2")
        self.backbone = load_backbone(**config["backbone"], channels=1)
        hidden = values["hidden"]
        self.head = import_module("lightly.models.modules.heads").ProjectionHead(
            [
                (self.backbone.width, hidden, nn.BatchNorm1d(hidden), nn.ReLU()),
                (hidden, values["embedding"], None, None),
            ]
        )

    def forward(self, images_BCSS: Tensor) -> Tensor:
        """Embeddings [B, embedding]."""
        embeddings: Tensor = self.head(self.backbone(images_BCSS).pooled)
        return embeddings


class Step:
    """SimCLR as in lightly's script: its data set and transform under torch's loader, its head, its loss.

    Backbone, parameter groups and the fused optimiser are those of our run; both views go through the network at once.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        config = job["config"]
        torch.manual_seed(config["seed"])
        self.batch: int = config["pretrain"]["batch"]
        self.dataset = _dataset(job)
        self.model = Model(config).to(memory_format=torch.channels_last).train()
        self.criterion = import_module("lightly.loss").NTXentLoss(temperature=config["method"]["values"]["temperature"])
        chosen = config["optimizer"]
        self.optimizer = build_optimizer(chosen["name"], split_by_decay(self.model), **chosen["values"])
        rate = chosen["schedule"]["base"]
        set_learning_rate(self.optimizer, base=rate, scheduled=rate)
        self.prepare(threads=1, workers=0)

    def prepare(self, threads: int, workers: int) -> None:
        """Use so many torch threads and loader workers; the workers stay from one epoch to the next."""
        torch.set_num_threads(threads)
        self.loader = DataLoader(
            self.dataset,
            batch_size=self.batch,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        self.batches = self._forever()

    def run(self, steps: int) -> dict[str, float]:
        """Seconds per phase of `steps` steps: waiting for data, forward, backward, optimiser, rest."""
        watch = Stopwatch(torch.device("cpu"))
        start = time.perf_counter()
        for _ in range(steps):
            with watch.phase("waiting for data"):
                views, _, _ = next(self.batches)
            with watch.phase("forward"):
                z_1_BD, z_2_BD = self.model(torch.cat(views)).chunk(2)
                loss = self.criterion(z_1_BD, z_2_BD)
            with watch.phase("backward"):
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
            with watch.phase("optimiser"):
                self.optimizer.step()
        return complete(watch, time.perf_counter() - start)

    def close(self) -> None:
        """End the loader's workers."""
        del self.batches, self.loader

    def _forever(self) -> Iterator[Any]:
        while True:
            yield from self.loader


class Views:
    """Two views of each image of a batch: lightly's transform image by image, then stacked."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.dataset = _dataset(job)
        self.batch: int = job["config"]["pretrain"]["batch"]
        self.step = 0

    def prepare(self, threads: int, workers: int) -> None:
        """Set the number of torch threads; views are made in this process."""
        torch.set_num_threads(threads)

    def run(self, steps: int) -> dict[str, float]:
        """Seconds for the views of `steps` batches."""
        images, transform = self.dataset.dataset.images, self.dataset.transform
        start = time.perf_counter()
        for _ in range(steps):
            first = self.step * self.batch % (len(images) - self.batch + 1)
            pairs = [transform(image) for image in images[first : first + self.batch]]
            self.made = [torch.stack(view) for view in zip(*pairs, strict=True)]
            self.step += 1
        return {"views": time.perf_counter() - start}

    def close(self) -> None:
        """Nothing was started."""


class Groups:
    """SMoG's work besides its networks, as in lightly's example: prototypes, memory bank, scikit-learn's k-means."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.online_ND, self.target_ND = two_views(job)
        self.batch: int = job["config"]["pretrain"]["batch"]
        np.random.seed(job["config"]["seed"])  # scikit-learn draws the start of its k-means from here
        torch.manual_seed(job["config"]["seed"])
        count, width = job["groups"]["count"], job["groups"]["width"]
        start_KD = normalize(self.online_ND[torch.randperm(len(self.online_ND))[:count]], dim=1)
        heads = import_module("lightly.models.modules.heads")
        self.smog = heads.SMoGPrototypes(group_features=start_KD, beta=0.99)
        bank = import_module("lightly.models.modules.memory_bank").MemoryBankModule
        self.memory = bank(size=(len(self.online_ND), width))
        self.memory.bank.copy_(self.online_ND)
        torch.manual_seed(job["config"]["seed"])
        self.gradient_KD = torch.randn(count, width)
        self.step = 0

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
                self._reset()
        return dict(watch.seconds)

    def _take_step(self, watch: Stopwatch) -> None:
        first = self.step * self.batch % (len(self.online_ND) - self.batch + 1)
        rows = slice(first, first + self.batch)
        online_BD = self.online_ND[rows].clone().requires_grad_()
        target_BD = self.target_ND[rows]
        with watch.phase("assignment"):
            self.smog.assign_groups(target_BD)
        with watch.phase("group update"):
            moved_KD = self.smog.get_updated_group_features(online_BD)
        with watch.phase("its gradient"):
            torch.autograd.backward(moved_KD, self.gradient_KD)
        with watch.phase("memory"):
            self.smog.set_group_features(moved_KD)
            self.memory(online_BD, update=True)
        self.step += 1

    def _reset(self) -> None:
        k_means = import_module("sklearn.cluster").KMeans(self.job["groups"]["count"]).fit(self.memory.bank.numpy())
        centres_KD = torch.from_numpy(k_means.cluster_centers_).float()
        self.smog.set_group_features(normalize(centres_KD, dim=1))

    def close(self) -> None:
        """Nothing was started."""


WORKS = {"step": Step, "views": Views, "groups": Groups}
