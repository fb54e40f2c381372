"""Pre-training images of any size, as JPEG and PNG files."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from polygrain.data.encoded import EncodedData
from polygrain.train.cut import Cut, CutJob
from polygrain.train.images.contract import Images, Request, Setting
from polygrain.train.loader import Loader
from polygrain.views.apply import fill_of, plain_view
from polygrain.views.batch import Batch, draw_views, finish_batch
from polygrain.views.draw import Drawn
from polygrain.views.recipe import ViewRecipe

# unaugmented views show the central 224 of 256 px, as ImageNet's evaluation view does
_WHOLE = 256 / 224


def images_of(data: EncodedData, setting: Setting, workers: int, batch_size: int) -> Images:
    """The subset of `setting`, which `workers` processes decode ahead of time."""
    return EncodedImages(data, setting, workers, batch_size)


class EncodedImages:
    """Encoded images of any size: the loader decodes, cuts, resizes and flips; the rest is done on whole batches."""

    def __init__(self, data: EncodedData, setting: Setting, workers: int, batch_size: int) -> None:
        self.data, self.setting = data, setting
        self.loader = Loader(data, workers, batch_size, pin=setting.device.type == "cuda")

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Yield the batches asked for; workers prepare the next ones."""
        setting = self.setting
        begun: deque[tuple[Request, list[Drawn], Tensor]] = deque()

        def jobs() -> Iterator[CutJob]:
            for request in requests:
                positions = setting.positions[request.rows]
                source = torch.from_numpy(self.data.sizes(positions.numpy()))
                drawn = draw_views(request.recipes, positions, seed=setting.seed, epoch=request.epoch, source=source)
                begun.append((request, drawn, source))
                cuts = (_cut(*each, setting.mean) for each in zip(request.recipes, drawn, strict=True))
                yield CutJob(positions.numpy(), tuple(cuts))

        for cuts in self.loader.stream(jobs()):
            request, drawn, source = begun.popleft()
            yield finish_batch(
                [cut.to(setting.device, non_blocking=True) for cut in cuts],
                drawn,
                setting.labels[request.rows.to(setting.device)],
                setting.positions[request.rows].to(setting.device),
                request.recipes,
                source=source,
                mean=setting.mean,
                std=setting.std,
            )

    def plain(self, parts: Sequence[Tensor], *, subset: bool) -> Iterator[Tensor]:
        """Yield the central squares."""
        size = self.setting.size
        jobs = (CutJob(part.numpy(), (Cut(size, resize=round(size * _WHOLE)),)) for part in parts)
        for cuts in self.loader.stream(jobs):
            view = cuts[0].to(self.setting.device, non_blocking=True)
            yield plain_view(view, size, self.setting.mean, self.setting.std)


def _cut(recipe: ViewRecipe, drawn: Drawn, mean: Sequence[float]) -> Cut:
    """The loader's part of a view: everything up to the flip."""
    return Cut(
        recipe.size,
        drawn.box.numpy(),
        drawn.flip.numpy(),
        interpolation=recipe.interpolation,
        randaugment=tuple(part.numpy() for part in drawn.randaugment.parts) if drawn.randaugment else (),
        fill=tuple(fill_of(mean)),
    )
