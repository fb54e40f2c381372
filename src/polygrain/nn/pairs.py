"""Losses of all pairs of a crop and a view, and their average (Mugs, sections 3 and 4).

Legend: B images, S crops of the student, T views of the teacher, D width, Q rows of a queue, P prototypes.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from polygrain.nn.linear import linear_map


def info_nce(queries_SBD: Tensor, keys_TBD: Tensor, queue_QD: Tensor, temperature: float) -> Tensor:
    """InfoNCE of every crop with every view, [T, S]; unit rows, negatives from the queue; collapsed: ln(Q + 1)."""
    others_SB = (linear_map(queries_SBD, queue_QD) / temperature).logsumexp(dim=2)
    own_TSB = torch.einsum("sbd,tbd->tsb", queries_SBD, keys_TBD) / temperature
    return -logsigmoid(own_TSB - others_SB).mean(dim=2)


def cross_entropies(logits_SBP: Tensor, targets_TBP: Tensor, temperature: float) -> Tensor:
    """Compute the cross-entropy of every crop's assignment with every view's target, [T, S]; equal logits give ln P."""
    log_SBP = (logits_SBP / temperature).log_softmax(dim=2)
    return -(targets_TBP.flatten(1) @ log_SBP.flatten(1).T) / logits_SBP.shape[1]


def over_pairs(losses_TS: Tensor, pairs: Literal["half", "flat"]) -> Tensor:
    """Average the losses of two views and 2 + V crops over all pairs but (1, 1) and (2, 2), a scalar.

    half: the two pairs of global crops have half of the weight (section 4), if V > 0. flat: equal weights.
    """
    crossed_2, local_N = torch.stack([losses_TS[0, 1], losses_TS[1, 0]]), losses_TS[:, 2:].flatten()
    if pairs == "flat" or len(local_N) == 0:
        return torch.cat([crossed_2, local_N]).mean()
    return (crossed_2.mean() + local_N.mean()) / 2
