"""Terms that several losses share."""

from __future__ import annotations

import torch
from torch import Tensor


def log_sum_exp_with_one(z: Tensor, mask: Tensor) -> Tensor:
    """[R] log(1 + sum of exp z over the masked pairs of a row); 0 for an empty row. z, mask [R, N]."""
    z = z.masked_fill(~mask, -torch.inf)
    return torch.cat([z.new_zeros(z.shape[0], 1), z], dim=1).logsumexp(dim=1)


def cross_entropy(
    z: Tensor, target: Tensor, positive: Tensor, smoothing: float = 0.0, among: bool = True
) -> Tensor:
    """[R] softmax cross-entropy of one class against the others.

    Args:
        z: [R, C] logits of the classes. target: [R] logit of a row's own class.
        positive: bool [R, C], which class is the row's own.
        smoothing: share of the target's probability that is spread evenly over the others.
        among: whether the target counts in the denominator.

    Rows without an own class, or without others, have a loss of 0.
    """
    valid = positive.any(1) & ~positive.all(1)
    # A row of only -inf has no derivative; its loss is not used.
    rest = z.masked_fill(positive & valid[:, None], -torch.inf).logsumexp(1)
    gap = rest - target
    # softplus without torch's switch to the identity beyond 20, which costs digits in float64
    loss = torch.logaddexp(gap, torch.zeros_like(gap)) if among else gap
    if smoothing > 0:
        others = (z * ~positive).sum(1) / max(1, z.shape[1] - 1)
        loss = loss + smoothing * (target - others)
    return torch.where(valid, loss, torch.zeros_like(loss))


def softmax_mean(s: Tensor, size: int, gamma: float) -> Tensor:
    """[R, C] of s [R, C size]: means of `size` consecutive values, weighted by softmax(s / gamma)."""
    grouped = s.unflatten(1, (-1, size))
    return ((grouped / gamma).softmax(2) * grouped).sum(2)
