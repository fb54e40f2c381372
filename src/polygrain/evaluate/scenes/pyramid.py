"""A network with a feature pyramid behind it (Lin et al. 2017), for heads that find objects of several sizes.

A network of `stages` gives the map after each of them. Of another one, such as a transformer, the last map is made
finer by a transposed convolution and coarser by pooling (the simple pyramid of Li et al. 2022).
The finest levels, which cost the most, may be left out.

Legend: B images, C channels, S side, W width of the pyramid, h, w rows and columns of a level.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d
from torchvision.ops import FeaturePyramidNetwork

from polygrain.backbones.contract import Backbone
from polygrain.provenance.errors import UserError


class Pyramid(nn.Module):
    """Forward of views [B, C, S, S]: maps [B, W, h, w] of all levels, the finest first."""

    def __init__(self, network: Backbone, width: int, *, channels: int, side: int, left_out: int = 0) -> None:
        """width: W. channels, side: of the views. left_out: how many of the finest levels are not made.

        The new layers start as torch starts them; seed torch before. Raises UserError for a network without weights,
        and where no level is left.
        """
        super().__init__()
        self.network, self.width, self.left_out = network, width, left_out
        self._seen: list[Tensor] = []
        stages = getattr(network, "stages", None)
        for stage in stages if stages is not None else ():
            stage.register_forward_hook(self._see)
        unused = stages is not None or left_out > 0
        self.finer = nn.Identity() if unused else nn.ConvTranspose2d(network.width, network.width, 2, 2)
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
            return self._seen[self.left_out :]
        levels = (lambda: self.finer(last_BDhw), lambda: last_BDhw, lambda: max_pool2d(last_BDhw, 2))
        return [level() for level in levels[self.left_out :]]

    def _see(self, _stage: nn.Module, _given: Any, found: list[Tensor] | Tensor) -> None:
        """Keep a stage's map: a residual network hands on lists of maps [B, C, h, w], a Swin a map [B, h, w, C]."""
        self._seen.extend([found.permute(0, 3, 1, 2)] if isinstance(found, Tensor) else found)

    def _shapes(self, channels: int, side: int) -> list[tuple[int, int]]:
        """Width and rows of each level. Runs in evaluation mode, so that no statistic of the network moves."""
        training = self.network.training
        weight = next(self.network.parameters(), None)
        if weight is None:
            kind = type(self.network).__name__.lower()
            raise UserError(f"backbone {kind}: has no weights, so it cannot be fine-tuned; take this protocol off it")
        with torch.no_grad():
            levels = self.eval()._levels(weight.new_zeros(1, channels, side, side))
        self.train(training)
        if not levels:
            raise UserError(f"pyramid: {self.left_out} levels are left out, which leaves none; lower it")
        return [(level.shape[1], level.shape[2]) for level in levels]
