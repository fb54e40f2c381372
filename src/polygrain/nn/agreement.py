"""Agreement of two sets of embeddings, for monitoring, without gradient. Legend: J sets, N images, D width."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize


@torch.no_grad()
def own_key_share(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Share of anchors whose own key is the most similar one (n equal keys count 1 / n each), mean over the pairs."""
    shares = []
    for anchor_JND, key_JND in pairs:
        cosine_JNN = normalize(anchor_JND, dim=2) @ normalize(key_JND, dim=2).mT
        best_JNN = cosine_JNN == cosine_JNN.amax(dim=2, keepdim=True)
        hit_JN = best_JNN.diagonal(dim1=1, dim2=2)
        shares.append((hit_JN / best_JNN.sum(dim=2)).mean())
    return torch.stack(shares).mean()


@torch.no_grad()
def neighbour_agreement(e_1_ND: Tensor, e_3_ND: Tensor, label_N: Tensor) -> Tensor:
    """Share of labelled images whose nearest other labelled image has the same label; 0 with fewer than two of them."""
    known_N = label_N >= 0
    e_1_ND, e_3_ND, label_N = e_1_ND[known_N], e_3_ND[known_N], label_N[known_N]
    if len(label_N) < 2:
        return e_1_ND.new_zeros(())
    cosine_NN = normalize(e_1_ND, dim=1) @ normalize(e_3_ND, dim=1).T
    nearest_N = cosine_NN.fill_diagonal_(float("-inf")).argmax(dim=1)
    return (label_N[nearest_N] == label_N).double().mean()
