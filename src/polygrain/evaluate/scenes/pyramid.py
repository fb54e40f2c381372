"""A network with a feature pyramid behind it (Lin et al. 2017), for heads that find objects of several sizes.

A network of `stages` gives the map after each of them. Of another one, such as a transformer, the last map is made
finer by a transposed convolution and coarser by pooling (the simple pyramid of Li et al. 2022).

Legend: B images, C channels, S side, W width of the pyramid, h, w rows and columns of a level.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d
from torchvision.ops import FeaturePyramidNetwork

from polygrain.backbones.contract import Backbone


class Pyramid(nn.Module):
    """Forward of views [B, C, S, S]: maps [B, W, h, w] of all levels, the finest first."""

    def __init__(self, network: Backbone, width: int, *, channels: int, side: int) -> None:
        """width: W. channels, side: of the views. The new layers start as torch starts them; seed torch before."""
        super().__init__()
        self.network, self.width = network, width
        self._seen: list[Tensor] = []
        stages = getattr(network, "stages", None)
        for stage in stages if stages is not None else ():
            stage.register_forward_hook(self._see)
        self.finer = nn.Identity() if stages is not None else nn.ConvTranspose2d(network.width, network.width, 2, 2)
        shapes = self._shapes(channels, side)
        self.strides = [side // rows for _, rows in shapes]
        """Px of the view between cells, by level."""
        self.fuse = FeaturePyramidNetwork([inputs for inputs, _ in shapes], width)

    def forward(self, views_BCSS: Tensor) -> list[Tensor]:
        """See the class."""
        named = {str(place): level for place, level in enumerate(self._levels(views_BCSS))}
        return list(self.fuse(named).values())

    def _levels(self, views_BCSS: Tensor) -> list[Tensor]:
        self._seen.clear()
        last_BDhw = self.network(views_BCSS).map
        if self._seen:
            return list(self._seen)
        return [self.finer(last_BDhw), last_BDhw, max_pool2d(last_BDhw, 2)]

    def _see(self, _stage: nn.Module, _given: Any, maps: list[Tensor]) -> None:
        self._seen.extend(maps)

    def _shapes(self, channels: int, side: int) -> list[tuple[int, int]]:
        """Width and rows of each level. Runs in evaluation mode, so that no statistic of the network moves."""
        training = self.network.training
        with torch.no_grad():
            weight = next(self.network.parameters())
            levels = self.eval()._levels(weight.new_zeros(1, channels, side, side))
        self.train(training)
        return [(level.shape[1], level.shape[2]) for level in levels]
