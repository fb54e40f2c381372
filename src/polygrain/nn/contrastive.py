"""Contrastive losses. Legend: B images, R = 2B rows, D width; z are embeddings, not yet of unit length."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def nt_xent(z_1_BD: Tensor, z_2_BD: Tensor, temperature: float) -> Tensor:
    """Compute NT-Xent of SimCLR (Chen et al. 2020, equation 1) over the 2B rows of two views, a scalar.

    Rows are scaled to unit length. Row i's positive is the other view of its image; its denominator holds all
    2B - 1 rows but itself, so collapsed rows give ln(2B - 1). Mean over the 2B rows. Gradient reaches
    every row both as anchor and as key.

    Row i of `z_1_BD` and row i of `z_2_BD` are of one image; `temperature` divides the cosine similarities.
    """
    z_RD = normalize(torch.cat([z_1_BD, z_2_BD]), dim=1)
    logits_RR = z_RD @ z_RD.T / temperature
    self_RR = torch.eye(len(z_RD), dtype=torch.bool, device=z_RD.device)
    images = len(z_1_BD)
    positive_R = torch.cat([logits_RR.diagonal(images), logits_RR.diagonal(-images)])
    return (logits_RR.masked_fill(self_RR, float("-inf")).logsumexp(dim=1) - positive_R).mean()
