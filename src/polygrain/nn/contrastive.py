"""Contrastive losses. Legend: B images, R = 2B rows, D width; z are embeddings, not yet of unit length.

A anchors and K keys where these are different rows; J sets of N rows each. All losses scale rows to unit length.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def nt_xent(z_1_BD: Tensor, z_2_BD: Tensor, temperature: float, *, block: int | None = None) -> Tensor:
    """Compute NT-Xent of SimCLR (Chen et al. 2020, equation 1) over the 2B rows of two views, a scalar.

    Row i's positive is the other view of its image; its denominator holds all other 2B - 1 rows, so collapsed rows give
    ln(2B - 1). Gradient reaches every row as anchor and as key. With `block`, a key has gradient only from anchors of
    the same `block` images, as if other processes sent keys without gradient (WCL section 4.1).
    """
    z_RD = normalize(torch.cat([z_1_BD, z_2_BD]), dim=1)
    product_RR = z_RD @ z_RD.T
    if block is not None:
        block_R = torch.arange(len(z_RD), device=z_RD.device) % len(z_1_BD) // block
        product_RR = torch.where(block_R == block_R[:, None], product_RR, z_RD @ z_RD.detach().T)
    logits_RR = product_RR / temperature
    self_RR = torch.eye(len(z_RD), dtype=torch.bool, device=z_RD.device)
    images = len(z_1_BD)
    positive_R = torch.cat([logits_RR.diagonal(images), logits_RR.diagonal(-images)])
    return (logits_RR.masked_fill(self_RR, float("-inf")).logsumexp(dim=1) - positive_R).mean()


def one_way(anchor_JND: Tensor, key_JND: Tensor, temperature: float) -> Tensor:
    """Compute CE_T(anchor, key) (MNCL section 5), mean over J (1 on either side is allowed); collapsed: ln N.

    Row i of a key set is row i's positive, the set's other rows are its negatives.
    """
    log_share_JNN = (normalize(anchor_JND, dim=2) @ normalize(key_JND, dim=2).mT / temperature).log_softmax(dim=2)
    return -log_share_JNN.diagonal(dim1=1, dim2=2).mean()


def sup_con(z_BD: Tensor, positive_BB: Tensor, temperature: float, *, keys_grad: bool) -> Tensor:
    """Compute the supervised contrastive loss of one view (Khosla et al. 2020, `out` form; WCL section 4.3), a scalar.

    Anchor i's term is the mean over its positives j (True in `positive_BB[i]`, bool; never i) of -log( exp(s_ij / t) /
    sum_{a != i} exp(s_ia / t) ). Anchors without a positive are left out; if none has one, the loss is 0. Collapsed
    rows give ln(B - 1). keys_grad: gradient to keys too, which WCL's release does not have.
    """
    z_BD = normalize(z_BD, dim=1)
    self_BB = torch.eye(len(z_BD), dtype=torch.bool, device=z_BD.device)
    logits_BB = z_BD @ (z_BD if keys_grad else z_BD.detach()).T / temperature
    return _out_form(logits_BB.masked_fill(self_BB, float("-inf")), positive_BB & ~self_BB)


def sup_con_to_bank(anchor_AD: Tensor, bank_KD: Tensor, positive_AK: Tensor, temperature: float) -> Tensor:
    """Compute `sup_con` of anchors against all rows of a bank without gradient; collapsed rows give ln K."""
    logits_AK = normalize(anchor_AD, dim=1) @ normalize(bank_KD.detach(), dim=1).T / temperature
    return _out_form(logits_AK, positive_AK)


def _out_form(logits_AK: Tensor, positive_AK: Tensor) -> Tensor:
    log_share_AK = logits_AK - logits_AK.logsumexp(dim=1, keepdim=True)
    count_A = positive_AK.sum(dim=1)
    mean_A = log_share_AK.masked_fill(~positive_AK, 0.0).sum(dim=1) / count_A.clamp(min=1)
    return -mean_A.sum() / (count_A > 0).sum().clamp(min=1)
