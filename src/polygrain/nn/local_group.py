"""Mugs's local groups: a crop's feature together with its nearest neighbours in a memory (section 3).

Legend: R crops, N tokens, P patch tokens, D width, k neighbours, G = k + 1 members, A rows that are searched.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from polygrain.nn.neighbours import topk_cosine
from polygrain.nn.phases import phase
from polygrain.nn.queue import Queue


class LocalGroup(nn.Module):
    """Query, retrieval, aggregation; gradient flows through the query and `relation`, neighbours are constants.

    relation: maps a group [R, G, D], the query first, to [R, D]; None takes the mean of its members. neighbours: k; 0
    leaves the query alone. query: `consistent`, the mean patch token after the final norm, as in the memory; or
    `asymmetric`, the mean of all tokens before it. masked: rows not yet written are never found.
    """

    def __init__(
        self, relation: nn.Module | None, *, neighbours: int, query: Literal["consistent", "asymmetric"], masked: bool
    ) -> None:
        super().__init__()
        self.relation, self.neighbours, self.query, self.masked = relation, neighbours, query, masked

    def forward(self, tokens_RND: Tensor, patches_RPD: Tensor, memory: Queue) -> tuple[Tensor, Tensor]:
        """The group's feature [R, D], before the final norm, and the share of wanted neighbours that are noise.

        tokens_RND are all tokens before the final norm, patches_RPD the patch tokens after it.
        """
        u_RD = (patches_RPD if self.query == "consistent" else tokens_RND).mean(dim=1)
        with phase("rest"):
            near_RkD, unfilled = self._retrieve(u_RD, memory)
        group_RGD = torch.cat([u_RD[:, None], near_RkD], dim=1)
        return group_RGD.mean(dim=1) if self.relation is None else self.relation(group_RGD), unfilled

    @torch.no_grad()
    def _retrieve(self, u_RD: Tensor, memory: Queue) -> tuple[Tensor, Tensor]:
        """The neighbours [R, k, D], fewer while a masked memory has fewer rows; the search is in float32."""
        allowed_Q = memory.written if self.masked else torch.ones_like(memory.written)
        place_A = allowed_Q.nonzero()[:, 0]
        count = min(self.neighbours, len(place_A))
        if count == 0:
            return u_RD.new_zeros(len(u_RD), 0, u_RD.shape[1]), u_RD.new_tensor(float(self.neighbours > 0))
        _, near_Rk = topk_cosine(u_RD.float(), memory.rows[place_A], count, byte_budget=1 << 27)
        near_Rk = place_A[near_Rk]
        filled = memory.written[near_Rk].sum() / (len(u_RD) * self.neighbours)
        return memory.rows[near_Rk].to(u_RD.dtype), 1.0 - filled
