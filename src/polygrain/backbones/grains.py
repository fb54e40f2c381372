"""A backbone with heads for several grains: student and teacher of Mugs.

Legend: R = C * B rows of C crops of B images, crop-major; N tokens, D width, P prototypes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from polygrain.backbones.contract import Backbone
from polygrain.nn.local_group import LocalGroup
from polygrain.nn.prototypes import Prototypes
from polygrain.nn.queue import Queue


class CropFeatures(NamedTuple):
    """Rows of C crops of B images.

    rows: per grain the projections [C * B, D], or the logits [C * B, P]. memory: [B, D], what a memory takes of the
    first crop. pooled: y_c [C * B, D]. unfilled: share of the wanted neighbours that are missing or noise.
    """

    rows: dict[str, Tensor]
    memory: Tensor
    pooled: Tensor
    unfilled: Tensor


class Network(nn.Module):
    """The parts that student and teacher both have: backbone, relation block, projectors by grain, prototypes."""

    def __init__(
        self,
        backbone: Backbone,
        local_group: LocalGroup | None,
        projectors: dict[str, nn.Module],
        prototypes: Prototypes | None,
    ) -> None:
        super().__init__()
        self.backbone, self.local_group, self.prototypes = backbone, local_group, prototypes
        self.projectors = nn.ModuleDict(projectors)
        for part in (*self.projectors.modules(), *(local_group.modules() if local_group else ())):
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def forward(self, crops: Sequence[Tensor], memory: Queue | None) -> CropFeatures:
        """One pass over crops [B, C, S, S] of one size; a local group needs a memory."""
        tokens_RND = self.backbone.trunk(torch.cat(list(crops)))
        encoded = self.backbone.finish(tokens_RND)
        rows, unfilled = dict[str, Tensor](), encoded.pooled.new_zeros(())
        for grain, projector in self.projectors.items():
            rows_RD = encoded.pooled
            if self.local_group is not None and memory is not None and grain == "local-group":
                group_RD, unfilled = self.local_group(tokens_RND, encoded.tokens, memory)
                rows_RD = self.backbone.norm(group_RD)
            rows[grain] = projector(rows_RD)
        if self.prototypes is not None:
            rows["group"] = self.prototypes(normalize(rows["group"], dim=1))
        memory_BD = encoded.tokens[: len(crops[0])].detach().mean(dim=1)
        return CropFeatures(rows, memory_BD, encoded.pooled.detach(), unfilled)
